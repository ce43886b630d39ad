"""BitFit: Simple Parameter-efficient Fine-tuning for Masked Language-models. arXiv:2106.10199

    y = W0 x + b0 + d                                    only the bias is trained, d starts at 0

Shapes   W0 (out, in), b0 (out,) frozen · d (out,)                    trainable out, delta_weight 0
Differs  the biases of the adapted linear layers only; those of LayerNorm stay frozen.
"""

import torch
from torch import nn

from errors import BadInput
from lora import Adapter, register


@register
class BitFit(Adapter):
    """Bias only. No hyper-parameters."""

    lr = {"off": 0.1, "layer": 0.1, "model": 0.1}

    def __init__(self, base):
        super().__init__(base)
        if base.bias is None:
            raise BadInput("bitfit trains biases, and a matched layer has none: choose other "
                           "--targets or another adapter")
        self.d = nn.Parameter(torch.zeros_like(base.bias))

    def delta_weight(self):
        return torch.zeros_like(self.base.weight)

    def delta_bias(self):
        return self.d

    def forward(self, x):
        return self.base(x) + self.d

    def trainable_count(self):
        return self.d.numel()

    def rank_bound(self):
        return 0
