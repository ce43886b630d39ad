"""rsLoRA: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA. arXiv:2312.03732

    W_eff = W0 + s B A,   s = alpha / sqrt(rank)                        LoRA has alpha / rank

Shapes   W0 (out, in) frozen · A (r, in) · B (out, r)        trainable r (in + out)
Why      with s = alpha / r the size of the update, and of its gradient, falls with the rank; with
         1 / sqrt(r) both stay of order one, so a larger rank is worth something.
Trap     at the same alpha the update is sqrt(r) times LoRA's: lower alpha or the learning rate.
"""

import math

from lora import LoRA, register


@register
class RsLoRA(LoRA):
    """LoRA scaled by alpha / sqrt(rank).

    rank   (8)   inner dimension r, 1 <= r <= min(in, out)
    alpha  (16)  the update is scaled by alpha / sqrt(rank)
    """

    lr = {"off": 1e-3, "layer": 3e-3, "model": 3e-3}

    def __init__(self, base, *, rank=8, alpha=16.0, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)
        self.scale = alpha / math.sqrt(rank)
