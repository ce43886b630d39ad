"""First-order Taylor expansion in the trained parameters. arXiv:2310.04742 (L-LoRA) and
arXiv:2305.12827 (tangent task arithmetic)

    f_lin(x; p) = f(x; p0) + J f(x; p0) (p - p0)         J the Jacobian in p, never formed:
                                                         torch.func.jvp pushes p - p0 through f

Shapes   p, p0 dicts name -> tensor · x (B, ...) -> f (B, D) or any tensor

Two readings, for every adapter:

    model   f is the whole encoder: the paper's equation. f_lin is affine in p, so adding task
            vectors adds outputs exactly,
            f_lin(p0 + t1 + t2) - f(p0) = [f_lin(p0 + t1) - f(p0)] + [f_lin(p0 + t2) - f(p0)].
            It is no edit of the weights: merge its parameters (adapter space).
    layer   f is one adapter layer: the paper's released code. The network between the layers stays
            non-linear, so outputs do not add. What has a `delta_weight()` still has one.

LinearizedModel and LinearizedLayer are these two by definition. The same, faster: DualModel, with
dual numbers by hand, and LAYER_FORMS, adapters whose layer expansion has a closed form.

Trap     weight decay pulls p towards 0, not towards p0, also where the gradient is zero. Parameters
         that do not start at zero (A of LoRA) are therefore not decayed: see `undecayed`.
"""

import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp

import lora
from encoders.dual import Dual, parts
from errors import unknown
from lora import Adapter, adapters, trainable

READINGS = ("off", "layer", "model")

# adapter -> the adapter that is its layer expansion in closed form; the others are linear
LAYER_FORMS = {"lora": "l_lora", "full": "full", "bitfit": "bitfit", "ia3": "ia3"}
# adapters that change their layer by s B A and a constant: their tangent has a closed form
LOW_RANK = ("lora", "lora_fa", "lora_plus", "rslora", "pissa", "milora", "olora")


def taylor(f, p0, p):
    """f(p0) + J f(p0) (p - p0) for f: dict of tensors -> tensor."""
    value, tangent = jvp(f, (p0,), ({k: p[k] - p0[k] for k in p0},))
    return value + tangent


def snapshot(module):
    """The expansion point p0: a detached copy of the trained parameters."""
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


class LinearizedModel(nn.Module):
    """The whole model expanded around the parameters it has now: x -> f_lin(x; p)."""

    linearized = True                          # no edit of the weights, see lora.deltas

    def __init__(self, model):
        super().__init__()
        self.model, self.p0 = model, snapshot(model)

    def at(self, p, x):
        """f_lin(x; p) at given parameters, a dict with the keys of p0."""
        f = lambda p: functional_call(self.model, p, (x,))
        return taylor(f, self.p0, p)

    def forward(self, x):
        return self.at(dict(self.model.named_parameters()), x)


class DualModel(LinearizedModel):
    """The same, faster: a step costs 1.4 LoRA steps, by definition 2.2 (encoders/dual.py).

    A twin of the model shares all its tensors and has a DualLayer in place of every adapter. Values
    and tangents go through it side by side. No value depends on p, so autograd only records the
    tangents.
    """

    def __init__(self, model):
        super().__init__(model)
        twin = lora.twin(model)
        for name, layer in adapters(model).items():
            twin.set_submodule(name, DualLayer(layer))
        self.twin = [twin]                     # in a list: not a second model to train or save

    def at(self, p, x):
        for name, layer in adapters(self.model).items():
            inside = {k: f"{name}.{k}" for k, _ in layer.named_parameters()
                      if f"{name}.{k}" in self.p0}
            p0 = {k: self.p0[full] for k, full in inside.items()}
            dp = {k: p[full] - self.p0[full] for k, full in inside.items()}
            self.twin[0].get_submodule(name).along = p0, dp
        y = self.twin[0](x)
        for name in adapters(self.model):      # a model that holds a graph cannot be copied
            self.twin[0].get_submodule(name).along = None
        return y.z + y.dz


