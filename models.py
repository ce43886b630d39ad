"""The encoder: a pre-LN Vision Transformer. arXiv:2010.11929, eq. 1-4; LayerScale: arXiv:2103.17239

    z_0     = [cls; E patch_1; ...; E patch_N] + position                          (B, N+1, D)
    z'      = z + ls1 * out(attention(q, k, v)),   q, k, v from LN(z)
    z_next  = z' + ls2 * fc2(gelu(fc1(LN(z'))))
    feature = LN(z_L)[:, 0]                                                        (B, D)

Shapes   images (B, C, H, W) in [0, 1] · D width · h heads of d = D/h · N = (H/p)(W/p) patches
Differs  q, k, v, out, fc1, fc2 are six separate nn.Linear per block, the places where adapters go.
         Attention is written out: the fused kernel behind F.scaled_dot_product_attention has no
         forward-mode derivative on CPU, so it raises under torch.func.jvp (see linearize.py).
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import weights
from errors import BadInput, unknown

BUILT_IN = Path(__file__).parent / "checkpoints"


class Block(nn.Module):
    """One transformer block, (B, T, D) -> (B, T, D); eq. 2 and 3."""

    def __init__(self, width, heads, hidden, eps, layer_scale):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ls1 = nn.Parameter(torch.ones(width)) if layer_scale else None
        self.ls2 = nn.Parameter(torch.ones(width)) if layer_scale else None

    def attention(self, x):
        """softmax(q k^T / sqrt(d)) v in every head, then the output projection."""
        B, T, D = x.shape
        split = lambda t: t.view(B, T, self.heads, -1).transpose(1, 2)           # (B, h, T, d)
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        scores = q @ k.transpose(2, 3) / math.sqrt(D // self.heads)              # (B, h, T, T)
        mixed = scores.softmax(-1) @ v                                           # (B, h, T, d)
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))

    def forward(self, z):
        a = self.attention(self.norm1(z))
        z = z + (a if self.ls1 is None else self.ls1 * a)
        m = self.fc2(F.gelu(self.fc1(self.norm2(z))))
        return z + (m if self.ls2 is None else self.ls2 * m)


class ViT(nn.Module):
    """The encoder, images (B, C, H, W) in [0, 1] -> features (B, width).

    Grey pictures are repeated for a three-channel encoder and colour is averaged for a one-channel
    one; pictures of another size are resized to `image`. `mean` and `std` (per channel) are the
    input normalisation of the pretraining.
    """

    def __init__(self, *, image=28, patch=7, channels=1, width=192, depth=4, heads=6, hidden=768,
                 eps=1e-6, layer_scale=False, mean=(0.5,), std=(0.5,)):
        super().__init__()
        self.image, self.channels = image, channels
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


def settings(folder):
    """Constructor arguments of ViT from a folder's config.json (ours or Hugging Face's)."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
        kind = config["model_type"]
        if kind == "vit_encoder":
            return {k: v for k, v in config.items() if k != "model_type"}
        if kind not in NORMALISATION:
            raise unknown("model_type", kind, ["vit_encoder", *NORMALISATION])
        if config.get("hidden_act", "gelu") != "gelu" or config.get("use_swiglu_ffn"):
            raise BadInput(f"{path}: only the GELU MLP is supported")
        width = config["hidden_size"]
        hidden = config.get("intermediate_size") or round(width * config.get("mlp_ratio", 4))
        out = dict(image=config["image_size"], patch=config["patch_size"], width=width,
                   channels=config.get("num_channels", 3), depth=config["num_hidden_layers"],
                   heads=config["num_attention_heads"], eps=config.get("layer_norm_eps", 1e-12),
                   hidden=hidden, layer_scale=kind == "dinov2", **NORMALISATION[kind])
        if (extra := folder / "preprocessor_config.json").exists():
            given = json.loads(extra.read_text())
            out |= {k: tuple(given[f"image_{k}"]) for k in ("mean", "std") if f"image_{k}" in given}
        return out
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise BadInput(f"{path} cannot be used ({type(error).__name__}: {error}): "
                       "give --model a folder with model.safetensors and config.json") from None


def resize_position(position, grid):
    """Position embeddings (1, 1 + g*g, D) for another grid of patches, bicubic; cls is kept."""
    cls, patches = position[:, :1], position[:, 1:]
    old = math.isqrt(patches.shape[1])
    square = patches.transpose(1, 2).reshape(1, -1, old, old)                    # (1, D, g, g)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, square.flatten(2).transpose(1, 2)], 1)


def load(name_or_folder, image=None, random_weights=False):
    """A pretrained ViT in float32 with `name` and `sha256` of its file.

    name_or_folder   a folder of checkpoints/, or any folder with model.safetensors and config.json:
                     ours, Hugging Face ViT or DeiT, DINOv2
    image            input size in pixels if it differs from the pretraining's; images are resized
                     to it and position embeddings to its grid
    random_weights   keep the architecture, forget the pretraining: seed 0 of PyTorch's own init
    """
    built_in = BUILT_IN / str(name_or_folder)
    folder = built_in if built_in.is_dir() else Path(name_or_folder)
    if not folder.is_dir():
        known = sorted(p.name for p in BUILT_IN.iterdir())
        raise unknown("model", str(name_or_folder), [*known, "or a folder"])
    config, file = settings(folder), folder / "model.safetensors"
    if not file.exists():
        raise BadInput(f"{folder} has no model.safetensors: give --model a folder that has one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViT(**config)
    if not random_weights:
        weights.load_strict(model, weights.our_names(weights.read(file)), file)
    if image is not None and image != model.image:
        if image % model.patch.stride[0]:
            raise BadInput(f"image size {image} is no multiple of "
                           f"the patch size {model.patch.stride[0]}")
        model.position = nn.Parameter(
            resize_position(model.position.detach(), image // model.patch.stride[0]))
        model.image = image
    model.name = folder.resolve().name
    model.sha256 = "random weights, seed 0" if random_weights else weights.sha256(file)
    return model.eval()
