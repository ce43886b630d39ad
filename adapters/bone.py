"""Bone: Block-Affine Adaptation, DiSHA with one column per output. arXiv:2409.15371

    delta[o, i] = D[i mod r, o]           layout "strided", what the released code computes
    delta[o, i] = D[i div (in / r), o]    layout "contiguous", r neighbouring groups of inputs

Shapes   W0 (out, in) frozen · D (r, out), zero at the start           trainable r out, rank <= r
Note     LoRA with B = D^T and a frozen A of zeros and ones, A[j, i] = 1 where i belongs to group j.
         A A^T = (in / r) I: the pooled input is larger than LoRA's, so the learning rate is lower.
"""

import torch
from torch import nn

from adapters.disha import pool
from errors import BadInput
from lora import Adapter, check_rank, register


@register
class Bone(Adapter):
    """Inputs summed in r groups, then one trained row per group.

    rank    (8)        number of input groups, 1 <= r <= min(in, out)
    layout  (strided)  "strided": i mod r, any size; "contiguous": r must divide in
    """

    lr = {"off": 1e-3, "layer": 1e-3, "model": 1e-3}

    def __init__(self, base, *, rank=8, layout="strided"):
        super().__init__(base)
        check_rank(base, rank)
        if layout not in ("strided", "contiguous"):
            raise BadInput(f"unknown layout {layout!r}: choose strided or contiguous")
        if layout == "contiguous" and base.in_features % rank:
            raise BadInput(f"layout contiguous needs a rank that divides the inputs, {rank} does "
                           f"not divide {base.in_features}: use layout strided or another --rank")
        self.layout = layout
        self.D = nn.Parameter(base.weight.new_zeros(rank, base.out_features))

    def delta_weight(self):
        i, r = torch.arange(self.base.in_features, device=self.D.device), len(self.D)
        group = i % r if self.layout == "strided" else i // (len(i) // r)
        return self.D[group].T

    def forward(self, x):
        r = len(self.D)
        z = pool(x, r) if self.layout == "strided" else x.unflatten(-1, (r, -1)).sum(-1)
        return self.base(x) + z @ self.D                             # z (..., r)

    def trainable_count(self):
        return self.D.numel()

    def rank_bound(self):
        return len(self.D)
