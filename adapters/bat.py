"""Bat: Bone with the weight as a guide, a full-rank update. arXiv:2409.15371

    delta_qp = (W0_qp + I) D_q          W0 in blocks W0_qp of r x r, out-block q and in-block p

Shapes   W0 (out, in) frozen, r divides both · D (out / r, r, r), zero at the start
         trainable r out;  delta has full rank in general
Cost     D_q differs from block row to block row, so no low-rank shortcut exists: the dense delta is
         built at every step, out * in * r multiplications.
"""

import torch
from torch import nn

from errors import BadInput
from lora import Adapter, check_rank, register


@register
class Bat(Adapter):
    """Every r x r block of W0, plus the identity, times one trained block per block row.

    rank   (8)   block size r, must divide in and out
    """

    lr = {"off": 1e-3, "layer": 1e-3, "model": 1e-3}

    def __init__(self, base, *, rank=8):
        super().__init__(base)
        check_rank(base, rank)
        if base.in_features % rank or base.out_features % rank:
            raise BadInput(f"bat needs a rank that divides inputs and outputs, {rank} does not "
                           f"divide both {base.in_features} and {base.out_features}: "
                           "choose another --rank")
        self.D = nn.Parameter(base.weight.new_zeros(base.out_features // rank, rank, rank))

    def delta_weight(self):
        """(W0_qp + I) D_q in every block, (out, in)."""
        W0, r = self.base.weight, self.D.shape[1]
        blocks = W0.view(len(self.D), r, -1, r).transpose(1, 2)      # (out/r, in/r, r, r)
        eye = torch.eye(r, dtype=self.D.dtype, device=self.D.device)
        return ((blocks + eye) @ self.D[:, None]).transpose(1, 2).reshape(W0.shape)

    def trainable_count(self):
        return self.D.numel()
