"""The image encoder, a pre-LN Vision Transformer, and the reader of every checkpoint folder.
arXiv:2010.11929, eq. 1-4; the text encoder is models_text.BERT

    z_0     = [cls; E patch_1; ...; E patch_N] + position                          (B, N+1, D)
    z_next  = Block(z)                                                             (block.py)
    feature = LN(z_L)[:, 0]                                                        (B, D)

Shapes   images (B, C, H, W) in [0, 1] · D width · N = (H/p)(W/p) patches
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import weights
from block import Block
from errors import BadInput, unknown
from models_text import BERT
from tokenizer import WordPiece

BUILT_IN = Path(__file__).parent / "checkpoints"


class ViT(nn.Module):
    """The encoder, images (B, C, H, W) in [0, 1] -> features (B, width).

    Grey pictures are repeated for a three-channel encoder and colour is averaged for a one-channel
    one; pictures of another size are resized to `image`. `mean` and `std` (per channel) are the
    input normalisation of the pretraining.
    """

    kind = "image"

    def __init__(self, *, image=28, patch=7, channels=1, width=192, depth=4, heads=6, hidden=768,
                 eps=1e-6, layer_scale=False, mean=(0.5,), std=(0.5,)):
        super().__init__()
        self.image, self.channels, self.width = image, channels, width
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.cls_token = nn.Parameter(0.2 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.2 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, eps, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images):
        """Features (B, width) of images (B, C, H, W): the last LayerNorm at the class token."""
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        if images.shape[-2:] != (self.image, self.image):
            images = F.interpolate(images, (self.image, self.image), mode="bilinear")
        x = self.patch((images - self.mean) / self.std)                          # (B, D, H/p, W/p)
        x = x.flatten(2).transpose(1, 2)                                         # (B, N, D)
        z = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            z = block(z)
        return self.norm(z[:, 0])


# model_type of a config.json -> input normalisation when the folder does not say
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALF = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
NORMALISATION = {"vit": HALF, "deit": IMAGENET, "dinov2": IMAGENET}
OURS = {"vit_encoder": ViT, "bert_encoder": BERT}


def settings(folder):
    """The class and its constructor arguments from a config.json, ours or Hugging Face's."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        kind = config.pop("model_type")
        if kind in OURS:
            return OURS[kind], config
        if kind not in (*NORMALISATION, "bert"):
            raise unknown("model_type", kind, [*OURS, *NORMALISATION, "bert"])
        if config.get("hidden_act", "gelu") != "gelu" or config.get("use_swiglu_ffn"):
            raise BadInput(f"{path}: only the GELU MLP is supported")
        width = config["hidden_size"]
        out = dict(width=width, depth=config["num_hidden_layers"],
                   heads=config["num_attention_heads"], eps=config.get("layer_norm_eps", 1e-12),
                   hidden=config.get("intermediate_size")
                   or round(width * config.get("mlp_ratio", 4)))
        return (BERT, out | text_settings(config, path)) if kind == "bert" else \
               (ViT, out | image_settings(config, kind, folder))
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
               **NORMALISATION[kind])
    if (extra := folder / "preprocessor_config.json").exists():
        given = json.loads(extra.read_text())
        out |= {k: tuple(given[f"image_{k}"]) for k in ("mean", "std") if f"image_{k}" in given}
    return out


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


def load(name_or_folder, size=None, random_weights=False):
    """A pretrained ViT or BERT in float32 with `name` and `sha256` of its file.

    name_or_folder   a folder of checkpoints/, or any folder with model.safetensors and config.json:
                     ours, Hugging Face ViT or DeiT, DINOv2, BERT (with vocab.txt)
    size             images: pixels, if other than in pretraining; they are resized to it and
                     position embeddings to its grid. Texts: at most this many tokens
    random_weights   keep the architecture, forget the pretraining: seed 0 of PyTorch's own init
    """
    built_in = BUILT_IN / str(name_or_folder)
    folder = built_in if built_in.is_dir() else Path(name_or_folder)
    if not folder.is_dir():
        known = sorted(p.name for p in BUILT_IN.iterdir())
        raise unknown("model", str(name_or_folder), [*known, "or a folder"])
    (cls, config), file = settings(folder), folder / "model.safetensors"
    if not file.exists():
        raise BadInput(f"{folder} has no model.safetensors: give --model a folder that has one")
    words = WordPiece.read(folder) if cls is BERT else None
    if words:
        config |= dict(pad=words.pad, sep=words.sep)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(**config)
    if words:
        model.tokenizer = words
        if (most := max(words.vocab.values())) >= model.word.num_embeddings:
            raise BadInput(f"{folder}: vocab.txt has {most + 1} entries, "
                           f"the model {model.word.num_embeddings}: it is of another checkpoint")
    if not random_weights:
        weights.load_strict(model, weights.our_names(weights.read(file)), file)
    if size is not None:
        resize(model, size)
    model.name = folder.resolve().name
    model.sha256 = "random weights, seed 0" if random_weights else weights.sha256(file)
    return model.eval()


def place(inputs, like):
    """Inputs on the device of `like`, images in its dtype too; token ids stay integers."""
    return inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)
