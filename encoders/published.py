"""Published checkpoints: where they are, what their config.json means, files of torch.save.

A checkpoint lies in a folder of torch.hub's (TORCH_HOME moves it). It is fetched once; what lies
there is used without a network.
"""

import json
import math
import pickle
import struct
from pathlib import Path

import torch

from encoders import names, safetensors
from encoders.bert import BERT
from encoders.block import ACTIVATIONS
from encoders.vit import ViT
from errors import BadInput, unknown
from tasks import downloads

HUB = "https://huggingface.co/{}/resolve/main"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")             # the first that there is
OPTIONAL = {"preprocessor_config.json", "tokenizer_config.json"}
IMAGES = ("config.json", "preprocessor_config.json")
TEXTS = ("config.json", "tokenizer_config.json", "vocab.txt")

# name -> address, files beside the weights, sha256 of the weights (None: not known)
CHECKPOINTS = {
    "vit-tiny": (HUB.format("WinKawaks/vit-tiny-patch16-224"), IMAGES, None),
    "vit-base": (HUB.format("google/vit-base-patch16-224"), IMAGES, None),
    "deit-tiny": (HUB.format("facebook/deit-tiny-patch16-224"), IMAGES, None),
    "dinov2-small": (HUB.format("facebook/dinov2-small"), IMAGES, None),
    "clip-vit-base-patch32": (HUB.format("openai/clip-vit-base-patch32"), IMAGES, None),
    "bert-tiny": (HUB.format("google/bert_uncased_L-2_H-128_A-2"), TEXTS, None),
    "minilm-l6": (HUB.format("sentence-transformers/all-MiniLM-L6-v2"), TEXTS,
                  "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "bert-base": (HUB.format("bert-base-uncased"), TEXTS, None),
}

# model_type of a config.json -> input normalisation when the folder does not say
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
NORMALISATION = {"vit": HALF, "deit": IMAGENET, "dinov2": IMAGENET, "clip": CLIP}
CLIP_DEFAULTS = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, image_size=224,
                     num_attention_heads=12, patch_size=32, hidden_act="quick_gelu",
                     layer_norm_eps=1e-5)        # a published config may leave out what is usual


def checkpoint(name):
    """The folder of a checkpoint of CHECKPOINTS, fetched if it is not there.

    The weights come last: a folder that has them is complete.
    """
    url, files, sha256 = CHECKPOINTS[name]
    folder = Path(torch.hub.get_dir(), "checkpoints", name)
    if any((folder / file).exists() for file in WEIGHTS):
        return folder
    try:
        for file in files:
            try:
                downloads.fetch(f"{url}/{file}", folder / file)
            except downloads.NotThere:
                if file not in OPTIONAL:
                    raise
        try:
            downloads.fetch(f"{url}/{WEIGHTS[0]}", folder / WEIGHTS[0], sha256)
        except downloads.NotThere:
            downloads.fetch(f"{url}/{WEIGHTS[1]}", folder / WEIGHTS[1])
    except BadInput as error:
        needed = [file for file in files if file not in OPTIONAL]
        raise BadInput(f"the model {name} is not on this machine: {error}; a folder needs "
                       f"{', '.join(needed)} and {' or '.join(WEIGHTS)}") from None
    return folder


def settings(model_type, config, folder):
    """The class of an encoder and its keywords, from a config.json of Hugging Face."""
    if model_type is None and "type_vocab_size" in config:       # the BERTs of 2020 have no type
        model_type = "bert"
    if model_type in ("clip", "clip_vision_model"):
        model_type, config = "clip", CLIP_DEFAULTS | config.get("vision_config", config)
    if model_type not in (*NORMALISATION, "bert"):
        raise unknown("model_type", model_type,
                      ["vit_encoder", "bert_encoder", *NORMALISATION, "bert"])
    activation = config.get("hidden_act", "gelu")
    if activation not in (ACTIVATIONS if model_type == "clip" else ("gelu",)) \
            or config.get("use_swiglu_ffn"):
        raise BadInput(f"{folder}/config.json: only the GELU MLP is supported")
    width = config["hidden_size"]
    out = dict(width=width, depth=config["num_hidden_layers"], heads=config["num_attention_heads"],
               eps=config.get("layer_norm_eps", 1e-12),
               hidden=config.get("intermediate_size") or round(width * config.get("mlp_ratio", 4)))
    if model_type == "bert":
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise BadInput(f"{folder}/config.json: only absolute position embeddings are supported")
        return BERT, out | dict(vocab=config["vocab_size"], types=config.get("type_vocab_size", 2),
                                positions=config["max_position_embeddings"])
    out |= dict(image=config["image_size"], patch=config["patch_size"], activation=activation,
                channels=config.get("num_channels", 3), layer_scale=model_type == "dinov2",
                clip=model_type == "clip", **NORMALISATION[model_type])
    if (extra := folder / "preprocessor_config.json").exists():
        given = json.loads(extra.read_text())
        out |= {k: tuple(given[f"image_{k}"]) for k in ("mean", "std") if f"image_{k}" in given}
    return ViT, out


def settings_of_file(path):
    """The same from one file under timm's names, by the shapes of its tensors.

    Heads of 64, as in every published ViT of that family; ImageNet's normalisation (DeiT, DINOv2).
    """
    tensors = safetensors.read(path) if path.suffix == ".safetensors" else read_torch(path)
    tensors = names.unwrapped(tensors)
    try:
        (width, channels, patch, _), depth = tensors["patch_embed.proj.weight"].shape, 1 + max(
            int(k.split(".")[1]) for k in tensors if k.startswith("blocks."))
        grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
        return ViT, dict(image=grid * patch, patch=patch, channels=channels, width=width,
                         depth=depth, heads=max(1, width // 64), eps=1e-6,
                         hidden=len(tensors["blocks.0.mlp.fc1.weight"]),
                         layer_scale="blocks.0.ls1.gamma" in tensors, **IMAGENET)
    except (KeyError, ValueError) as error:
        raise BadInput(f"{path} is no ViT under timm's names ({error}): give --model a folder "
                       "with config.json, or such a file of DeiT or DINOv2") from None


def weight_file(path):
    """The file with the weights: the path itself, or the first of WEIGHTS in that folder."""
    for file in (path, *(path / name for name in WEIGHTS)):
        if file.is_file():
            return file
    raise BadInput(f"{path} has no {' or '.join(WEIGHTS)}: give --model a folder that has one")


CONTAINERS = ("model", "state_dict", "model_state_dict", "teacher")         # of a training script


def read_torch(path):
    """All tensors of a file of torch.save (.bin, .pth), or of the part of CONTAINERS that it has,
    with nothing executed (weights_only)."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError,
            struct.error) as error:
        reason = ("it holds code and not only tensors" if "GLOBAL" in str(error)
                  else "it is damaged or cut short")
        raise BadInput(f"{path} cannot be read as tensors ({reason}): fetch it again, "
                       "or take model.safetensors instead") from None
    for key in CONTAINERS:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not saved or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in saved.items()):
        raise BadInput(f"{path} holds no dict of tensors by name: give a file of a state_dict")
    return saved
