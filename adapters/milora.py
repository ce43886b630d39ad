"""MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient Finetuning. arXiv:2406.09044

    W0 = U S V^T,   B0 = U_-r sqrt(S_-r / s),   A0 = sqrt(S_-r / s) V_-r^T     the r smallest
    W_eff = W0 + s (B A - B0 A0),   A and B start at A0 and B0

Shapes   W0 (out, in) · A, A0 (r, in) · B, B0 (out, r)       trainable r (in + out), rank <= 2r
Why      the opposite of PiSSA: leave what the pretraining uses most, train in what it uses least.
Trap     where the smallest singular values are zero, A0 and B0 are zero together and no gradient
         ever reaches them; such a layer is refused.
"""

from adapters.pissa import PiSSA, svd
from errors import BadInput
from lora import register


@register
class MiLoRA(PiSSA):
    """LoRA started at the minor part of W0, which is taken out of the frozen weight.

    rank   (8)     inner dimension r, 1 <= r <= min(in, out)
    alpha  (None)  the update is scaled by alpha / rank; None means alpha = rank, the paper's
    """

    lr = {"off": 3e-3, "layer": 6e-3, "model": 6e-3}

    def __init__(self, base, *, rank=8, alpha=None, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)

    def factors(self, W):
        """B (out, r) and A (r, in) with s B A the minor part of W."""
        rank = self.A.shape[0]
        U, S, V = (t[..., -rank:] for t in svd(W))
        if S[-1] <= 1e-7 * rank * W.norm():
            raise BadInput(f"milora needs the {rank} smallest singular values above zero, and a "
                           f"layer of shape {tuple(W.shape)} is rank-deficient: use lora or pissa")
        root = (S / self.scale).sqrt()
        return root * U, (root * V).T
