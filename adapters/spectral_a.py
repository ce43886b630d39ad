"""Spectral Adapter (additive): Fine-Tuning in Spectral Space. arXiv:2405.13952

    W0 = U S V^T,   W_eff = W0 with (U_r + A_U) S_r (V_r + A_V)^T in place of U_r S_r V_r^T
    delta = A_U S_r (V_r + A_V)^T + U_r S_r A_V^T

Shapes   W0 (out, in) frozen · U_r, A_U (out, r) · V_r, A_V (in, r) · S_r (r,)
         trainable r (in + out), zero at the start;  rank(delta) <= 2r
Note     W0 is not taken apart: the sum above is all that changes, so delta is pure.
Trap     gradients carry a factor S_r: a smaller learning rate than LoRA's.
"""

import torch
from torch import nn

from adapters.pissa import svd
from lora import Adapter, check_rank, register


@register
class SpectralA(Adapter):
    """Displacements of the top r singular vectors.

    rank   (8)   number of singular pairs, 1 <= r <= min(in, out)
    """

    lr = {"off": 3e-4, "layer": 1e-3, "model": 1e-3}

    def __init__(self, base, *, rank=8):
        super().__init__(base)
        check_rank(base, rank)
        for name, part in zip("USV", svd(base.weight)):
            self.register_buffer(name, part[..., :rank].to(base.weight).contiguous())
        self.start()

    def start(self):
        """The displacements, in the shapes of what they displace."""
        self.A_U = nn.Parameter(torch.zeros_like(self.U))
        self.A_V = nn.Parameter(torch.zeros_like(self.V))

    def delta_weight(self):
        return (self.A_U * self.S) @ (self.V + self.A_V).T + (self.U * self.S) @ self.A_V.T

    def forward(self, x):
        right = torch.cat([self.V + self.A_V, self.A_V], 1)          # (in, 2r): both terms at once
        left = torch.cat([self.A_U * self.S, self.U * self.S], 1)    # (out, 2r)
        return self.base(x) + x @ right @ left.T

    def trainable_count(self):
        return len(self.S) * sum(self.base.weight.shape)

    def rank_bound(self):
        return 2 * len(self.S)
