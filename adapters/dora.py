"""DoRA: Weight-Decomposed Low-Rank Adaptation. arXiv:2402.09353, eq. 5

    W_eff = diag(m / n) V,   V = W0 + s B A,   n_i = ||V_i||  (row norms)
    m starts at the row norms of W0 and B at 0, so W_eff = W0

Shapes   W0 (out, in) frozen · A (r, in) · B (out, r) · m, n (out,)
         trainable r (in + out) + out
Note     the paper writes columns of an (in, out) matrix: one magnitude per output, here a row.
         n is a constant to the gradient (section 4.3 of the paper) but fresh at every step.
         Its square needs no dense product:
         n^2 = ||W0_i||^2 + 2 s rowsum(B * (W0 A^T)) + s^2 rowsum((B A A^T) * B)
Trap     the scale m / n does not apply to the bias.
"""

import torch.nn.functional as F
from torch import nn

from errors import BadInput
from lora import Adapter, LoRA, register


def row_square(base, name):
    """||W0_i||^2 of every row, (out,); BadInput where a row is zero and has no direction."""
    square = base.weight.detach().square().sum(1)
    if (square == 0).any():
        raise BadInput(f"{name} cannot start from a weight with a zero row (row "
                       f"{int((square == 0).nonzero()[0])} of {tuple(base.weight.shape)}): "
                       "leave that layer out with --targets")
    return square


@register
class DoRA(LoRA):
    """Magnitude and direction of every output row trained apart, the direction by LoRA.

    rank    (8)     inner dimension r, 1 <= r <= min(in, out)
    alpha   (16)    the update of the direction is scaled by alpha / rank
    detach  (True)  no gradient through the norm n; a linearization expands n, too
    """

    lr = {"off": 1e-3, "layer": 6e-3, "model": 6e-3}
    rank_bound = Adapter.rank_bound

    def __init__(self, base, *, rank=8, alpha=16.0, detach=True, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)
        self.detach = detach
        self.register_buffer("square", row_square(base, "dora"))     # ||W0_i||^2, (out,)
        self.m = nn.Parameter(self.square.sqrt())

    def row_scale(self):
        """m / n, (out,)."""
        s, A, B = self.scale, self.A, self.B
        cross, own = (B * (self.base.weight @ A.T)).sum(1), ((B @ (A @ A.T)) * B).sum(1)
        n = (self.square + 2 * s * cross + s * s * own).sqrt()
        return self.m / (n.detach() if self.detach else n)

    def delta_weight(self):
        V = self.base.weight + super().delta_weight()
        return self.row_scale()[:, None] * V - self.base.weight

    def forward(self, x):
        v = F.linear(x, self.base.weight) + self.scale * F.linear(F.linear(x, self.A), self.B)
        y = self.row_scale() * v
        return y if self.base.bias is None else y + self.base.bias

    def trainable_count(self):
        return super().trainable_count() + self.m.numel()

    def param_groups(self, lr, wd):
        return [{"params": [self.A, self.B], "lr": lr, "weight_decay": wd},
                {"params": [self.m], "lr": lr, "weight_decay": 0.0}]
