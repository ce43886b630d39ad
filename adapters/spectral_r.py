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

from adapters.spectral_a import SpectralA
from lora import register


def cayley(T):
    """Orthogonal matrices from any square ones (..., r, r); I from zero.

    (I + K)^-1 (I - K) = 2 (I + K)^-1 - I
    """
    wide = T.to(torch.promote_types(T.dtype, torch.float32))            # inv has no bfloat16
    K, identity = (wide - wide.mT) / 2, torch.eye(T.shape[-1]).to(wide)
    return (2 * torch.linalg.inv(identity + K) - identity).to(T.dtype)


@register
class SpectralR(SpectralA):
    """Rotations among the top r left and among the top r right singular vectors.

    rank   (8)   number of singular pairs, 1 <= r <= min(in, out)
    """

    lr = {"off": 1e-2, "layer": 6e-3, "model": 6e-3}

    def start(self):
        """The parameters of both rotations, (r, r) each."""
        self.T_U, self.T_V = (nn.Parameter(torch.zeros_like(self.S.diag())) for _ in "UV")

    def core(self):
        """R_U S_r R_V^T - S_r, (r, r)."""
        R_U, R_V = cayley(torch.stack([self.T_U, self.T_V]))
        return (R_U * self.S) @ R_V.T - torch.diag(self.S)

    def delta_weight(self):
        return self.U @ self.core() @ self.V.T

    def forward(self, x):
        return self.base(x) + x @ self.V @ (self.U @ self.core()).T

    def trainable_count(self):
        return 2 * len(self.S) ** 2

    def rank_bound(self):
        return len(self.S)
