"""Checkpoint files: safetensors read and written by hand, PyTorch files read without executing
anything in them, and published names mapped to ours.

A safetensors file is 8 bytes of header length n (little endian), n bytes of JSON
{name: {dtype, shape, data_offsets: [begin, end]}}, then the raw tensors. Nothing in it is executed.

Names on disk -> names of models.ViT (i is the block)

    Hugging Face ViT, DeiT                        DINOv2                           ours
    embeddings.cls_token                          same                             cls_token
    embeddings.position_embeddings                same                             position
    embeddings.patch_embeddings.projection.*      same                             patch.*
    encoder.layer.i.layernorm_before.*            ...norm1.*                       blocks.i.norm1.*
      attention.attention.{query,key,value}.*     same                             {q,k,v}.*
      attention.output.dense.*                    same                             out.*
      (none)                                      layer_scale1.lambda1             ls1
      layernorm_after.*                           norm2.*                          norm2.*
      intermediate.dense.*                        mlp.fc1.*                        fc1.*
      output.dense.*                              mlp.fc2.*                        fc2.*
      (none)                                      layer_scale2.lambda1             ls2
    layernorm.*                                   same                             norm.*

    CLIP (vision_model.)                          timm: DeiT, DINOv2 .pth          ours
    embeddings.class_embedding (D,)               cls_token                        cls_token
    embeddings.position_embedding.weight          pos_embed                        position
    embeddings.patch_embedding.weight             patch_embed.proj.*               patch.*
    pre_layrnorm.*                                (none)                           pre_norm.*
    post_layernorm.*                              norm.*                           norm.*
    encoder.layers.i.layer_norm{1,2}.*            blocks.i.norm{1,2}.*             norm{1,2}.*
      self_attn.{q,k,v}_proj.*                    attn.qkv.* (3D, D), cut in three {q,k,v}.*
      self_attn.out_proj.*                        attn.proj.*                      out.*
      mlp.fc{1,2}.*                               same                             fc{1,2}.*
      (none)                                      ls{1,2}.gamma                    ls{1,2}

Names on disk -> names of models_text.BERT

    embeddings.{word,position,token_type}_embeddings.weight         {word,position,segment}.weight
    embeddings.LayerNorm.*  (weight, bias or gamma, beta)           norm.*
    encoder.layer.i.attention.self.{query,key,value}.*              blocks.i.{q,k,v}.*
      attention.output.dense.*, attention.output.LayerNorm.*        out.*, norm1.*
      intermediate.dense.*, output.dense.*, output.LayerNorm.*      fc1.*, fc2.*, norm2.*

Prefixes vit., deit., dinov2., bert., vision_model. are removed. Not used: heads and poolers, masks
of the pretraining, position_ids, CLIP's text half and its projections.
"""

import hashlib
import json
import os
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import torch

from errors import BadInput

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}

