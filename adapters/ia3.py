"""(IA)^3: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper. arXiv:2205.05638

    outputs   y = l * (x W0^T + b0)      W_eff = diag(l) W0,   b_eff = l * b0
    inputs    y = (l * x) W0^T + b0      W_eff = W0 diag(l)
    l = 1 + v,   v starts at 0

Shapes   W0 (out, in), b0 (out,) frozen · v, l (out,) or (in,)       trainable max(in, out)
Differs  the shape chooses the side: a layer with more inputs than outputs scales its inputs, any
         other its outputs. On k, v and fc2 that is the paper's choice.
         v is trained and not l: weight decay pulls to the identity, and v is the task vector.
Note     y is linear in v, so the layer's expansion is the layer itself, and task arithmetic in
         weight space and in adapter space give the same model.
"""

from torch import nn

from lora import Adapter, register


@register
class IA3(Adapter):
    """One factor per output, or per input where there are more inputs. No hyper-parameters."""

    lr = {"off": 3e-2, "layer": 3e-2, "model": 3e-2}
    targets = "k,v,fc2"

    def __init__(self, base):
        super().__init__(base)
        self.inputs = base.in_features > base.out_features
        self.v = nn.Parameter(base.weight.new_zeros(max(base.weight.shape)))

    def delta_weight(self):
        return self.base.weight * (self.v if self.inputs else self.v[:, None])

    def delta_bias(self):
        return None if self.inputs or self.base.bias is None else self.v * self.base.bias

    def forward(self, x):
        scale = 1 + self.v
        return self.base(scale * x) if self.inputs else scale * self.base(x)

    def trainable_count(self):
        return self.v.numel()
