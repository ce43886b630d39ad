"""First-order Taylor expansion in the trained parameters. arXiv:2310.04742 (L-LoRA) and
arXiv:2305.12827 (tangent task arithmetic)

    f_lin(x; p) = f(x; p0) + J f(x; p0) (p - p0)         J the Jacobian in p, never formed: its
                                                         product is pushed forward with the value

Shapes   p, p0 dicts name -> tensor · x (B, ...) -> f (B, D) or any tensor

Two readings, for every adapter:

    model   f is the whole encoder. f_lin is affine in p: adding task vectors adds outputs exactly,
            f_lin(p0 + t1 + t2) - f(p0) = [f_lin(p0 + t1) - f(p0)] + [f_lin(p0 + t2) - f(p0)].
            Not a weight edit: merged in adapter space, evaluated with its tangents (dual.py), at
            1.4 times the cost of LoRA.
            `taylor`, two lines of torch.func.jvp, is the definition.
    layer   f is one adapter layer, as in the paper's released code; the network between the layers
            stays non-linear, so outputs do not add. It has a dense delta and costs what LoRA costs.

Trap     weight decay pulls p towards 0, not towards p0, also where the gradient is zero. Parameters
         that do not start at zero (A of LoRA) are therefore not decayed: see `undecayed`.
"""

from functools import partial

import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp

from encoders.dual import Dual, parts
from lora import ADAPTERS, Adapter, adapters, inject, trainable

READINGS = ("off", "layer", "model")


def taylor(f, p0, p):
    """f(p0) + J f(p0) (p - p0) for f: dict of tensors -> tensor."""
    value, tangent = jvp(f, (p0,), ({k: p[k] - p0[k] for k in p0},))
    return value + tangent


def snapshot(module):
    """The expansion point: a detached copy of the trained parameters."""
    return {n: p.detach().clone() for n, p in trainable(module).items()}


def undecayed(groups, module, p0):
    """Optimizer groups with weight decay only on parameters that start at zero."""
    moved = {id(p) for n, p in trainable(module).items() if p0[n].any()}
    out = []
    for g in groups:
        for wd, keep in ((g["weight_decay"], False), (0.0, True)):
            params = [p for p in g["params"] if (id(p) in moved) is keep]
            out += [{**g, "params": params, "weight_decay": wd}] if params else []
    return out


class _Call(nn.Module):
    """functional_call only reaches `forward`; this makes another method of `inner` its forward."""

    def __init__(self, inner, name):
        super().__init__()
        self.inner, self.name = inner, name

    def forward(self, *args):
        return getattr(self.inner, self.name)(*args)


def method(layer, name, *args):
    """A method of an adapter layer as a function of its parameters, a dict."""
    call = _Call(layer, name)
    return lambda p: functional_call(call, {f"inner.{k}": v for k, v in p.items()}, args)


def push(layer, p0, dp, x):
    """One adapter layer on a Dual (or on a constant): values at p0, tangents along (dx, dp).

        y = x W^T + b,   dy = dx W^T + J_p y dp                W = W_eff(p0), b = b_eff(p0)

    J_p y dp at a fixed x comes from the adapter's closed form `tangent`, or is x dW^T + db with
    dW, db the derivatives of its dense edit.
    """
    x, dx = parts(x)
    base, weight = layer.base, lambda p: layer.base.weight + method(layer, "delta_weight")(p)
    if layer.tangent is not None:
        W, b, dy = weight(p0), base.bias, layer.tangent(x, p0, dp)
    else:
        W, dW = jvp(weight, (p0,), (dp,))
        b, db = base.bias, None
        if layer.delta_bias() is not None:
            b, db = jvp(lambda p: base.bias + method(layer, "delta_bias")(p), (p0,), (dp,))
        dy = F.linear(x, dW, db)
    return Dual(F.linear(x, W, b), dy if dx is None else F.linear(dx, W) + dy)


