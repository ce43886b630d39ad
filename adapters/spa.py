"""SpA: sparse adaptation, the sparse half of RoSA. arXiv:2401.04679

    W_eff = W0 + S,   S zero outside a fixed support, its entries trained
    support = the floor(density * in * out) largest entries of sum over batches of (dL/dW0)^2

Shapes   W0 (out, in) frozen · score (out, in) · support (n,) flat indices · values (n,)
         trainable n = floor(density in out), zero at the start;  full rank in general
Schedule the gradients of the first `collect` steps are squared and summed and nothing trains; then
         the support is chosen once and for all, and the values train.
Note     dL/dW0 is read off a zero matrix added to the frozen weight, so nothing is unfrozen and
         the base may be of any kind. The squares are of batch gradients, not of single examples.
Trap     the score is as large as the weight: while the support is chosen, the memory is that of a
         dense gradient.
"""

import torch
from torch import nn

from errors import BadInput
from lora import Adapter, register


@register
class SpA(Adapter):
    """A trained sparse matrix on the entries with the largest gradients.

    density  (0.01)  share of the entries that train, in (0, 1]
    collect  (1)     optimizer steps whose gradients choose the support, at least 1
    """

    lr = {"off": 1e-2, "layer": 1e-2, "model": 1e-2}

    def __init__(self, base, *, density=0.01, collect=1):
        super().__init__(base)
        size = base.weight.numel()
        n = int(density * size)
        if not 0 < density <= 1 or n < 1:
            raise BadInput(f"density {density} leaves no entry to train, or more than all, of a "
                           f"weight with {size}: choose --set density in (0, 1]")
        if collect < 1:
            raise BadInput(f"the support is chosen by gradients, and collect {collect} asks for "
                           "none: choose --set collect of at least 1")
        self.warmup, self.collect = collect, collect
        self.probe = torch.zeros_like(base.weight, requires_grad=True)
        self.values = nn.Parameter(base.weight.new_zeros(n))
        self.register_buffer("support", torch.zeros(n, dtype=torch.int64))
        self.register_buffer("score", torch.zeros_like(base.weight))
        self.register_buffer("steps", torch.tensor(0))           # optimizer steps taken

    def delta_weight(self):
        """S: zero before the support is chosen; while gradients are collected it is the
        zero matrix whose gradient is dL/dW0."""
        if self.steps >= self.warmup:
            flat = torch.zeros_like(self.base.weight).flatten()
            return flat.index_put((self.support,), self.values).view_as(self.base.weight)
        if self.steps >= self.warmup - self.collect and self.probe is not None:
            return self.probe
        return torch.zeros_like(self.base.weight)

    def trainable_count(self):
        return self.values.numel()

    def observed(self):
        return () if self.probe is None else (self.probe,)

    def choose_support(self):
        """The entries with the largest score, in order of position."""
        best = self.score.flatten().topk(len(self.values)).indices
        self.support.copy_(best.sort().values)

    @classmethod
    def before_training(cls, layers, total_steps):
        if layers[0].warmup >= total_steps:
            raise BadInput(f"the support is chosen after step {layers[0].warmup} of {total_steps}: "
                           f"choose it to be below {total_steps}, or more --steps")

    @classmethod
    def after_backward(cls, layers, step, total_steps):
        for layer in layers:
            if layer.warmup - layer.collect <= layer.steps < layer.warmup:
                layer.score += layer.probe.grad.square()
                layer.probe.grad = None

    @classmethod
    @torch.no_grad()
    def after_step(cls, layers, step, total_steps):
        for layer in layers:
            layer.steps += 1
            if layer.steps == layer.warmup:
                layer.choose_support()
                layer.probe = None
