"""Pretrained encoders by name, folder or file: `encoders.load("vit")`.

    ours        a folder with model.safetensors and config.json: "model_type", then the keywords of
                the class; a text model has vocab.txt as well
    published   Hugging Face's folders, timm's files and what is on the network: published.py,
                and what a config.json says: configs.py
"""

from functools import partial
from pathlib import Path

import torch

from encoders import safetensors
from encoders.vit import ViT                                                  # noqa: F401
from errors import BadInput, read_json, unknown

BUILT_IN = Path(__file__).parents[1] / "checkpoints"


def find(name_or_folder):
    """The folder or file of a model: built in, on this machine, or published and then fetched."""
    name, given = str(name_or_folder), Path(name_or_folder)
    built_in = sorted(p.name for p in BUILT_IN.iterdir() if p.is_dir())
    if name in built_in:                                       # ./vit is a path and no name
        return BUILT_IN / name
    if given.is_dir() or given.is_file():
        return given
    from encoders import published
    if name in published.CHECKPOINTS:
        return published.checkpoint(name)
    raise unknown("model", name, [*built_in, *published.CHECKPOINTS, "or a folder or file"])


def settings(path):
    """The class of a checkpoint and the keywords of its constructor."""
    if path.is_file():
        from encoders import published
        return published.settings_of_file(path)
    from encoders import configs
    remedy = "give --model a folder with model.safetensors and config.json"
    return configs.settings(read_json(path / "config.json", remedy), path)


def kind(name_or_folder):
    """"image", "text" or "continuation" (a GPT): what it is for, without reading its weights."""
    path = find(name_or_folder)
    return "image" if path.is_file() else settings(path)[0].kind


def encoding(name_or_folder, size=None):
    """texts -> ids (n, T) for a model, without reading its weights; None for an image model."""
    if kind(name_or_folder) == "image":
        return None
    from encoders.tokenizer import WordPiece
    path = find(name_or_folder)
    most = settings(path)[1].get("positions", 512)
    return partial(WordPiece.read(path).encode, limit=min(size or most, most))


def load(name_or_folder, size=None, random_weights=False):
    """A pretrained ViT, BERT or GPT in float32 with `name` and `sha256` of its file.

    name_or_folder   a name of checkpoints/ or of published.CHECKPOINTS; a folder of ours or of
                     Hugging Face (ViT, DeiT, DINOv2, CLIP's vision half, BERT) with its weights in
                     model.safetensors or pytorch_model.bin; a .pth file of DeiT or DINOv2
    size             of images in pixels, if other than in pretraining; of texts at most, in tokens
    random_weights   keep the architecture, forget the pretraining: seed 0 of PyTorch's own init
    """
    path = find(name_or_folder)
    cls, config = settings(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(**config)
    if model.kind != "image":
        model.read_vocabulary(path)
    file = path / "model.safetensors"
    if not file.exists():
        from encoders import published
        file = published.weight_file(path)
    if not random_weights:
        fill(model, file)
    if size is not None:
        model.resize(size)
    model.name = path.resolve().stem if path.is_file() else path.resolve().name
    digest = published.sha256 if file.suffix == ".json" else safetensors.sha256
    model.sha256 = "random weights, seed 0" if random_weights else digest(file)
    return model.eval()


def fill(model, file):
    """Copy the tensors of a file into a model; a missing, unexpected or misshapen one raises."""
    if file.suffix == ".safetensors":
        tensors = safetensors.read(file)
    else:
        from encoders import published
        tensors = published.read(file)
    want = model.state_dict()
    if tensors.keys() != want.keys():
        from encoders import names
        tensors = names.ours(tensors, file)
    for problem, odd in (("lacks", want.keys() - tensors.keys()),
                         ("has unexpected", tensors.keys() - want.keys())):
        if odd:
            raise BadInput(f"{file} {problem} {len(odd)} tensors: {', '.join(sorted(odd)[:5])}: "
                           "it is not the model of its config.json")
    for name, tensor in tensors.items():
        if tensor.dtype not in safetensors.FLOATS or not tensor.isfinite().all():
            raise BadInput(f"{file}: tensor {name} is {tensor.dtype} or has NaN or infinity: only "
                           "finite floating-point weights can be used")
        if tensor.shape != want[name].shape:
            raise BadInput(f"{file}: tensor {name} has shape {tuple(tensor.shape)}, not "
                           f"{tuple(want[name].shape)}: it is not the model of its config.json")
    model.load_state_dict({k: v.to(want[k].dtype) for k, v in tensors.items()})
