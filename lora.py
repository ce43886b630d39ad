"""LoRA: Low-Rank Adaptation of Large Language Models. arXiv:2106.09685, eq. 3

    y = x W0^T + s (x A^T) B^T + b,   s = alpha / rank        W_eff = W0 + s B A

Shapes   W0 (out, in) frozen · A (r, in) · B (out, r) · x (..., in) -> y (..., out)
         trainable r (in + out);  B = 0 at the start, so W_eff = W0;  rank(delta) <= r
Differs  no dropout on the adapter's input, so that training, evaluation and the merged weight
         compute the same function.

Above LoRA stands the contract every adapter in adapters/ keeps; below it, `inject`, which puts one
adapter on every matching nn.Linear of a model.
"""

import inspect
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput, unknown
from encoders.nf4 import QUANTIZERS

ADAPTERS: dict[str, type["Adapter"]] = {}


class NotMergeable(BadInput):
    """This adapter is not an edit of a weight matrix; the message says how to merge it instead."""


class Adapter(nn.Module):
    """One frozen nn.Linear (`base`, weight W0) and the parameters that change what it computes.

    A method defines `delta_weight`, the dense W_eff - W0 against the original W0, and may define
    `forward` as a cheaper path to the same output. Hyper-parameters are keyword-only arguments of
    its constructor. The other members have defaults that do nothing.
    """

    lr = {"off": 6e-3, "layer": 1e-2, "model": 1e-2}   # default learning rate per linearization
    linearize = "off"        # the linearization used when --linearize is not given
    expands = None           # the adapter (registry key) whose layer expansion this class is
    dead = ()                # trained parameters that no gradient ever reaches
    tangent = None           # closed form of J_p y(x; p0) dp for linearize.py, see LoRA.tangent

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)

    def __init_subclass__(cls):
        """A closed form belongs to the delta it was derived from: a new delta drops it."""
        if {"delta_weight", "delta_bias"} & vars(cls).keys() and "tangent" not in vars(cls):
            cls.tangent = None

    @classmethod
    def quantized(cls, base, quantizer, **hp):
        """This adapter on a quantised base; residual methods quantise what they leave frozen."""
        return cls(quantizer(base), **hp)

    def delta_weight(self):
        """W_eff - W0, (out, in), differentiable in the adapter's parameters.

        On a quantised base it is W_eff - base.weight: what is added to the dequantised weight.
        """
        raise NotImplementedError

    def delta_bias(self):
        """b_eff - b0, (out,), or None where the bias stays as it is."""
        return None

    def forward(self, x):
        """x (..., in) -> (..., out): the definition. Methods override it with a cheaper path."""
        bias, change = self.base.bias, self.delta_bias()
        return F.linear(x, self.base.weight + self.delta_weight(),
                        bias if change is None else bias + change)

    def trainable_count(self):
        """Number of trainable scalars in closed form."""
        raise NotImplementedError

    def rank_bound(self):
        """Largest possible rank of delta_weight()."""
        return min(self.base.weight.shape)

    def param_groups(self, lr, wd):
        """Optimizer groups; every trainable parameter in exactly one."""
        return [{"params": list(trainable(self).values()), "lr": lr, "weight_decay": wd}]

    def regularizer(self):
        """Added to the loss of every step."""
        return 0.0

    def observed(self):
        """Tensors beside the trained parameters whose gradient a hook reads."""
        return ()

    # Hooks over all layers of a model at once; steps are optimizer steps, counted from 1.

    @classmethod
    def share(cls, layers, generator):
        """Once after injection: tensors that all layers have in common."""

    @classmethod
    def before_training(cls, layers, total_steps):
        """Before the first step: raise BadInput if the settings do not fit the run."""

    @classmethod
    def after_backward(cls, layers, step, total_steps):
        """After the gradients of an optimizer step are complete, before it is taken."""

    @classmethod
    def after_step(cls, layers, step, total_steps):
        """After an optimizer step."""


def register(cls):
    """Class decorator: the file's name becomes the registry key and the command-line value."""
    ADAPTERS[cls.__module__.rpartition(".")[2]] = cls
    return cls


def check_rank(base, rank):
    """Raise BadInput unless 1 <= rank <= min(in, out) of the layer."""
    out_features, in_features = base.weight.shape
    if not 1 <= rank <= min(in_features, out_features):
        raise BadInput(f"rank {rank} does not fit a layer of {in_features} inputs and "
                       f"{out_features} outputs: "
                       f"choose --rank between 1 and {min(in_features, out_features)}")


