"""Published checkpoints: where they are, in how many files, and what torch.save wrote.

A checkpoint lies in a folder of torch.hub's (TORCH_HOME moves it). It is fetched once; what lies
there is used without a network.
"""

import hashlib
import math
import os
from pathlib import Path

import torch

from encoders import configs, names, safetensors
from encoders.vit import ViT
from errors import BadInput, read_json
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

# width of a ViT under timm's names -> its heads, where they are not of width 64: So400m, H, g, G
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


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


def settings_of_file(path):
    """The class and keywords of one file under timm's names, by the shapes of its tensors.

    These do not tell the number of heads: HEADS does, or a config.json beside the file. ImageNet's
    normalisation (DeiT, DINOv2), if that has no mean and std.
    """
    beside, tensors = path.with_name("config.json"), names.unwrapped(read(path))
    given = read_json(beside, "mend it, or take it away") if beside.is_file() else {}
    try:
        (width, channels, patch, _), depth = tensors["patch_embed.proj.weight"].shape, 1 + max(
            int(k.split(".")[1]) for k in tensors if k.startswith("blocks."))
        grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
        out = dict(image=grid * patch, patch=patch, channels=channels, width=width, depth=depth,
                   heads=HEADS.get(width, width // 64), eps=1e-6,
                   hidden=len(tensors["blocks.0.mlp.fc1.weight"]),
                   layer_scale="blocks.0.ls1.gamma" in tensors, **configs.IMAGENET)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise BadInput(f"{path} is no ViT under timm's names ({error}): give --model a folder "
                       "with config.json, or such a file of DeiT or DINOv2") from None
    timms = given.get("pretrained_cfg")                         # where timm's own config has them
    given = (timms if isinstance(timms, dict) else {}) | given
    out |= {k: given[k] for k in ("heads", "mean", "std") if k in given}
    if "heads" not in given and width % 64 and width not in HEADS:
        raise BadInput(f"{path} does not tell its number of heads, and they cannot be 64 wide in a "
                       f"width of {width}: write {{\"heads\": N}} to {beside}")
    configs.check(ViT, out, beside if given else path)
    return ViT, out


# ---- the files of a folder -----------------------------------------------------------------------


def weight_file(path):
    """The file with the weights: the path itself, or the first of WEIGHTS in that folder, or the
    index of its parts, WEIGHTS.index.json."""
    for file in (path, *(path / (name + end) for name in WEIGHTS for end in ("", ".index.json"))):
        if file.is_file():
            return file
    raise BadInput(f"{path} has no {' or '.join(WEIGHTS)}: give --model a folder that has one")


def shards(index):
    """{file: the names of its tensors} of an index, in the order of the files' names."""
    where, out = read_json(index, "fetch it again").get("weight_map"), {}
    if not isinstance(where, dict) or not where:
        raise BadInput(f"{index} has no weight_map, {{tensor: file}}: fetch it again")
    for name, file in where.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise BadInput(f"{index} puts {name} into {file!r:.60}, which is no file beside it: "
                           "fetch it again")
        if not os.path.isfile(index.parent / file):
            raise BadInput(f"{index.parent} lacks {file}, which {index.name} names: fetch it, too")
        out.setdefault(index.parent / file, set()).add(name)
    return dict(sorted(out.items()))


def sha256(index):
    """Hex digest of an index's shards: of their digests one after the other."""
    digests = "".join(map(safetensors.sha256, shards(index)))
    return hashlib.sha256(digests.encode()).hexdigest()


def read(file):
    """All tensors of a file, or of the shards of an index, each of which must hold its own."""
    if file.suffix != ".json":
        return safetensors.read(file) if file.suffix == ".safetensors" else read_torch(file)
    out = {}
    for shard, want in shards(file).items():
        found = safetensors.read(shard) if shard.suffix == ".safetensors" else read_torch(shard)
        if odd := sorted(found.keys() ^ want):
            raise BadInput(f"{shard} lacks or has unexpected {len(odd)} tensors by {file.name}: "
                           f"{', '.join(odd[:5])}: fetch both again")
        out |= found
    return out


CONTAINERS = ("model", "state_dict", "model_state_dict", "teacher")         # of a training script


def read_torch(path):
    """All tensors of a file of torch.save (.bin, .pth), or of the part of CONTAINERS that it has,
    with nothing executed (weights_only)."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                           # a damaged pickle may raise anything
        reason = ("it holds code and not only tensors" if "GLOBAL" in str(error)
                  else "it is damaged or cut short")
        raise BadInput(f"{path} cannot be read as tensors ({reason}): fetch it again, "
                       "or take model.safetensors instead") from None
    for key in CONTAINERS:
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not saved or not all(
            isinstance(k, str) and isinstance(v, torch.Tensor) and v.layout is torch.strided
            and v.device.type == "cpu" for k, v in saved.items()):
        raise BadInput(f"{path} holds no dict of tensors by name: give a file of a state_dict")
    return saved
