"""The image encoder, a pre-LN Vision Transformer, and the reader of every checkpoint folder.
arXiv:2010.11929, eq. 1-4; the text encoder is models_text.BERT

    z_0     = [cls; E patch_1; ...; E patch_N] + position                          (B, N+1, D)
    z_next  = Block(z)                                                             (block.py)
    feature = LN(z_L)[:, 0]                                                        (B, D)

Shapes   images (B, C, H, W) in [0, 1] · D width · N = (H/p)(W/p) patches
CLIP     arXiv:2103.00020: LN(z_0) goes in, E has no bias, quick GELU. Its projection to the space
         of the texts is not used: the feature is what it projects.
"""

import json
import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tasks import downloads
from encoders import safetensors
from encoders.block import ACTIVATIONS, Block
from errors import BadInput, unknown
from encoders.bert import BERT
from encoders.tokenizer import WordPiece

BUILT_IN = Path(__file__).parents[1] / "checkpoints"


class ViT(nn.Module):
    """The encoder, images (B, C, H, W) in [0, 1] -> features (B, width).

    Grey pictures are repeated for a three-channel encoder and colour is averaged for a one-channel
    one; pictures of another size are resized to `image`. `mean` and `std` (per channel) are the
    input normalisation of the pretraining; `clip` makes CLIP's two changes of the input.
    """

    kind, encode = "image", None             # an image is an input as it is

    def __init__(self, *, image=28, patch=7, channels=1, width=192, depth=4, heads=6, hidden=768,
                 eps=1e-6, layer_scale=False, activation="gelu", clip=False,
                 mean=(0.5,), std=(0.5,)):
        super().__init__()
        self.image, self.channels, self.width = image, channels, width
        self.patch = nn.Conv2d(channels, width, patch, patch, bias=not clip)
        self.cls_token = nn.Parameter(0.2 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.2 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.pre_norm = nn.LayerNorm(width, eps) if clip else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, eps, layer_scale, activation) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def tokens(self, images):
        """Which tokens (B, N+1) are real: all, an image has no padding."""
        return images.new_ones(len(images), self.position.shape[1], dtype=torch.bool)

    def forward(self, images):
        """Features (B, width) of images (B, C, H, W): the last LayerNorm at the class token."""
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if images.shape[-2:] != (self.image, self.image):
            images = F.interpolate(images, (self.image, self.image), mode="bilinear")
        x = self.patch((images - self.mean) / self.std)                          # (B, D, H/p, W/p)
        x = x.flatten(2).transpose(1, 2)                                         # (B, N, D)
        z = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.position
        z = self.pre_norm(z)
        for block in self.blocks:
            z = block(z)
        return self.norm(z[:, 0])


# model_type of a config.json -> input normalisation when the folder does not say
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
NORMALISATION = {"vit": HALF, "deit": IMAGENET, "dinov2": IMAGENET, "clip": CLIP}
OURS = {"vit_encoder": ViT, "bert_encoder": BERT}
CLIP_DEFAULTS = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, image_size=224,
                     num_attention_heads=12, patch_size=32, hidden_act="quick_gelu",
                     layer_norm_eps=1e-5)        # a published config may leave out what is usual


