"""DVoRA: DoRA's magnitude over VeRA's direction. arXiv:2402.09353

    W_eff = diag(m / n) V,   V = W0 + diag(b) B diag(d) A,   n_i = ||V_i||

Shapes   W0 (out, in) frozen · A (r, IN), B (OUT, r) shared as in vera.py · m, n, b (out,)
         d (r,) · trainable 2 out + r;  m starts at the row norms of W0 and b at 0, so W_eff = W0
Note     n is a constant to the gradient, as in dora.py. With L = diag(b) B diag(d) and R = A:
         n^2 = ||W0_i||^2 + 2 rowsum(L * (W0 R^T)) + rowsum((L R R^T) * L)
"""

import torch.nn.functional as F
from torch import nn

from adapters.dora import row_square
from adapters.vera import VeRA
from lora import register


@register
class DVoRA(VeRA):
    """Magnitude and direction trained apart, the direction by VeRA.

    rank    (256)   rows of the shared A
    detach  (True)  no gradient through the norm n
    """

    lr = {"off": 1e-2, "layer": 1e-2, "model": 1e-2}

    def __init__(self, base, *, rank=256, detach=True, generator=None):
        super().__init__(base, rank=rank, generator=generator)
        self.detach = detach
        self.register_buffer("square", row_square(base, "dvora"))            # (out,)
        self.m = nn.Parameter(self.square.sqrt())

    def row_scale(self):
        """m / n, (out,)."""
        left, right = self.factors()
        cross = (left * (self.base.weight @ right.T)).sum(1)
        own = ((left @ (right @ right.T)) * left).sum(1)
        n = (self.square + 2 * cross + own).sqrt()
        return self.m / (n.detach() if self.detach else n)

    def delta_weight(self):
        V = self.base.weight + super().delta_weight()
        return self.row_scale()[:, None] * V - self.base.weight

    def forward(self, x):
        z = self.d * F.linear(x, self.A[:, :self.base.in_features])          # (..., r)
        v = F.linear(x, self.base.weight) + self.b * F.linear(z, self.B[:self.base.out_features])
        y = self.row_scale() * v
        return y if self.base.bias is None else y + self.base.bias

    def trainable_count(self):
        return super().trainable_count() + len(self.m)

    def rank_bound(self):
        return min(self.base.weight.shape)

    def param_groups(self, lr, wd):
        return [{"params": [self.b, self.d], "lr": lr, "weight_decay": wd},
                {"params": [self.m], "lr": lr, "weight_decay": 0.0}]
