"""LoRA+: Efficient Low Rank Adaptation of Large Models. arXiv:2402.12354

    lr_A = lr,   lr_B = ratio * lr                       the same model as LoRA, another optimizer

Shapes   W0 (out, in) frozen · A (r, in) · B (out, r)        trainable r (in + out)
Why      A starts at order 1 and B at 0; with one learning rate B learns too slowly in wide layers.
Note     the schedule multiplies each group's own base rate, so the ratio holds at every step.
"""

from errors import BadInput
from lora import LoRA, register


@register
class LoRAPlus(LoRA):
    """LoRA whose B learns `ratio` times as fast as A.

    rank   (8)   inner dimension r, 1 <= r <= min(in, out)
    alpha  (16)  the update is scaled by alpha / rank
    ratio  (16)  learning rate of B over that of A, above 0
    """

    lr = {"off": 3e-4, "layer": 1e-3, "model": 1e-3}

    def __init__(self, base, *, rank=8, alpha=16.0, ratio=16.0, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)
        if ratio <= 0:
            raise BadInput(f"ratio {ratio:g}: choose --set ratio above 0")
        self.ratio = ratio

    def param_groups(self, lr, wd):
        return [{"params": [self.A], "lr": lr, "weight_decay": wd},
                {"params": [self.B], "lr": self.ratio * lr, "weight_decay": wd}]
