"""The transformer block of ViT, BERT and GPT. arXiv:1706.03762, 2010.11929, eq. 2 and 3

    attention   softmax(q k^T / sqrt(d) + mask) v in every head, then out
    Block       z' = z + ls1 * attention(LN1(z))         z_next = z' + ls2 * fc2(act(fc1(LN2(z'))))
    PostBlock   z' = LN1(z + attention(z))               z_next = LN2(z' + fc2(act(fc1(z'))))

Shapes   z (B, T, D) · D width · h heads of d = D/h · mask (B, 1, 1, T), 0 or very negative
Differs  q, k, v, out, fc1, fc2 are six separate nn.Linear per block, the places where adapters go.
         Attention is written out: the fused kernel behind F.scaled_dot_product_attention has no
         forward-mode derivative on CPU: it raises under torch.func.jvp and has no rule in dual.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput

# "quick_gelu" is CLIP's approximation of the GELU
ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}


class Block(nn.Module):
    """One block with the LayerNorms before each part, (B, T, D) -> (B, T, D).

    layer_scale   a trained factor per channel after each part, arXiv:2103.17239
    """

    def __init__(self, width, heads, hidden, eps, layer_scale=False, activation="gelu"):
        super().__init__()
        if width % heads:
            raise BadInput(f"a width of {width} cannot be shared by {heads} heads: "
                           "the configuration is not of a published model")
        self.heads, self.activation = heads, activation
        self.norm1 = nn.LayerNorm(width, eps)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm2 = nn.LayerNorm(width, eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ls1, self.ls2 = (nn.Parameter(torch.ones(width)) if layer_scale else None
                              for _ in range(2))

    def attention(self, x, mask=None):
        """Every token's mixture of the tokens that the mask leaves."""
        B, T, D = x.shape
        split = lambda t: t.view(B, T, self.heads, -1).transpose(1, 2)           # (B, h, T, d)
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        scores = q @ k.transpose(2, 3) / math.sqrt(D // self.heads)              # (B, h, T, T)
        if mask is not None:
            scores = scores + mask
        mixed = scores.softmax(-1) @ v                                           # (B, h, T, d)
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))

    def mlp(self, x):
        """Every token by itself."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))

    def forward(self, z, mask=None):
        a = self.attention(self.norm1(z), mask)
        z = z + (a if self.ls1 is None else self.ls1 * a)
        m = self.mlp(self.norm2(z))
        return z + (m if self.ls2 is None else self.ls2 * m)


class PostBlock(Block):
    """The same parts with the LayerNorms after each sum, as in the original and in BERT."""

    def forward(self, z, mask=None):
        z = self.norm1(z + self.attention(z, mask))
        return self.norm2(z + self.mlp(z))