RENAMES = [
    (r"^(vit|deit|dinov2|bert|vision_model)\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^embeddings\.(word|position)_embeddings\.weight$", r"\1.weight"),
    (r"^embeddings\.token_type_embeddings\.", "segment."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^(embeddings\.(position_embeddings|position_embedding\.weight)|pos_embed)$", "position"),
    (r"^(embeddings\.(patch_embeddings\.projection|patch_embedding)|patch_embed\.proj)\.",
     "patch."),
    (r"^encoder\.layers?\.", "blocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".\1."),
    (r"\.(self_attn\.out_proj|attn\.proj)\.", ".out."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^pre_layrnorm\.", "pre_norm."),
    (r"^post_layernorm\.", "norm."),
    (r"\.attention\.(attention|self)\.query\.", ".q."),
    (r"\.attention\.(attention|self)\.key\.", ".k."),
    (r"\.attention\.(attention|self)\.value\.", ".v."),
    (r"\.attention\.output\.dense\.", ".out."),
    (r"\.(layernorm_before|attention\.output\.LayerNorm)\.", ".norm1."),
    (r"\.(layernorm_after|output\.LayerNorm)\.", ".norm2."),
    (r"\.(intermediate\.dense|mlp\.fc1)\.", ".fc1."),
    (r"\.(output\.dense|mlp\.fc2)\.", ".fc2."),
    (r"\.(layer_scale|ls)([12])\.(lambda1|gamma)$", r".ls\2"),
    (r"^layernorm\.", "norm."),
]
UNUSED = re.compile(r"^(classifier|pooler|cls|head|text_model)\.|^(embeddings\.)?mask_token$"
                    r"|^embeddings\.position_ids$|^(text|visual)_projection\.|^logit_scale$")


def our_names(tensors, source):
    """Rename the tensors of a published checkpoint, drop its heads, cut fused q, k, v in three."""
    out = {}
    for name, tensor in tensors.items():
        if re.search(r"(^|\.)(dist|distillation)_token$", name):
            raise BadInput(f"{source} is a distilled DeiT, with a second class token: "
                           "take the variant without -distilled-")
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if UNUSED.search(name):
            continue
        if ".attn.qkv." in name:                     # rows of q, then k, then v
            for part, rows in zip("qkv", tensor.chunk(3)):
                out[name.replace("attn.qkv", part)] = rows
        else:                                        # CLIP's have no dimension for the batch
            out[name] = tensor.reshape(1, -1, tensor.shape[-1]) \
                if name in ("cls_token", "position") else tensor
    return out


def tensor(body, entry):
    """The tensor that a header entry describes, copied out of the bytes (n,)."""
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    rows = body[begin:end].copy().reshape((end - begin) // dtype.itemsize, dtype.itemsize)
    return torch.from_numpy(rows).view(dtype).reshape(entry["shape"])


def read(path):
    """All tensors of a checkpoint file, {name: tensor}: safetensors by its suffix, else torch's."""
    return read_safetensors(path) if Path(path).suffix == ".safetensors" else read_torch(path)


def read_torch(path):
    """All tensors of a file of torch.save (.bin, .pth), with nothing executed (weights_only).

    A dict under "model" or "state_dict" is taken out. BadInput for anything else than tensors.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError,
            struct.error) as error:
        reason = "it holds code and not only tensors" if "GLOBAL" in str(error) else \
            "it is damaged or cut short"
        raise BadInput(f"{path} cannot be read as tensors ({reason}): fetch it again, "
                       "or take model.safetensors instead") from None
    for key in ("model", "state_dict"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not saved or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in saved.items()):
        raise BadInput(f"{path} holds no dict of tensors by name: give a file of a state_dict")
    return saved


def read_safetensors(path):
    """All tensors of a safetensors file, {name: tensor}; BadInput if cut short or malformed."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        (length,) = struct.unpack("<Q", data[:8])
        if length > len(data) - 8:
            raise ValueError(f"the header wants {length} bytes, the file has {len(data)}")
        header = json.loads(data[8:8 + length])
        header.pop("__metadata__", None)
        body = np.frombuffer(data, np.uint8, offset=8 + length)
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = entry["data_offsets"]
            size = DTYPES[entry["dtype"]].itemsize * int(np.prod(entry["shape"], dtype=np.int64))
            if begin != end or stop - begin != size:
                raise ValueError(f"tensor {name} overlaps another, leaves a gap "
                                 "or has a wrong length")
            end = stop
        if end != len(body):
            raise ValueError(f"the tensors need {end} bytes, the file has {len(body)}")
        return {name: tensor(body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BadInput(f"{path} is no complete safetensors file ({error}): "
                       "fetch it again") from None


def write(tensors, path):
    """Write {name: tensor} as safetensors, header padded to 8 bytes; temporary file, rename."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end, chunks = {}, 0, []
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        chunks.append(flat.view(torch.uint8).numpy().tobytes())
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [end, end + len(chunks[-1])]}
        end += len(chunks[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(chunks))
    os.replace(temporary, path)


def sha256(path):
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_strict(model, tensors, source):
    """Copy tensors into a model; missing, unexpected or misshapen ones raise, first five named."""
    want = model.state_dict()
    for kind, names in (("lacks", want.keys() - tensors.keys()),
                        ("has unexpected", tensors.keys() - want.keys())):
        if names:
            raise BadInput(f"{source} {kind} {len(names)} tensors: {', '.join(sorted(names)[:5])}: "
                           f"it is not the model that its config.json describes")
    for name, tensor in tensors.items():
        if tensor.shape != want[name].shape:
            raise BadInput(f"{source}: tensor {name} has shape {tuple(tensor.shape)}, "
                           f"the model needs {tuple(want[name].shape)}: "
                           "it is not the model of its config.json")
    model.load_state_dict({k: v.to(want[k].dtype) for k, v in tensors.items()})