def plus(y, s, u, B):
    """y + s u B^T in one pass over y, (..., out); u (..., r), B (out, r)."""
    rows = torch.addmm(y.reshape(-1, y.shape[-1]), u.reshape(-1, u.shape[-1]), B.T, alpha=s)
    return rows.view_as(y)


@register
class LoRA(Adapter):
    """W_eff = W0 + (alpha / rank) B A.  A ~ U(-1, 1)/sqrt(in), B = 0.

    rank   (8)   inner dimension r, 1 <= r <= min(in, out)
    alpha  (16)  the update is scaled by alpha / rank
    """

    def __init__(self, base, *, rank=8, alpha=16.0, generator=None):
        super().__init__(base)
        check_rank(base, rank)
        out_features, in_features = base.weight.shape
        self.scale = alpha / rank
        A = torch.rand(rank, in_features, generator=generator) * 2 - 1
        self.A = nn.Parameter((A / math.sqrt(in_features)).to(base.weight))
        self.B = nn.Parameter(base.weight.new_zeros(out_features, rank))

    def delta_weight(self):
        return self.scale * self.B @ self.A

    def forward(self, x):
        return plus(self.base(x), self.scale, F.linear(x, self.A), self.B)

    def tangent(self, x, p0, dp):
        """s [ (x A0^T) dB^T + (x dA^T) B0^T ]: the change of the output along dp, x (..., in) held.

        p0, dp   dicts of the trained parameters and of their displacements
        """
        dy = F.linear(F.linear(x, p0.get("A", self.A)), dp["B"])
        if "A" in dp and p0["B"].any():        # else the second product, and A's gradient, is zero
            dy = dy + F.linear(F.linear(x, dp["A"]), p0["B"])
        return self.scale * dy

    def trainable_count(self):
        return self.A.shape[0] * (self.A.shape[1] + self.B.shape[0])

    def rank_bound(self):
        return self.A.shape[0]


def hyperparameters(cls):
    """{name: default} of an adapter's constructor, without the random generator."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name != "generator"}


def inject(model, name, targets="all", *, generator=None, quantize=None, **hp):
    """Freeze `model`, put adapter `name` on its matching nn.Linear layers; return their names.

    targets    "all", or comma-separated ends of module names: "q,v" matches blocks.0.q
    generator  source of the random initialisation, drawn layer by layer in model order
    quantize   "nf4" stores the frozen weights in 4 bits (quantize.py)
    hp         keyword arguments of the adapter's constructor
    Raises BadInput for an unknown adapter or key, and for a target that matches no layer.
    """
    if name not in ADAPTERS:
        raise unknown("adapter", name, ADAPTERS)
    cls = ADAPTERS[name]
    for key in hp:
        if key not in hyperparameters(cls):
            raise unknown(f"key for adapter {name}", key, hyperparameters(cls) or ["(none)"])
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    wanted = [""] if targets == "all" else [f".{target}" for target in targets.split(",")]
    for target in wanted:
        if target == "." or not any(f".{n}".endswith(target) for n in linears):
            ends = sorted({n.rpartition(".")[2] for n in linears})
            raise unknown("target", target[1:], ["all", *ends])
    matched = [n for n in linears if f".{n}".endswith(tuple(wanted))]
    model.requires_grad_(False)
    takes_generator = "generator" in inspect.signature(cls).parameters
    extra = {"generator": generator} if takes_generator else {}
    for n in matched:
        base = model.get_submodule(n)
        layer = (cls.quantized(base, QUANTIZERS[quantize], **hp, **extra) if quantize
                 else cls(base, **hp, **extra))
        model.set_submodule(n, layer)
    cls.share(list(adapters(model).values()), generator)
    return matched


def adapters(model):
    """{layer name: Adapter} of a model, outermost only, in model order."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Adapter) and not any(name.startswith(f"{n}.") for n in found):
            found[name] = module
    return found


def trainable(module):
    """{name: parameter} of everything that is trained."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def deltas(model):
    """{parameter name: dense change} of every adapted layer, e.g. blocks.0.q.weight (out, in)."""
    out = {}
    for name, layer in adapters(model).items():
        out[f"{name}.weight"] = layer.delta_weight().detach()
        if (bias := layer.delta_bias()) is not None:
            out[f"{name}.bias"] = bias.detach()
    return out


def paper(cls):
    """First line of the file an adapter lives in: title and arXiv id."""
    return sys.modules[cls.__module__].__doc__.splitlines()[0]
