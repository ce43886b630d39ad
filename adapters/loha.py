"""LoHa: Low-Rank Hadamard Product (FedPara, arXiv:2108.06098; LyCORIS, arXiv:2309.14859)

    W_eff = W0 + s (B1 A1) * (B2 A2),   s = alpha / rank             * entry by entry

Shapes   W0 (out, in) frozen · A1, A2 (r, in) · B1, B2 (out, r)
         trainable 2 r (in + out);  B2 = 0 at the start, so W_eff = W0;  rank(delta) <= r^2
Why      row o of the product is a combination of the r^2 rows A1_i * A2_j: a rank of r^2 for the
         numbers of a LoRA of rank 2 r. At r = 1 it is a LoRA, with B = B1 * B2 and A = A1 * A2.
Differs  the start is that of LyCORIS, B2 = 0, B1 ~ .1 N(0, 1), A1 and A2 ~ N(0, 1). PEFT starts
         with A2 = 0 and smaller factors: learning rates do not carry over.
Cost     delta is built in every step; no thin product gives y unless r^2 < min(in, out).
"""

import torch
from torch import nn

from lora import Adapter, check_rank, register


@register
class LoHa(Adapter):
    """The entry-wise product of two low-rank updates.

    rank   (4)   inner dimension r of both, 1 <= r <= min(in, out)
    alpha  (4)   the update is scaled by alpha / rank
    """

    lr = {"off": 3e-3, "layer": 1e-2, "model": 1e-2}

    def __init__(self, base, *, rank=4, alpha=4.0, generator=None):
        super().__init__(base)
        check_rank(base, rank)
        self.scale, (out_features, in_features) = alpha / rank, base.weight.shape
        normal = lambda *shape: torch.randn(*shape, generator=generator).to(base.weight)
        self.B1 = nn.Parameter(0.1 * normal(out_features, rank))
        self.A1, self.A2 = (nn.Parameter(normal(rank, in_features)) for _ in range(2))
        self.B2 = nn.Parameter(base.weight.new_zeros(out_features, rank))

    def delta_weight(self):
        return self.scale * (self.B1 @ self.A1) * (self.B2 @ self.A2)

    def trainable_count(self):
        return 2 * (self.A1.numel() + self.B1.numel())

    def rank_bound(self):
        return min(len(self.A1) ** 2, *self.base.weight.shape)
