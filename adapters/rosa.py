"""RoSA: Accurate Parameter-Efficient Fine-Tuning via Robust Adaptation. arXiv:2401.04679

    W_eff = W0 + s B A + S,   S sparse on a fixed support (spa.py),   s = alpha / rank

Shapes   W0 (out, in) frozen · A (r, in) · B (out, r) · values (n,), n = floor(density in out)
         trainable r (in + out) + n;  full rank in general
Schedule `warmup` steps of LoRA alone; the gradients of the last `collect` of them choose the
         support; then A and B go back to their start and both parts train together.
Differs  the released code ends the process and starts a second run with the mask. Here the run goes
         on: the optimizer's moments and the learning-rate schedule are not started again.
"""

import torch.nn.functional as F

from adapters.spa import SpA
from errors import BadInput
from lora import LoRA, plus, register


@register
class RoSA(SpA):
    """LoRA plus a trained sparse matrix.

    rank     (8)     inner dimension r of the low-rank part, 1 <= r <= min(in, out)
    alpha    (16)    the low-rank part is scaled by alpha / rank
    density  (0.01)  share of the entries that train in the sparse part, in (0, 1]
    warmup   (32)    optimizer steps of LoRA alone
    collect  (4)     how many of them contribute gradients, 1 <= collect <= warmup
    """

    lr = {"off": 3e-3, "layer": 6e-3, "model": 6e-3}

    def __init__(self, base, *, rank=8, alpha=16.0, density=0.01, warmup=32, collect=4,
                 generator=None):
        super().__init__(base, density=density, collect=collect)
        low_rank = LoRA(base, rank=rank, alpha=alpha, generator=generator)
        if collect > warmup:
            raise BadInput(f"rosa collects the gradients of {collect} steps out of a warm-up of "
                           f"{warmup}: choose --set collect up to that")
        self.warmup, self.scale, self.A, self.B = warmup, low_rank.scale, low_rank.A, low_rank.B
        self.register_buffer("A0", self.A.detach().clone())

    def delta_weight(self):
        return super().delta_weight() + self.scale * self.B @ self.A

    def forward(self, x):
        y = F.linear(x, self.base.weight + super().delta_weight(), self.base.bias)
        return plus(y, self.scale, F.linear(x, self.A), self.B)

    def trainable_count(self):
        return super().trainable_count() + self.A.numel() + self.B.numel()

    def choose_support(self):
        super().choose_support()
        self.A.copy_(self.A0), self.B.zero_()                     # restart
