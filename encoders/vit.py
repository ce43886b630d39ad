"""The image encoder: a pre-LN Vision Transformer. arXiv:2010.11929, eq. 1-4

    z_0     = [cls; E patch_1; ...; E patch_N] + position                          (B, N+1, D)
    z_next  = Block(z)                                                             (block.py)
    feature = LN(z_L)[:, 0]                                                        (B, D)

Shapes   images (B, C, H, W) in [0, 1] · D width · N = (H/p)(W/p) patches
CLIP     arXiv:2103.00020: LN(z_0) goes in, E has no bias, quick GELU. Its projection to the space
         of the texts is not used: the feature is what it projects.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from encoders.block import Block
from errors import BadInput


class ViT(nn.Module):
    """The encoder, images (B, C, H, W) in [0, 1] -> features (B, width).

    It repeats grey pictures if it has three channels, averages colours if it has one, and resizes
    pictures of another size to `image`. `mean` and `std` (per channel) are the input normalisation
    of the pretraining; `clip` makes CLIP's two changes of the input.
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
            images = F.interpolate(images, 2 * [self.image], mode="bilinear", antialias=True)
        x = self.patch((images - self.mean) / self.std)                          # (B, D, H/p, W/p)
        x = x.flatten(2).transpose(1, 2)                                         # (B, N, D)
        z = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.position
        z = self.pre_norm(z)
        for block in self.blocks:
            z = block(z)
        return self.norm(z[:, 0])

    def resize(self, size):
        """Take images of `size` pixels: bicubic position embeddings for the new grid of patches."""
        patch = self.patch.stride[0]
        if size == self.image:
            return
        if size % patch:
            raise BadInput(f"image size {size} is no multiple of the patch size {patch}")
        cls, square = self.position[:, :1], self.position[:, 1:]                 # (1, g g, D)
        old, new = math.isqrt(square.shape[1]), size // patch
        square = square.transpose(1, 2).reshape(1, -1, old, old)                 # (1, D, g, g)
        square = F.interpolate(square, (new, new), mode="bicubic", align_corners=False)
        position = torch.cat([cls, square.flatten(2).transpose(1, 2)], 1)
        self.position, self.image = nn.Parameter(position.detach()), size
