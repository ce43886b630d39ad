"""L-LoRA: Parameter-Efficient Multi-task Model Fusion with Partial Linearization. arXiv:2310.04742

    f_lin(x; p) = f(x; p0) + J f(x; p0) (p - p0),   p = (A, B) of every layer

Only the adapter is linearized, the pretrained model stays as it is. The paper writes f for the
whole network: that is `--adapter l_lora`, LinearizedModel of linearize.py. Its released code
expands each LoRA layer by itself: that is `--adapter l_lora --linearize layer`, and this class,
where the expansion has a closed form:

    y = x W0^T + s [ (x A0^T) B^T + (x (A - A0)^T) B0^T ],    delta = s [ B A0 + B0 (A - A0) ]

Shapes   W0 (out, in) frozen · A, A0 (r, in) · B, B0 (out, r) · x (..., in) -> y (..., out)
         trainable r (in + out), of which the r in of A never move as long as B0 = 0
Differs  the paper's code decays A although no gradient reaches it; here A is not decayed.
Trap     with B0 = 0 the gradient of A is exactly zero for ever, in both readings: the layer reading
         is LoRA with A frozen at its random start, and merging must use A0. Expanding this layer
         once more around (A0, B0) gives the same first order as expanding LoRA; the whole-model
         reading is therefore built on plain LoRA, which is cheaper.
"""

import torch.nn.functional as F

from linearize import undecayed
from lora import LoRA, plus, register


@register
class LLoRA(LoRA):
    """LoRA expanded to first order around its start (A0, B0).

    rank   (8)   inner dimension r, 1 <= r <= min(in, out)
    alpha  (16)  the update is scaled by alpha / rank
    """

    lr = {"layer": 1e-2, "model": 1e-2}
    linearize = "model"

    def __init__(self, base, *, rank=8, alpha=16.0, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    def delta_weight(self):
        return self.scale * (self.B @ self.A0 + self.B0 @ (self.A - self.A0))

    def forward(self, x):
        y = plus(self.base(x), self.scale, F.linear(x, self.A0), self.B)
        if self.B0.any():                      # else the second product, and A's gradient, is zero
            y = plus(y, self.scale, F.linear(x, self.A - self.A0), self.B0)
        return y

    def rank_bound(self):
        return self.A.shape[0] * (2 if self.B0.any() else 1)

    def param_groups(self, lr, wd):
        return undecayed(super().param_groups(lr, wd), self, {"A": self.A0, "B": self.B0})
