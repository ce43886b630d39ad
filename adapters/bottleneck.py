"""Bottleneck adapter: Parameter-Efficient Transfer Learning for NLP. arXiv:1902.00751

    h = x W0^T + b0,   y = h + U gelu(D h + d) + u                    per token, h and y columns

Shapes   W0 (out, in) frozen · D (m, out), d (m,) · U (out, m), u (out,)
         trainable 2 m out + m + out;  U = 0 and u = 0 at the start, so y = h
Note     on out and fc2 this is the paper's place: after attention and after the MLP, before the
         sum with the residual stream. LayerScale, where a model has it, comes after the adapter.
         U = 0 at the start, so the first gradient of D and d is zero.
Differs  the paper starts near the identity (both matrices normal, deviation .01), this one at it:
         U = 0, D uniform in +-1/sqrt(out). LayerNorms stay frozen; the paper trains them.
Trap     the change depends on h: no weight W_eff does the same, and there is no delta_weight.
         Bottlenecks merge by their parameters, in adapter space.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput
from lora import Adapter, NotMergeable, register


@register
class Bottleneck(Adapter):
    """A small MLP with a skip connection behind the layer; no edit of its weight.

    bottleneck   (32)   m, the width of the MLP, at least 1
    """

    lr = {"off": 1e-3, "layer": 3e-2, "model": 3e-2}
    targets = "out,fc2"
    weight_edit = False

    def __init__(self, base, *, bottleneck=32, generator=None):
        super().__init__(base)
        if bottleneck < 1:
            raise BadInput(f"bottleneck {bottleneck}: choose --set bottleneck of at least 1")
        width, new = base.out_features, base.weight.new_zeros
        D = torch.rand(bottleneck, width, generator=generator) * 2 - 1
        self.D = nn.Parameter((D / math.sqrt(width)).to(base.weight))
        self.d = nn.Parameter(new(bottleneck))
        self.U, self.u = nn.Parameter(new(width, bottleneck)), nn.Parameter(new(width))
        self.activation = F.gelu

    def delta_weight(self):
        raise NotMergeable("a bottleneck acts on the output of a layer and is not an edit of its "
                           "weight: merge its parameters, --space adapter")

    def forward(self, x):
        h = self.base(x)
        return h + F.linear(self.activation(F.linear(h, self.D, self.d)), self.U, self.u)

    def trainable_count(self):
        m, width = self.D.shape
        return 2 * m * width + m + width

    def rank_bound(self):
        """Of dy/dh - I = U diag(gelu'(D h + d)) D."""
        return min(self.D.shape)
