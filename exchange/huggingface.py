"""Encoders as Hugging Face folders: what transformers, and encoders.load, read.

    model.safetensors           the weights, under Hugging Face's names
    config.json                 architecture: ViTModel, Dinov2Model or BertModel
    preprocessor_config.json    images: size, mean, std;  texts: vocab.txt, tokenizer_config.json

Trap     transformers 5 has two names for a module of ViT or DINOv2: one in memory
         (attention.q_proj), one in files (attention.attention.query). The files keep the names that
         transformers 4 and 5 read; an adapter needs the names in memory, `module_name`.
"""

import re
import shlex
from contextlib import contextmanager
from pathlib import Path

import torch

import lora
from encoders import names, safetensors
from encoders.heads import HEADS
from encoders.safetensors import replacing
from errors import BadInput
from experiment import cli, run_folder, spaces
from experiment.run_folder import write_json

# our layer -> module in a block: in memory (transformers 5), and in files
MEMORY = {"q": "attention.q_proj", "k": "attention.k_proj", "v": "attention.v_proj",
          "out": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
FILE = {"q": "attention.attention.query", "k": "attention.attention.key",
        "v": "attention.attention.value", "out": "attention.output.dense"}
VIT = FILE | {"fc1": "intermediate.dense", "fc2": "output.dense", "norm1": "layernorm_before",
              "norm2": "layernorm_after"}
DINO = FILE | {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "norm1": "norm1", "norm2": "norm2",
               "ls1": "layer_scale1.lambda1", "ls2": "layer_scale2.lambda1"}
BERT = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "out": "attention.output.dense", "norm1": "attention.output.LayerNorm",
        "fc1": "intermediate.dense", "fc2": "output.dense", "norm2": "output.LayerNorm"}
