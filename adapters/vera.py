"""VeRA: Vector-based Random Matrix Adaptation. arXiv:2310.11454

    W_eff = W0 + diag(b) B diag(d) A,     A and B random, frozen and shared by all layers

Shapes   W0 (out, in) frozen · A (r, IN), B (OUT, r) sized for the largest layer, of which a layer
         uses A[:, :in] and B[:out] · d (r,) starts at 0.1 · b (out,) starts at 0
         trainable out + r
Note     with b = 0 the first gradient of d is zero and that of b is not.
Cost     at rank 256 the two thin products cost more than the layer itself: over many tokens the
         dense edit is the cheaper path, so the contract's forward stays.
"""

import math

import torch
from torch import nn

from errors import BadInput
from lora import Adapter, register


@register
class VeRA(Adapter):
    """Two trained vectors around one pair of random projections for the whole model.

    rank   (256)   rows of A; may exceed the layer's size, since only b and d are trained
    """

    lr = {"off": 3e-2, "layer": 2e-2, "model": 2e-2}

    def __init__(self, base, *, rank=256, generator=None):
        super().__init__(base)
        if rank < 1:
            raise BadInput(f"rank {rank}: vera needs at least 1, choose another --rank")
        self.d = nn.Parameter(base.weight.new_full((rank,), 0.1))
        self.b = nn.Parameter(base.weight.new_zeros(base.out_features))
        self.share([self], generator)                # alone until inject shares with the others

    @classmethod
    def share(cls, layers, generator):
        """One A and one B for all layers: uniform of variance 2 / fan-in, drawn once."""
        tallest, widest = map(max, zip(*(layer.base.weight.shape for layer in layers)))
        rank = len(layers[0].d)
        for name, shape in (("A", (rank, widest)), ("B", (tallest, rank))):
            uniform = torch.rand(shape, generator=generator) * 2 - 1
            shared = (uniform * math.sqrt(6 / shape[1])).to(layers[0].base.weight)
            for layer in layers:
                layer.register_buffer(name, shared)

    def delta_weight(self):
        out_features, in_features = self.base.weight.shape
        B, A = self.B[:out_features], self.A[:, :in_features]
        return self.b[:, None] * ((B * self.d) @ A)

    def trainable_count(self):
        return len(self.b) + len(self.d)

    def rank_bound(self):
        return min(len(self.d), *self.base.weight.shape)