def settings(folder):
    """The class and its constructor arguments from a config.json, ours or Hugging Face's."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        kind = config.pop("model_type", "bert" if "type_vocab_size" in config else None)
        if kind in OURS:
            return OURS[kind], config
        if kind in ("clip", "clip_vision_model"):
            kind, config = "clip", CLIP_DEFAULTS | config.get("vision_config", config)
        if kind not in (*NORMALISATION, "bert"):
            raise unknown("model_type", kind, [*OURS, *NORMALISATION, "bert"])
        activation = config.get("hidden_act", "gelu")
        if activation not in (ACTIVATIONS if kind == "clip" else ("gelu",)) \
                or config.get("use_swiglu_ffn"):
            raise BadInput(f"{path}: only the GELU MLP is supported")
        width = config["hidden_size"]
        out = dict(width=width, depth=config["num_hidden_layers"],
                   heads=config["num_attention_heads"], eps=config.get("layer_norm_eps", 1e-12),
                   hidden=config.get("intermediate_size")
                   or round(width * config.get("mlp_ratio", 4)))
        if kind == "bert":
            return BERT, out | text_settings(config, path)
        return ViT, out | image_settings(config, kind, folder) | dict(activation=activation)
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise BadInput(f"{path} cannot be used ({type(error).__name__}: {error}): "
                       "give --model a folder with model.safetensors and config.json") from None


def text_settings(config, path):
    """What only a text model has."""
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise BadInput(f"{path}: only absolute position embeddings are supported")
    return dict(vocab=config["vocab_size"], positions=config["max_position_embeddings"],
                types=config.get("type_vocab_size", 2))


def image_settings(config, kind, folder):
    """What only an image model has; preprocessor_config.json may name the normalisation."""
    out = dict(image=config["image_size"], patch=config["patch_size"],
               channels=config.get("num_channels", 3), layer_scale=kind == "dinov2",
               clip=kind == "clip", **NORMALISATION[kind])
    if (extra := folder / "preprocessor_config.json").exists():
        given = json.loads(extra.read_text())
        out |= {k: tuple(given[f"image_{k}"]) for k in ("mean", "std") if f"image_{k}" in given}
    return out


def settings_of_file(tensors, path):
    """The same for one file under timm's names, which has no config.json: from the shapes.

    Heads of 64, as in every published ViT of that family; ImageNet's normalisation (DeiT, DINOv2).
    """
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


def resize_position(position, grid):
    """Position embeddings (1, 1 + g*g, D) for another grid of patches, bicubic; cls is kept."""
    cls, patches = position[:, :1], position[:, 1:]
    old = math.isqrt(patches.shape[1])
    square = patches.transpose(1, 2).reshape(1, -1, old, old)                    # (1, D, g, g)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, square.flatten(2).transpose(1, 2)], 1)


def resize(model, size):
    """Make a model take images of another size, or texts of at most `size` tokens."""
    if model.kind == "text":
        if not 4 <= size <= model.limit:
            raise BadInput(f"size {size}: this text model takes 4 to {model.limit} tokens")
        model.limit = size
    elif size != model.image:
        if size % model.patch.stride[0]:
            raise BadInput(f"image size {size} is no multiple of "
                           f"the patch size {model.patch.stride[0]}")
        model.position = nn.Parameter(
            resize_position(model.position.detach(), size // model.patch.stride[0]))
        model.image = size


def find(name_or_folder):
    """The folder or file of a model: built in, on this machine, or published and fetched."""
    name, given = str(name_or_folder), Path(name_or_folder)
    if (BUILT_IN / name).is_dir():
        return BUILT_IN / name
    if given.is_dir() or given.is_file():
        return given
    if name in downloads.CHECKPOINTS:
        return downloads.checkpoint(name)
    known = sorted(p.name for p in BUILT_IN.iterdir())
    raise unknown("model", name, [*known, *downloads.CHECKPOINTS, "or a folder or file"])


def kind(name_or_folder):
    """"image" or "text", from config.json alone."""
    path = find(name_or_folder)
    return "image" if path.is_file() else settings(path)[0].kind


def encoding(name_or_folder, size=None):
    """What makes ids (n, T) of texts for a model, without its weights; None for an image model."""
    if kind(name_or_folder) == "image":
        return None
    folder = find(name_or_folder)
    most = settings(folder)[1].get("positions", 512)
    return partial(WordPiece.read(folder).encode, limit=min(size or most, most))


def weight_file(folder):
    """The tensors of a checkpoint folder: safetensors, else PyTorch's own format."""
    for name in downloads.WEIGHTS:
        if (folder / name).exists():
            return folder / name
    raise BadInput(f"{folder} has no {' or '.join(downloads.WEIGHTS)}: "
                   "give --model a folder that has one")


def load(name_or_folder, size=None, random_weights=False):
    """A pretrained ViT or BERT in float32 with `name` and `sha256` of its file.

    name_or_folder   a name of checkpoints/ or of downloads.CHECKPOINTS; a folder with config.json
                     and model.safetensors or pytorch_model.bin: ours, Hugging Face ViT, DINOv2,
                     CLIP (its vision half), BERT (with vocab.txt); a .pth file of DeiT or DINOv2
    size             images: pixels, if other than in pretraining; they are resized to it and
                     position embeddings to its grid. Texts: at most this many tokens
    random_weights   keep the architecture, forget the pretraining: seed 0 of PyTorch's own init
    """
    path = find(name_or_folder)
    if path.is_file():
        file, tensors, words = path, safetensors.read(path), None
        cls, config = settings_of_file(tensors, path)
    else:
        (cls, config), file = settings(path), weight_file(path)
        tensors = None if random_weights else safetensors.read(file)
        words = WordPiece.read(path) if cls is BERT else None
    if words:
        config |= dict(pad=words.pad, sep=words.sep)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = cls(**config)
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{path}: its config.json describes no model ({error})") from None
    if words:
        model.tokenizer = words
        if (most := max(words.vocab.values())) >= model.word.num_embeddings:
            raise BadInput(f"{path}: vocab.txt has {most + 1} entries, "
                           f"the model {model.word.num_embeddings}: it is of another checkpoint")
    if not random_weights:
        safetensors.load_strict(model, safetensors.our_names(tensors, file), file)
    if size is not None:
        resize(model, size)
    model.name = path.resolve().stem if path.is_file() else path.resolve().name
    model.sha256 = "random weights, seed 0" if random_weights else safetensors.sha256(file)
    return model.eval()


def place(inputs, like):
    """Inputs on the device of `like`, images in its dtype too; token ids stay integers."""
    return inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)