IMAGE = {"cls_token": "embeddings.cls_token", "position": "embeddings.position_embeddings",
         "patch": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
TEXT = {"word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
        "segment": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm"}
# model_type -> (class, blocks and layers in memory, blocks in files, the rest in files)
TYPES = {"vit": ("ViTModel", ("layers", MEMORY), VIT, IMAGE),
         "dinov2": ("Dinov2Model", ("encoder.layer", MEMORY), DINO, IMAGE),
         "bert": ("BertModel", ("encoder.layer", BERT), BERT, TEXT)}
RENAMES = [(r"^(vit|deit)\.", ""), (r"^layers\.", "blocks."),            # memory -> ours
           (r"\.attention\.([qkv])_proj\.", r".\1."), (r"\.attention\.o_proj\.", ".out.")]


def type_of(model):
    """vit, dinov2 or bert: the model_type that has exactly this encoder's tensors."""
    ours = {n.removesuffix(".weight").removesuffix(".bias") for n in model.state_dict()}
    for model_type, (_, _, block, rest) in TYPES.items():
        theirs = set(rest) | {f"blocks.{i}.{n}" for i in range(len(model.blocks)) for n in block}
        if ours == theirs and all(b.activation == "gelu" for b in model.blocks):
            return model_type
    raise BadInput(f"the encoder {model.name} has no Hugging Face form among {', '.join(TYPES)}: "
                   "it cannot be exported")


def file_name(model_type, name):
    """The name of one of our tensors in model.safetensors."""
    _, _, block, rest = TYPES[model_type]
    if inside := re.match(r"blocks\.(\d+)\.(\w+)(.*)", name):
        return f"encoder.layer.{inside[1]}.{block[inside[2]]}{inside[3]}"
    first, dot, last = name.partition(".")
    return rest[first] + dot + last


def module_name(model_type, layer):
    """The module of transformers 5, in memory, that is our layer, blocks.0.q and the like."""
    _, number, name = layer.split(".")
    blocks, parts = TYPES[model_type][1]
    return f"{blocks}.{number}.{parts[name]}"


def our_layer(module):
    """The inverse, for names in memory and in files, with or without vit. and the like before."""
    name = f"{module}.weight"
    for pattern, replacement in RENAMES + names.RENAMES:
        name = re.sub(pattern, replacement, name)
    return name.removesuffix(".weight")


def config_of(model, model_type):
    """config.json: what the class of transformers needs to build this encoder."""
    block = model.blocks[0]
    shared = {"model_type": model_type, "architectures": [TYPES[model_type][0]],
              "hidden_size": model.width, "num_hidden_layers": len(model.blocks),
              "num_attention_heads": block.heads, "intermediate_size": block.fc1.out_features,
              "layer_norm_eps": model.norm.eps, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
              "attention_probs_dropout_prob": 0.0, "dtype": str(model.norm.weight.dtype)[6:]}
    if model_type == "bert":
        return shared | {"vocab_size": model.word.num_embeddings, "pad_token_id": model.pad,
                         "max_position_embeddings": model.position.num_embeddings,
                         "type_vocab_size": model.segment.num_embeddings}
    image = shared | {"image_size": model.image, "patch_size": model.patch.stride[0],
                      "num_channels": model.channels, "qkv_bias": True}
    if model_type == "vit":
        return image
    ratio, rest = divmod(hidden := image.pop("intermediate_size"), model.width)
    if rest:
        raise BadInput(f"a Dinov2Model cannot be exported whose hidden width {hidden} is no "
                       f"multiple of the width {model.width}")
    return image | {"mlp_ratio": ratio, "use_mask_token": False, "use_swiglu_ffn": False}


def plain(model):
    """The encoder with every adapter worked into its nn.Linear; `model` is changed in place."""
    for name, layer in lora.adapters(model).items():
        weight = (layer.base.weight + layer.delta_weight()).detach()
        bias, change = layer.base.bias, layer.delta_bias()
        linear = torch.nn.Linear(*weight.shape[::-1], bias=bias is not None).to(weight)
        linear.weight.data = weight
        if bias is not None:
            linear.bias.data = (bias if change is None else bias + change).detach()
        model.set_submodule(name, linear)
    return model


def write_encoder(model, folder):
    """model.safetensors, config.json and what prepares inputs, into an existing folder."""
    model_type = type_of(model)
    safetensors.write({file_name(model_type, n): t for n, t in model.state_dict().items()},
                  folder / "model.safetensors")
    write_json(config_of(model, model_type), folder / "config.json")
    if model_type == "bert":
        words = model.tokenizer
        entries = {i: entry for entry, i in words.vocab.items()}
        lines = [entries.get(i, f"[gap{i}]") for i in range(max(entries) + 1)]
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_json({"tokenizer_class": "BertTokenizer", "do_lower_case": words.lower,
                    "model_max_length": model.position.num_embeddings},
                   folder / "tokenizer_config.json")
        return
    write_json({"image_processor_type": "ViTImageProcessor", "do_resize": True,
                "size": {"height": model.image, "width": model.image}, "resample": 2,
                "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                "image_mean": model.mean.flatten().tolist(),
                "image_std": model.std.flatten().tolist()}, folder / "preprocessor_config.json")


def check_new(flag, out):
    """BadInput if there is something where a folder is to be written, or no way to write it."""
    if Path(out).exists():
        raise BadInput(f"{flag} {out} exists: give the name of a new folder")
    cli.check_place(flag, out)


@contextmanager
def new_folder(out):
    """A folder to write into; it gets its name when everything is in it."""
    with replacing(out) as temporary:
        temporary.mkdir()
        yield temporary


def check_merged(group):
    """BadInput unless what a group of runs is merged into can be written; before merging."""
    for run in group:
        if spaces.default([run]) == "adapter":
            raise lora.NotMergeable(f"{run_folder.method(run['setting'])} is not an edit of the "
                                    "weights, and its merged model no encoder of transformers")
    type_of(run_folder.base_encoder(group[0]))


def write_merged(model, heads, about, out):
    """The merged encoder as a Hugging Face folder, with heads.safetensors and merge.json.

    heads   {task: module};  about   a dict for merge.json, which also names the class of each head
    """
    names = {cls: name for name, cls in HEADS.items()}
    with new_folder(out) as folder:
        write_encoder(plain(model), folder)
        safetensors.write(flat({task: head.state_dict() for task, head in heads.items()}),
                      folder / "heads.safetensors")
        write_json(about | {"heads": {task: names[type(head)] for task, head in heads.items()}},
                   folder / "merge.json")
    print(f"wrote the merged encoder to {out}, for AutoModel in Python too\n"
          f"next: python train.py --model {shlex.quote(str(out))}")


def flat(groups):
    """{group: {name: tensor}} -> {"group/name": tensor}."""
    return {f"{group}/{name}": t for group, tensors in groups.items()
            for name, t in tensors.items()}


def unflat(tensors, separator="/"):
    """The inverse; an empty group leaves nothing."""
    out = {}
    for key, tensor in tensors.items():
        group, _, name = key.rpartition(separator)
        out.setdefault(group, {})[name] = tensor
    return out
