"""Checkpoints and data files as others publish them, small and random, written by hand."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import torch

import reference
from encoders import safetensors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]


def shuffled(values):
    """The examples of a test file as data.load gives them: in an order that is always the same."""
    return np.asarray(values)[np.random.default_rng(0).permutation(len(values))]


# ---- checkpoints ---------------------------------------------------------------------------------

def layers(prefix, linears, norms, D):
    """Shapes of linear layers {name: (out, in)} and LayerNorms of width D, with their biases."""
    shapes = {}
    for name, shape in linears.items():
        shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{prefix}{name}.weight": (D,), f"{prefix}{name}.bias": (D,)}
    return shapes


def published_vit(folder, kind, image=28, seed=0, hidden=20):
    """A random checkpoint under the Hugging Face names of `kind`: 2 blocks, width 12, patch 7."""
    torch.manual_seed(seed)
    D, H, N = 12, hidden, (image // 7) ** 2
    shapes = {"embeddings.cls_token": (1, 1, D), "embeddings.position_embeddings": (1, N + 1, D),
              "embeddings.patch_embeddings.projection.weight": (D, 3, 7, 7),
              "embeddings.patch_embeddings.projection.bias": (D,)}
    new = kind == "dinov2"
    for i in range(2):
        p = f"encoder.layer.{i}."
        linears = {"attention.attention.query": (D, D), "attention.attention.key": (D, D),
                   "attention.attention.value": (D, D), "attention.output.dense": (D, D),
                   "mlp.fc1" if new else "intermediate.dense": (H, D),
                   "mlp.fc2" if new else "output.dense": (D, H)}
        norms = ("norm1", "norm2") if new else ("layernorm_before", "layernorm_after")
        shapes |= layers(p, linears, norms, D)
        if new:
            shapes |= {f"{p}layer_scale{j}.lambda1": (D,) for j in (1, 2)}
    shapes |= layers("", {}, ["layernorm"], D)
    prefix = "" if new else "vit."
    tensors = {prefix + k: 0.4 * torch.randn(s) for k, s in shapes.items()}
    tensors["classifier.weight"] = torch.randn(3, D)                      # a head, to be dropped
    folder.mkdir()
    safetensors.write(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(
        {"model_type": kind, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 3,
         "image_size": image, "patch_size": 7, "num_channels": 3, "layer_norm_eps": 1e-5,
         "hidden_act": "gelu"} | ({"mlp_ratio": H / D} if new else {"intermediate_size": H})))
    return folder


def damage(folder, change):
    """Rewrite a checkpoint after `change(tensors)`."""
    tensors = safetensors.read(folder / "model.safetensors")
    change(tensors)
    safetensors.write(tensors, folder / "model.safetensors")


def published_bert(folder, prefix="bert.", old=True, seed=0):
    """A random BERT under its published names: 2 blocks, width 12, 3 heads; `old` for gamma."""
    torch.manual_seed(seed)
    D, H = 12, 20
    shapes = {"embeddings.word_embeddings.weight": (len(WORDS), D),
              "embeddings.position_embeddings.weight": (16, D),
              "embeddings.token_type_embeddings.weight": (2, D)}
    norms = ["embeddings.LayerNorm"]
    for i in range(2):
        p = f"encoder.layer.{i}."
        linears = {"attention.self.query": (D, D), "attention.self.key": (D, D),
                   "attention.self.value": (D, D), "attention.output.dense": (D, D),
                   "intermediate.dense": (H, D), "output.dense": (D, H)}
        shapes |= layers(p, linears, (), D)
        norms += [f"{p}attention.output.LayerNorm", f"{p}output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.{end}": (D,) for end in (("gamma", "beta") if old else
                                                     ("weight", "bias"))}
    tensors = {prefix + k: 0.4 * torch.randn(s) for k, s in shapes.items()}
    tensors |= {prefix + "pooler.dense.weight": torch.randn(D, D),             # all to be dropped
                prefix + "embeddings.position_ids": torch.arange(16)[None],
                "cls.predictions.bias": torch.randn(len(WORDS))}
    folder.mkdir()
    safetensors.write(tensors, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "bert", "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 3,
         "intermediate_size": H, "vocab_size": len(WORDS), "max_position_embeddings": 16,
         "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}))
    return folder


def random(shapes, seed=0):
    generator = np.random.default_rng(seed)
    return {k: 0.4 * generator.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def published_clip(folder, whole=True, **config):
    """A random CLIP, both halves or the vision half: 2 blocks, width 12, 3 heads, patch 7."""
    D, H = 12, 20
    shapes = {"embeddings.class_embedding": (D,), "embeddings.patch_embedding.weight": (D, 3, 7, 7),
              "embeddings.position_embedding.weight": (17, D)}
    for i in range(2):
        linears = {f"self_attn.{n}_proj": (D, D) for n in ("q", "k", "v", "out")}
        shapes |= layers(f"encoder.layers.{i}.", linears | {"mlp.fc1": (H, D), "mlp.fc2": (D, H)},
                         ("layer_norm1", "layer_norm2"), D)
    shapes |= layers("", {}, ("pre_layrnorm", "post_layernorm"), D)
    tensors = random({f"vision_model.{k}": s for k, s in shapes.items()})
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]
    if whole:
        tensors |= random({"text_model.encoder.layers.0.mlp.fc1.weight": (5, 4), "logit_scale": (),
                           "text_model.embeddings.position_embedding.weight": (9, 4),
                           "text_projection.weight": (6, 4), "visual_projection.weight": (6, D)})
    vision = {"hidden_size": D, "intermediate_size": H, "num_hidden_layers": 2, "patch_size": 7,
              "num_attention_heads": 3, "image_size": 28} | config
    folder.mkdir()
    reference.write(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "clip", "vision_config": vision} if whole else
        {"model_type": "clip_vision_model"} | vision))
    return folder, {k.removeprefix("vision_model."): v.astype(np.float64)
                    for k, v in tensors.items() if k.startswith("vision_model.")}


# ---- data files ----------------------------------------------------------------------------------

def idx(values):
    """An IDX file of unsigned bytes, written independently of data.py."""
    values = np.asarray(values, np.uint8)
    return (b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            + values.tobytes())


def write_idx(folder, zipped=True, classes=3, n=(40, 12), **replace):
    """A folder of four IDX files; `replace` gives the bytes of one, e.g. train_labels=b'...'."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in zip(("train", "t10k"), n):
        files = {"images-idx3": idx(rng.integers(0, 256, (count, 6, 5))),
                 "labels-idx1": idx(np.arange(count) % classes)}
        for kind, content in files.items():
            content = replace.get(f"{part}_{kind[:6]}", content)
            path = folder / f"{part}-{kind}-ubyte"
            if zipped:
                gzip.open(f"{path}.gz", "wb").write(content)
            else:
                path.write_bytes(content)
    return str(folder)


def element(kind, data, order="<"):
    """A MAT v5 element: tag, data, padding to 8 bytes; small ones share the tag's 8 bytes."""
    if len(data) <= 4:
        return struct.pack(f"{order}I", len(data) << 16 | kind) + data.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matlab(arrays, packed, order="<"):
    """A MATLAB 5.0 file of {name: uint8 array}."""
    out = b"MATLAB 5.0 MAT-file, by hand".ljust(124) + struct.pack(f"{order}H", 0x0100)
    out += b"IM" if order == "<" else b"MI"
    for name, array in arrays.items():
        body = (element(6, struct.pack(f"{order}II", 9, 0), order)
                + element(5, struct.pack(f"{order}{array.ndim}i", *array.shape), order)
                + element(1, name.encode(), order) + element(2, array.tobytes("F"), order))
        matrix = struct.pack(f"{order}II", 14, len(body)) + body
        if packed:
            data = zlib.compress(matrix)
            matrix = struct.pack(f"{order}II", 15, len(data)) + data
        out += matrix
    return out


def zipped(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def tarred(path, contents, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type, entry.linkname = len(content), kind, "elsewhere"
            archive.addfile(entry, io.BytesIO(content))
