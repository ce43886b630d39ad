"""LoRA-Dash: Unleashing the Power of Task-Specific Directions in PEFT. arXiv:2409.01035

    steps 1 .. t    W_eff = W0 + s B A                                               plain LoRA
    after step t    u_i, sigma_i, v_i the singular triplets of W0; keep the k indices with largest
                    |u_i^T (s B A) v_i| / (sigma_i + eps)
    from then on    W_eff = W0 + s B A + U_k diag(c) V_k^T,   c trained with A and B, starts at 0

Shapes   W0 (out, in) frozen · A (r, in) · B (out, r) · U_k (out, k) · V_k (in, k) · c (k,)
         trainable r (in + out) + k;  rank(delta) <= r + k
Differs  t counts optimizer steps, not forward passes; the directions and whether they are on are
         saved with the run. The score is s rowsum((U^T B) * (V^T A^T)): no dense product.
"""

import torch
import torch.nn.functional as F
from torch import nn

from adapters.pissa import svd
from errors import BadInput
from lora import LoRA, register


@register
class LoRADash(LoRA):
    """LoRA, then also k directions of W0 that it has been amplifying most.

    rank        (8)    inner dimension r, 1 <= r <= min(in, out)
    alpha       (16)   the low-rank part is scaled by alpha / rank
    directions  (8)    k, number of directions, 1 <= k <= min(in, out)
    launch      (100)  t, the optimizer step after which they are chosen
    """

    lr = {"off": 1e-3, "layer": 6e-3, "model": 6e-3}

    def __init__(self, base, *, rank=8, alpha=16.0, directions=8, launch=100, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)
        most = min(base.weight.shape)
        if not 1 <= directions <= most:
            raise BadInput(f"directions {directions} does not fit a layer with {most} singular "
                           f"values: choose --set directions between 1 and {most}")
        self.launch = launch
        self.c = nn.Parameter(base.weight.new_zeros(directions))
        self.register_buffer("U", base.weight.new_zeros(base.out_features, directions))
        self.register_buffer("V", base.weight.new_zeros(base.in_features, directions))
        self.register_buffer("launched", torch.tensor(False))

    def choose_directions(self, eps=1e-6):
        """The singular pairs of W0 along which s B A is largest relative to W0."""
        U, S, V = svd(self.base.weight)                              # in float32 or better
        score = self.scale * ((U.T @ self.B.to(U)) * (V.T @ self.A.T.to(U))).sum(1)  # (min,)
        best = (score.abs() / (S + eps)).topk(len(self.c)).indices
        self.U.copy_(U[:, best]), self.V.copy_(V[:, best]), self.launched.fill_(True)

    def delta_weight(self):
        low_rank = super().delta_weight()
        return low_rank + (self.U * self.c) @ self.V.T if self.launched else low_rank

    def forward(self, x):
        y = super().forward(x)
        return y + F.linear(x @ self.V * self.c, self.U) if self.launched else y

    def trainable_count(self):
        return super().trainable_count() + len(self.c)

    def rank_bound(self):
        return super().rank_bound() + len(self.c)

    @classmethod
    def before_training(cls, layers, total_steps):
        if not 1 <= layers[0].launch < total_steps:
            raise BadInput(f"lora_dash chooses its directions after step {layers[0].launch} of "
                           f"{total_steps}: choose --set launch between 1 and {total_steps - 1}")

    @classmethod
    @torch.no_grad()
    def after_step(cls, layers, step, total_steps):
        for layer in layers:
            if step == layer.launch:
                layer.choose_directions()