class LinearizedModel(nn.Module):
    """The whole model expanded around the parameters it has now; x -> f_lin(x; p)."""

    def __init__(self, model):
        super().__init__()
        self.model, self.p0 = model, snapshot(model)

    def at(self, p, x):
        """f_lin(x; p) at given parameters, a dict with the keys of p0."""
        layers = adapters(self.model)
        try:
            for name, layer in layers.items():
                p0, dp = {}, {}
                for key, _ in trainable(layer).items():
                    p0[key] = self.p0[f"{name}.{key}"]
                    dp[key] = p[f"{name}.{key}"] - p0[key]
                layer.forward = partial(push, layer, p0, dp)
            y = self.model(x)
        finally:
            for layer in layers.values():
                vars(layer).pop("forward", None)
        return y.z + y.dz

    def forward(self, x):
        return self.at(trainable(self.model), x)

    def param_groups(self, groups):
        """The layers' optimizer groups, without decay where p0 is not zero."""
        return undecayed(groups, self.model, self.p0)


class LayerTaylor(Adapter):
    """One adapter layer expanded around its present parameters, by jvp, for any adapter.

        y_lin(x; p) = y(x; p0) + J_p y (p - p0),     delta_lin = delta(p0) + J_p delta (p - p0)
    """

    def __init__(self, inner):
        super().__init__(inner.base)
        self.inner, self.p0 = inner, snapshot(inner)

    def expand(self, name, *args):
        """A method of the inner adapter, expanded to first order."""
        return taylor(method(self.inner, name, *args), self.p0, trainable(self.inner))

    def forward(self, x):
        return self.expand("forward", x)

    def delta_weight(self):
        return self.expand("delta_weight")

    def delta_bias(self):
        return None if self.inner.delta_bias() is None else self.expand("delta_bias")

    def trainable_count(self):
        return self.inner.trainable_count()

    def param_groups(self, lr, wd):
        return undecayed(self.inner.param_groups(lr, wd), self.inner, self.p0)

    def regularizer(self):
        return self.inner.regularizer()

    def observed(self):
        return self.inner.observed()

    @classmethod
    def before_training(cls, layers, total_steps):
        inner = [layer.inner for layer in layers]
        type(inner[0]).before_training(inner, total_steps)

    @classmethod
    def after_backward(cls, layers, step, total_steps):
        inner = [layer.inner for layer in layers]
        type(inner[0]).after_backward(inner, step, total_steps)

    @classmethod
    def after_step(cls, layers, step, total_steps):
        inner = [layer.inner for layer in layers]
        type(inner[0]).after_step(inner, step, total_steps)


def adapt(encoder, adapter, reading="off", targets="all", *, generator=None, quantize=None, **hp):
    """Inject an adapter and apply a reading: returns the model to train and the layers' names.

    An adapter that is itself the closed form of another's layer expansion names it in `expands`.
    The layer reading uses the closed form where there is one and wraps every layer in LayerTaylor
    where there is none; the model reading expands the plain adapter, of the same first order.
    """
    plain = vars(ADAPTERS[adapter]).get("expands") or adapter if adapter in ADAPTERS else adapter
    closed = [key for key, cls in ADAPTERS.items() if vars(cls).get("expands") == plain]
    name = adapter if reading == "off" else plain
    if reading == "layer" and closed:
        name = closed[0]
    layers = inject(encoder, name, targets, generator=generator, quantize=quantize, **hp)
    if reading == "layer" and not closed:
        for layer in layers:
            encoder.set_submodule(layer, LayerTaylor(encoder.get_submodule(layer)))
    return (LinearizedModel(encoder) if reading == "model" else encoder), layers


def encoder_of(model):
    """The encoder itself, out of a LinearizedModel if there is one."""
    return model.model if isinstance(model, LinearizedModel) else model


def set_start(model, start):
    """Set the expansion point of a rebuilt model, {parameter name: tensor}."""
    p0 = {n: start[n].to(p) for n, p in trainable(encoder_of(model)).items()}
    if isinstance(model, LinearizedModel):
        model.p0 = p0
    for name, layer in adapters(encoder_of(model)).items():
        if isinstance(layer, LayerTaylor):
            layer.p0 = {k: p0[f"{name}.inner.{k}"] for k in layer.p0}
