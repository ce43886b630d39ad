"""LoRA: Low-Rank Adaptation of Large Language Models. arXiv:2106.09685, eq. 3

    y = x W0^T + s (x A^T) B^T + b,   s = alpha / rank        W_eff = W0 + s B A

Shapes   W0 (out, in) frozen · A (r, in) · B (out, r) · x (..., in) -> y (..., out)
         trainable r (in + out);  B = 0 at the start, so W_eff = W0;  rank(delta) <= r
Differs  A starts uniform in +-1/sqrt(in), as in the authors' library; the paper says Gaussian.
         No dropout on the adapter's input: training, evaluation and the merged weight are one
         function.

`Adapter` is the contract of every file in adapters/. `inject` puts one on every matching nn.Linear.
"""

import copy
import inspect
import math
import sys
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import BadInput, unknown


class Adapter(nn.Module):
    """One frozen nn.Linear (`base`, weight W0) and the parameters that change what it computes.

    An adapter defines `delta_weight` and `trainable_count`. The rest has defaults that do nothing;
    the class methods see all layers of a model, and steps are optimizer steps, counted from 1:
        share(layers, generator)                    after injection: tensors that layers share
        before_training(layers, total_steps)        BadInput if the settings do not fit the run
        after_backward(layers, step, total_steps)   the gradients are complete, nothing has moved
        after_step(layers, step, total_steps)       the optimizer has taken its step
    """

    lr = {"off": 1e-3, "layer": 1e-2, "model": 1e-2}   # default learning rate per linearization
    linearize, targets = "off", "all"                  # without --linearize and --targets
    weight_edit = True                                 # False: there is no delta_weight
    memory = ()                                        # buffers that only training reads
    share = before_training = after_backward = after_step = classmethod(lambda cls, *args: None)

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)

    def delta_weight(self) -> Tensor:
        """W_eff - W0, (out, in), differentiable. On a quantised base: W_eff - base.weight."""
        raise NotImplementedError

    def delta_bias(self) -> Tensor | None:
        """b_eff - b0, (out,), or None where the bias stays as it is."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out). The definition; many have a cheaper path to it."""
        bias, change = self.base.bias, self.delta_bias()
        return F.linear(x, self.base.weight + self.delta_weight(),
                        bias if change is None else bias + change)

    def trainable_count(self) -> int:
        """Number of trainable scalars in closed form."""
        raise NotImplementedError

    def rank_bound(self) -> int:
        """Largest possible rank of delta_weight()."""
        return min(self.base.weight.shape)

    def param_groups(self, lr, wd) -> list[dict]:
        """Optimizer groups; every trainable parameter in exactly one."""
        return [{"params": list(trainable(self).values()), "lr": lr, "weight_decay": wd}]

    def regularizer(self):
        """Added to the loss of every step."""
        return 0.0

    def observed(self):
        """Tensors beside the trained parameters whose gradient a hook reads."""
        return ()

    @classmethod
    def quantized(cls, base, quantizer, **hp):
        """This adapter on a quantised base; PiSSA's kin quantise what they leave frozen."""
        return cls(quantizer(base), **hp)


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
        return self.scale * self.B @ self.A                              # (out, in)

    def forward(self, x):
        y, u = self.base(x), F.linear(x, self.A)                         # (..., out), (..., r)
        return plus(y, self.scale, u, self.B)

    def trainable_count(self):
        return self.A.shape[0] * (self.A.shape[1] + self.B.shape[0])

    def rank_bound(self):
        return self.A.shape[0]


def plus(y, s, u, B):
    """y + s u B^T in one pass over y, (..., out); u (..., r), B (out, r)."""
    rows = torch.addmm(y.reshape(-1, y.shape[-1]), u.reshape(-1, u.shape[-1]), B.T, alpha=s)
    return rows.view_as(y)


def check_rank(base, rank):
    """Raise BadInput unless 1 <= rank <= min(in, out) of the layer."""
    most = min(base.weight.shape)
    if not 1 <= rank <= most:
        raise BadInput(f"rank {rank} does not fit a layer of {base.in_features} inputs and "
                       f"{base.out_features} outputs: choose --rank between 1 and {most}")


