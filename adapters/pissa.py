"""PiSSA: Principal Singular Values and Singular Vectors Adaptation. arXiv:2404.02948

    W0 = U S V^T,   B0 = U_r sqrt(S_r / s),   A0 = sqrt(S_r / s) V_r^T      the r largest
    W_eff = W_res + s B A,   W_res = W0 - s B0 A0,   A and B start at A0 and B0
    delta = W_eff - W0 = s (B A - B0 A0)

Shapes   W0 (out, in) · A, A0 (r, in) · B, B0 (out, r)       trainable r (in + out), rank <= 2r
Differs  W0 is kept and s B0 A0 is subtracted in the forward pass, as one product of rank 2r, not
         by storing W_res: a saved run does not hang on the signs of an SVD. delta is formed as
         s [(B - B0) A + B0 (A - A0)]: the difference of two large products would be mostly noise.
Quantised  QPiSSA stores Q(W_res) and adds s B A; on a decaying spectrum its error is far below
         QLoRA's, because what is left to quantise is small.
Trap     delta is measured against W0. Exported as plain LoRA it has rank 2r: [B, -B0] and [A; A0].
"""

import torch
import torch.nn.functional as F

from encoders.nf4 import QuantLinear
from lora import LoRA, register


def svd(W):
    """U (out, n), S (n,), V (in, n) of W = U diag(S) V^T, n = min(out, in); S falls."""
    W = W.detach().to(torch.promote_types(W.dtype, torch.float32))
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    return U, S, Vt.T


@register
class PiSSA(LoRA):
    """LoRA started at the principal part of W0, which is taken out of the frozen weight.

    rank   (8)     inner dimension r, 1 <= r <= min(in, out)
    alpha  (None)  the update is scaled by alpha / rank; None means alpha = rank, the paper's
    niter  (0)     0: exact SVD; n > 0: randomised SVD with n power iterations
    refine (0)     on a quantised base: how often to refit the factors to W0 - Q(W_res)
    """

    lr = {"off": 1e-3, "layer": 1e-3, "model": 1e-3}

    def __init__(self, base, *, rank=8, alpha=None, niter=0, refine=0, generator=None):
        super().__init__(base, rank=rank, alpha=alpha or rank, generator=generator)
        self.refine, self.niter = refine, niter
        W0 = base.weight.detach()
        self.start_at(*self.factors(W0.to(torch.promote_types(W0.dtype, torch.float32))))

    def factors(self, W):
        """B (out, r) and A (r, in) with s B A the principal part of W."""
        rank = self.A.shape[0]
        if self.niter:
            with torch.random.fork_rng(devices=[]):     # svd_lowrank takes no generator
                torch.manual_seed(0)                        # a run that is loaded finds the same
                U, S, V = torch.svd_lowrank(W, rank, self.niter)
        else:
            U, S, V = (t[..., :rank] for t in svd(W))
        root = (S / self.scale).sqrt()
        return root * U, (root * V).T

    def start_at(self, B0, A0):
        """Set A and B to their start and keep it: B0 (out, r), A0 (r, in)."""
        self.A.data, self.B.data = (t.to(self.base.weight).contiguous() for t in (A0, B0))
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    @classmethod
    def quantized(cls, base, quantizer, **hp):
        """W_eff = Q(W0 - s B0 A0) + s B A: what stays frozen is quantised, not W0."""
        layer, W0 = cls(base, **hp), base.weight.detach()
        for _ in range(layer.refine):
            frozen = quantizer(base, W0 - layer.scale * layer.B0 @ layer.A0)
            layer.start_at(*layer.factors(W0 - frozen.weight))
        layer.base = quantizer(base, W0 - layer.scale * layer.B0 @ layer.A0)
        return layer

    def delta_weight(self):
        if isinstance(self.base, QuantLinear):                       # the base holds the residual
            return self.scale * self.B @ self.A
        return self.scale * ((self.B - self.B0) @ self.A + self.B0 @ (self.A - self.A0))

    def forward(self, x):
        if isinstance(self.base, QuantLinear):
            return super().forward(x)
        A, B = torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], 1)    # rank 2r, once
        return self.base(x) + self.scale * F.linear(F.linear(x, A), B)

    def rank_bound(self):
        return 2 * self.A.shape[0]
