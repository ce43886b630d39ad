"""Full fine-tuning of the adapted layers, the baseline

    W_eff = W0 + D,   b_eff = b0 + d                 D (out, in) and d (out,) trainable, start at 0

Shapes   W0 (out, in) frozen · b0 (out,) frozen · x (..., in) -> y (..., out)
         trainable in * out (+ out with a bias);  the task vector is D itself
Differs  what is trained is the displacement and not the weight: the same function and gradient, and
         weight decay pulls towards W0, not towards 0. LayerNorm gains, embeddings and the patch
         projection stay frozen, so that every method changes the same layers.
Note     with --linearize model this is tangent task arithmetic, arXiv:2305.12827.
"""

from torch import nn

from lora import Adapter, register


@register
class Full(Adapter):
    """W_eff = W0 + D, nothing low-rank about it. No hyper-parameters."""

    lr = {"off": 3e-4, "layer": 3e-4, "model": 3e-4}

    def __init__(self, base):
        super().__init__(base)
        self.D = nn.Parameter(base.weight.new_zeros(base.weight.shape))
        self.d = None if base.bias is None else nn.Parameter(base.bias.new_zeros(base.bias.shape))

    def delta_weight(self):
        return self.D

    def delta_bias(self):
        return self.d

    def trainable_count(self):
        return self.base.weight.numel() + (0 if self.d is None else self.d.numel())
