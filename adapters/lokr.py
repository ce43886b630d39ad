"""LoKr: Low-Rank Kronecker Product (LyCORIS). arXiv:2309.14859

    W_eff = W0 + s kron(C, D)        delta[i b + k, j d + l] = s C[i, j] D[k, l]
    y = x W0^T + b0 + s flat(C X D^T),   X (c, d) is x, row by row

Shapes   W0 (out, in) frozen, out = a b, in = c d with a <= b, c <= d near the square root
         C (a, c) · D (b, d), or D = D1 D2, D1 (b, r), D2 (r, d), if r < max(b, d) / 2
         trainable a c + b d, or a c + r (b + d);  D (or D2) = 0 at the start
         rank(delta) = rank(C) rank(D)
Note     s = alpha / rank if D is a product; a full D has no rank, and s = 1.
Differs  C is never a product. PEFT starts with C = 0 and keeps alpha / rank for a full D.
Trap     (t C, D / t) is the same update: do not compare the factors of two runs.
"""

import math

import torch
from torch import nn

from errors import BadInput
from lora import Adapter, register


def split(n, factor):
    """n as (small, large); small is `factor` if that divides n, else the largest divisor of n up
    to `factor` and sqrt(n). Factor 0 is no limit; a prime n is (1, n)."""
    if factor and n % factor == 0:
        return min(factor, n // factor), max(factor, n // factor)
    most = min(factor or n, math.isqrt(n))
    small = max(m for m in range(1, most + 1) if n % m == 0)
    return small, n // small


@register
class LoKr(Adapter):
    """A Kronecker product of two small matrices.

    rank    (4)   inner dimension r of D; D is full if r >= max(b, d) / 2
    alpha   (4)   the update is scaled by alpha / rank, by 1 if D is full
    factor  (0)   size of C: out and in are split into (factor, rest); 0 is near the square root
    """

    lr = {"off": 1e-2, "layer": 0.1, "model": 0.1}

    def __init__(self, base, *, rank=4, alpha=4.0, factor=0, generator=None):
        super().__init__(base)
        if rank < 1:
            raise BadInput(f"rank {rank}: lokr needs at least 1, choose another --rank")
        (a, b), (c, d) = (split(n, factor) for n in base.weight.shape)
        uniform = lambda rows, columns: nn.Parameter(
            ((torch.rand(rows, columns, generator=generator) * 2 - 1) / math.sqrt(columns)
             ).to(base.weight))
        zero = lambda rows, columns: nn.Parameter(base.weight.new_zeros(rows, columns))
        self.C, self.full = uniform(a, c), rank >= max(b, d) / 2
        self.scale = 1.0 if self.full else alpha / rank
        if self.full:
            self.D = zero(b, d)
        else:
            self.D1, self.D2 = uniform(b, rank), zero(rank, d)

    def right(self):
        """D (b, d)."""
        return self.D if self.full else self.D1 @ self.D2

    def delta_weight(self):
        return self.scale * torch.kron(self.C, self.right())

    def forward(self, x):
        D = self.right()
        X = x.unflatten(-1, (self.C.shape[1], D.shape[1]))                  # (..., c, d)
        return self.base(x) + self.scale * (self.C @ (X @ D.T)).flatten(-2)

    def trainable_count(self):
        (a, c), (b, d) = self.C.shape, self.right().shape
        return a * c + (b * d if self.full else self.D1.shape[1] * (b + d))

    def rank_bound(self):
        inner = () if self.full else (self.D1.shape[1],)
        return min(self.C.shape) * min(*self.right().shape, *inner)
