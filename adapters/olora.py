"""OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models. arXiv:2406.01775

    W0 = Q R (reduced QR),   B0 = Q[:, :r],   A0 = R[:r]
    W_eff = W0 + s (B A - B0 A0),   A and B start at A0 and B0

Shapes   W0 (out, in) · A, A0 (r, in) · B, B0 (out, r)       trainable r (in + out), rank <= 2r
Note     B0 A0 = Q_r Q_r^T W0, and Q_r spans the first r columns of W0: with s = 1 the frozen part
         W0 - B0 A0 has its first r input columns at zero. The subspace depends on feature order.
"""

import torch

from adapters.pissa import PiSSA
from lora import register


@register
class OLoRA(PiSSA):
    """LoRA started at the leading part of a QR decomposition of W0.

    rank   (8)     inner dimension r, 1 <= r <= min(in, out)
    alpha  (None)  the update is scaled by alpha / rank; None means alpha = rank, s = 1
    """

    lr = {"off": 1e-3, "layer": 1e-3, "model": 1e-3}

    def __init__(self, base, *, rank=8, alpha=None, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)

    def factors(self, W):
        """B (out, r) and A (r, in), the first r columns of Q and rows of R."""
        Q, R = torch.linalg.qr(W)
        return Q[:, :self.A.shape[0]], R[:self.A.shape[0]]
