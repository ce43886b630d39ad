"""Spectral Adapter (rotational): Fine-Tuning in Spectral Space. arXiv:2405.13952

    W0 = U S V^T,   W_eff = W0 with U_r R_U S_r R_V^T V_r^T in place of U_r S_r V_r^T
    R = (I + K)^-1 (I - K),   K = (T - T^T) / 2                                        Cayley
    delta = U_r (R_U S_r R_V^T - S_r) V_r^T

Shapes   W0 (out, in) frozen · U_r (out, r) · V_r (in, r) · S_r (r,) · T_U, T_V (r, r)
         trainable 2 r^2, of which r (r - 1) are free; zero at the start; rank(delta) <= r
Note     R is orthogonal, so W_eff has exactly the singular values of W0.
Trap     the Cayley map never reaches a rotation by 180 degrees.
"""

import torch
from torch import nn

from adapters.spectral_a import top_triplets
from lora import Adapter, register


def cayley(T):
    """An orthogonal matrix from any square one; I from zero."""
    K, identity = (T - T.T) / 2, torch.eye(len(T), dtype=T.dtype, device=T.device)
    return torch.linalg.solve(identity + K, identity - K)


@register
class SpectralR(Adapter):
    """Rotations among the top r left and among the top r right singular vectors.

    rank   (8)   number of singular pairs, 1 <= r <= min(in, out)
    """

    lr = {"off": 6e-3, "layer": 6e-3, "model": 6e-3}

    def __init__(self, base, *, rank=8):
        super().__init__(base)
        for name, part in zip("USV", top_triplets(base, rank)):
            self.register_buffer(name, part)
        self.T_U = nn.Parameter(base.weight.new_zeros(rank, rank))
        self.T_V = nn.Parameter(base.weight.new_zeros(rank, rank))

    def core(self):
        """R_U S_r R_V^T - S_r, (r, r)."""
        return (cayley(self.T_U) * self.S) @ cayley(self.T_V).T - torch.diag(self.S)

    def delta_weight(self):
        return self.U @ self.core() @ self.V.T

    def forward(self, x):
        return self.base(x) + (x @ self.V @ self.core().T) @ self.U.T

    def trainable_count(self):
        return 2 * len(self.S) ** 2

    def rank_bound(self):
        return len(self.S)
