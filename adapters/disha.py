"""DiSHA: Dimension-Sharding Adaptation. arXiv:2409.15371, the general tiling

    delta[o, i] = D[i mod r1, o mod r2]              one small matrix tiled over the whole weight

Shapes   W0 (out, in) frozen · D (r1, r2), zero at the start     trainable r1 r2, rank <= min
Note     y = W0 x + tile(pool(x) D): inputs with equal i mod r1 are summed, outputs with equal
         o mod r2 share a value. r2 = out is Bone (bone.py).
"""

import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput
from lora import Adapter, check_rank, register


def pool(x, r):
    """Sum of the inputs with equal index mod r: x (..., in) -> (..., r), zero-padded to fit."""
    if missing := -x.shape[-1] % r:                       # F.pad by nothing would copy
        x = F.pad(x, (0, missing))
    return x.unflatten(-1, (-1, r)).sum(-2)


@register
class DiSHA(Adapter):
    """One (rank, columns) matrix tiled over the weight.

    rank     (8)   r1, number of input groups, 1 <= r1 <= min(in, out)
    columns  (8)   r2, number of output groups, 1 <= r2 <= out
    """

    lr = {"off": 3e-3, "layer": 3e-3, "model": 3e-3}

    def __init__(self, base, *, rank=8, columns=8):
        super().__init__(base)
        check_rank(base, rank)
        if not 1 <= columns <= base.out_features:
            raise BadInput(f"columns {columns} does not fit a layer of {base.out_features} "
                           f"outputs: choose --set columns between 1 and {base.out_features}")
        self.D = nn.Parameter(base.weight.new_zeros(rank, columns))

    def groups(self):
        """o mod r2 (out,) of every output and i mod r1 (in,) of every input."""
        return (torch.arange(size, device=self.D.device) % count
                for size, count in zip(self.base.weight.shape, self.D.T.shape))

    def delta_weight(self):
        outputs, inputs = self.groups()
        return self.D[inputs][:, outputs].T

    def forward(self, x):
        outputs, _ = self.groups()
        return self.base(x) + F.linear(pool(x, len(self.D)), self.D.T[outputs])

    def trainable_count(self):
        return self.D.numel()

    def rank_bound(self):
        return min(self.D.shape)