def trainable(module) -> dict[str, nn.Parameter]:
    """{name: parameter} of everything that is trained."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


# ---- the registry --------------------------------------------------------------------------------

ADAPTERS: dict[str, type[Adapter]] = {}


def register(cls):
    """Class decorator: the file's name becomes the registry key and the command-line value."""
    ADAPTERS[cls.__module__.rpartition(".")[2]] = cls
    return cls


register(LoRA)


def find(name) -> type[Adapter]:
    """The class of an adapter; BadInput if no imported file registers it."""
    if name not in ADAPTERS:
        if len(ADAPTERS) == 1:
            raise BadInput(f"adapter {name!r} is not registered: `import adapters` first")
        raise unknown("adapter", name, ADAPTERS)
    return ADAPTERS[name]


def hyperparameters(cls) -> dict:
    """{name: default} of an adapter's constructor, without the random generator."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name != "generator"}


def paper(cls) -> str:
    """First line of the file an adapter lives in: title and arXiv id."""
    return sys.modules[cls.__module__].__doc__.splitlines()[0]


# ---- adapters in a model -------------------------------------------------------------------------


def matching(model, targets) -> list[str]:
    """Names of the nn.Linear layers of a model that `targets` selects.

    targets   "all", or comma-separated ends of module names: "q,v" matches blocks.0.q
    """
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    ends = [""] if targets == "all" else [f".{target}" for target in targets.split(",")]
    for end in ends:
        if end == "." or not any(f".{n}".endswith(end) for n in linears):
            raise unknown("target", end[1:], ["all", *sorted({n.split(".")[-1] for n in linears})])
    return [n for n in linears if f".{n}".endswith(tuple(ends))]


def inject(model, name, targets=None, *, generator=None, quantizer=None, **hp) -> list[str]:
    """Freeze `model`, put adapter `name` on its matching nn.Linear layers; return their names.

    targets    see `matching`; one that matches no layer is an error. None is the adapter's own
    generator  source of the random initialisation, drawn layer by layer in model order
    quantizer  None, or what stores a frozen nn.Linear in few bits: encoders.nf4.QuantLinear
    hp         keyword arguments of the adapter's constructor
    """
    cls = find(name)
    for key in hp:
        if key not in hyperparameters(cls):
            raise unknown(f"key for adapter {name}", key, hyperparameters(cls) or ["(none)"])
    if adapters(model):
        raise BadInput("the model has adapters already: inject into a fresh encoder")
    names = matching(model, cls.targets if targets is None else targets)
    model.requires_grad_(False)
    draws = "generator" in inspect.signature(cls).parameters
    make = partial(cls.quantized, quantizer=quantizer) if quantizer else cls
    for n in names:
        base = model.get_submodule(n)
        model.set_submodule(n, make(base, **hp, **({"generator": generator} if draws else {})))
    cls.share(list(adapters(model).values()), generator)
    return names


def adapters(model) -> dict[str, Adapter]:
    """{layer name: Adapter} of a model, outermost only, in model order."""
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, Adapter) and not any(name.startswith(f"{n}.") for n in out):
            out[name] = module
    return out


def twin(model):
    """A second tree of modules on the same tensors, for adapters of its own: no memory but them."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class NotMergeable(BadInput):
    """This adapter is not an edit of a weight matrix; the message says how to merge it instead."""


def deltas(model) -> dict[str, Tensor]:
    """{parameter name: dense change} of every adapted layer, e.g. blocks.0.q.weight (out, in)."""
    if getattr(model, "linearized", False):
        raise NotMergeable("a model linearized as a whole is not an edit of the weights: "
                           "merge its parameters, --space adapter")
    out = {}
    for name, layer in adapters(model).items():
        out[f"{name}.weight"] = layer.delta_weight().detach()
        if (bias := layer.delta_bias()) is not None:
            out[f"{name}.bias"] = bias.detach()
    return out