class DualLayer(nn.Module):
    """One adapter layer on a Dual, or on a constant: values at p0, tangents along (dx, dp).

        y = x W^T + b,   dy = dx W^T + J_p y dp                W = W_eff(p0), b = b_eff(p0)

    J_p y dp at a fixed x is x dW^T + db, dW and db the derivatives of the adapter's dense edit; for
    the LOW_RANK adapters it is `low_rank_tangent`.
    """

    def __init__(self, layer):
        super().__init__()
        self.layer, self.along = layer, None                 # along: (p0, dp), set by DualModel
        self.low_rank = type(layer) in (lora.ADAPTERS.get(name) for name in LOW_RANK)

    def forward(self, x):
        (x, dx), (p0, dp), layer = parts(x), self.along, self.layer
        base, weight = layer.base, lambda p: layer.base.weight + method(layer, "delta_weight")(p)
        if self.low_rank:
            W, b, dy = weight(p0), base.bias, low_rank_tangent(layer, x, p0, dp)
        else:
            W, dW = jvp(weight, (p0,), (dp,))
            b, db = base.bias, None
            if layer.delta_bias() is not None:
                b, db = jvp(lambda p: base.bias + method(layer, "delta_bias")(p), (p0,), (dp,))
            dy = F.linear(x, dW, db)
        return Dual(F.linear(x, W, b), dy if dx is None else F.linear(dx, W) + dy)


def low_rank_tangent(layer, x, p0, dp):
    """s [ (x A0^T) dB^T + (x dA^T) B0^T ], (..., out): how s (x A^T) B^T changes along dp."""
    dy = F.linear(F.linear(x, p0.get("A", layer.A)), dp["B"])
    if "A" in dp and p0["B"].any():            # else the second product, and A's gradient, is zero
        dy = dy + F.linear(F.linear(x, dp["A"]), p0["B"])
    return layer.scale * dy


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


class LinearizedLayer(Adapter):
    """One adapter layer expanded around its present parameters, by jvp, for any adapter.

        y_lin(x; p) = y(x; p0) + J_p y (p - p0),     delta_lin = delta(p0) + J_p delta (p - p0)
    """

    def __init__(self, inner):
        super().__init__(inner.base)
        self.inner, self.p0 = inner, snapshot(inner)

    def expand(self, name, *args):
        """A method of the inner adapter, expanded to first order."""
        return taylor(method(self.inner, name, *args), self.p0,
                      dict(self.inner.named_parameters()))

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
        type(layers[0].inner).before_training([layer.inner for layer in layers], total_steps)

    @classmethod
    def after_backward(cls, layers, step, total_steps):
        type(layers[0].inner).after_backward([layer.inner for layer in layers], step, total_steps)

    @classmethod
    def after_step(cls, layers, step, total_steps):
        type(layers[0].inner).after_step([layer.inner for layer in layers], step, total_steps)


def adapt(encoder, adapter, reading=None, targets=None, *, generator=None, quantizer=None, **hp):
    """Inject an adapter and apply a reading; returns the model to train and the layers' names.

    reading   "off", "layer" or "model"; None is the adapter's own
    The other arguments are those of lora.inject. L-LoRA is the expansion of LoRA.
    """
    reading = lora.find(adapter).linearize if reading is None else reading
    if reading not in READINGS:
        raise unknown("linearization", reading, READINGS)
    name = "lora" if adapter == "l_lora" else adapter
    closed = LAYER_FORMS.get(name) if reading == "layer" else None
    if reading != "off" and "detach" in lora.hyperparameters(lora.find(name)):
        hp["detach"] = False                  # of DoRA: a detached norm would have no tangent
    layers = lora.inject(encoder, closed or name, targets, generator=generator,
                         quantizer=quantizer, **hp)
    if reading == "layer" and not closed:
        for layer in layers:
            encoder.set_submodule(layer, LinearizedLayer(encoder.get_submodule(layer)))
    whole = DualModel if lora.find(name).weight_edit else LinearizedModel
    return (whole(encoder) if reading == "model" else encoder), layers


def encoder_of(model):
    """The encoder itself, out of a LinearizedModel if there is one."""
    return model.model if isinstance(model, LinearizedModel) else model


def param_groups(model, lr, wd):
    """Optimizer groups of all adapters of a model, linearized or not."""
    layers = adapters(encoder_of(model)).values()
    groups = [g for layer in layers for g in layer.param_groups(lr, wd)]
    return undecayed(groups, model.model, model.p0) if model is not encoder_of(model) else groups


def set_start(model, start):
    """Set the expansion point of a rebuilt model, {parameter name: tensor}."""
    p0 = {n: start[n].to(p) for n, p in trainable(encoder_of(model)).items()}
    if isinstance(model, LinearizedModel):
        model.p0 = p0
    for name, layer in adapters(encoder_of(model)).items():
        if isinstance(layer, LinearizedLayer):
            layer.p0 = {k: p0[f"{name}.inner.{k}"] for k in layer.p0}
