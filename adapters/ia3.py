"""(IA)^3: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper. arXiv:2205.05638

    outputs   y = l * (x W0^T + b0)      W_eff = diag(l) W0,   b_eff = l * b0
    inputs    y = (l * x) W0^T + b0      W_eff = W0 diag(l)
    l = 1 + v,   v starts at 0           delta = W0 * v either way: v is a column or a row

Shapes   W0 (out, in), b0 (out,) frozen · v (out, 1) or (1, in)      trainable max(in, out)
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

    lr = {"off": 0.1, "layer": 0.1, "model": 0.1}
    targets = "k,v,fc2"

    def __init__(self, base):
        super().__init__(base)
        out_features, in_features = base.weight.shape
        self.inputs = in_features > out_features
        shape = (1, in_features) if self.inputs else (out_features, 1)
        self.v = nn.Parameter(base.weight.new_zeros(shape))

    def delta_weight(self):
        return self.base.weight * self.v

    def delta_bias(self):
        bias = self.base.bias
        return None if self.inputs or bias is None else self.v.flatten() * bias

    def forward(self, x):
        scale = 1 + self.v.flatten()
        return self.base(scale * x) if self.inputs else scale * self.base(x)

    def trainable_count(self):
        return self.v.numel()
