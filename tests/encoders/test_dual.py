"""Every rule of dual.py, and whole linearized models, against torch.func.jvp in float64."""


import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jvp

import encoders
from encoders.dual import RULES, Dual
from encoders.nf4 import QuantLinear
from linearize import DualLayer, DualModel, adapt, encoder_of, snapshot, taylor
from lora import ADAPTERS, Adapter, LoRA, inject, trainable
from support import TINY, adapted, close, every_adapter, perturb, refuses, text_encoder

W, B, E = (torch.randn(s, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
           for s in ((5, 4), (5,), (2, 4, 3)))
CASES = {                                        # name of a rule -> functions of one (2, 3, 4)
    "view": [lambda x: x.view(2, 12)],
    "reshape": [lambda x: x.transpose(0, 2).reshape(4, 6)],
    "transpose": [lambda x: x.transpose(1, 2)],
    "sum": [lambda x: x.sum(1)],
    "__getitem__": [lambda x: x[:, 0], lambda x: x[..., 1:]],
    "add": [lambda x: E.transpose(1, 2) + x, lambda x: torch.add(x, x.softmax(-1))],
    "__add__": [lambda x: x + E.transpose(1, 2), lambda x: x + x.softmax(-1), lambda x: x + 2],
    "__radd__": [lambda x: 2 + x],
    "mul": [lambda x: B[:4] * x, lambda x: torch.mul(x, F.gelu(x))],
    "__mul__": [lambda x: x * B[:4], lambda x: x * x, lambda x: x * 3],
    "__rmul__": [lambda x: 1.7 * x],
    "matmul": [lambda x: E @ x, lambda x: torch.matmul(x, E)],
    "__matmul__": [lambda x: x @ E, lambda x: x @ x.transpose(1, 2)],
    "neg": [torch.neg],
    "__neg__": [lambda x: -x],
    "sub": [lambda x: torch.sub(E.transpose(1, 2), x), lambda x: torch.sub(x, 2)],
    "__sub__": [lambda x: x - x.softmax(-1), lambda x: x - 1],
    "__rsub__": [lambda x: 1 - x],
    "rsub": [lambda x: torch.rsub(x, 1)],
    "div": [lambda x: torch.div(x, 3)],
    "__truediv__": [lambda x: x / 3, lambda x: x / B[:4]],
    "linear": [lambda x: F.linear(x, W, B), lambda x: F.linear(x, W)],
    "softmax": [lambda x: x.softmax(-1), lambda x: torch.softmax(x, 1)],
    "layer_norm": [lambda x: F.layer_norm(x, (4,), B[:4], W[0], 1e-5)],
    "gelu": [F.gelu],
    "sigmoid": [torch.sigmoid],
}


def pair():
    """z and dz, (2, 3, 4); z with a large offset in one row, which softmax and LayerNorm undo."""
    z, dz = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z[0, 0] += 50
    return z, dz


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    z, dz = pair()
    for f in CASES[name]:
        y = f(Dual(z, dz))
        want, dwant = jvp(f, (z,), (dz,))
        close(y.z, want, atol=1e-13, rtol=1e-13)
        close(y.dz, dwant, atol=1e-12, rtol=1e-12)
        assert y.shape == want.shape


def test_product_rule_by_hand():
    """(2 + 3e)(2 + 3e) = 4 + 12e and (2 + 3e) / 4 = 0.5 + 0.75e."""
    x = Dual(torch.tensor(2.0), torch.tensor(3.0))
    assert ((x * x).z, (x * x).dz, (x / 4).z, (x / 4).dz) == (4, 12, 0.5, 0.75)


def clip():
    """A small ViT with everything that a published one may have: CLIP's input, LayerScale."""
    torch.manual_seed(3)
    more = dict(layer_scale=True, activation="quick_gelu", clip=True)
    model = encoders.ViT(**TINY | more).double()
    for block in model.blocks:
        nn.init.normal_(block.ls1), nn.init.normal_(block.ls2)
    return model


IMAGES = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IDS = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 9, 3, 11, 12, 3], [2, 8, 3, 0, 0, 0]])
ENCODERS = {"vit": (lambda: encoders.ViT(**TINY).double(), IMAGES), "clip": (clip, IMAGES),
            "bert": (lambda: text_encoder().double(), IDS)}


def compare(model, x):
    """Output and gradients of a DualModel against taylor, away from the expansion point."""
    encoder = perturb(encoder_of(model), 0.1, seed=5)
    p = trainable(encoder)
    ours = model(x)
    definition = taylor(lambda p: functional_call(encoder, p, (x,)), model.p0, p)
    close(ours, definition, atol=1e-10, rtol=1e-10)
    moves = (definition - functional_call(encoder, model.p0, (x,))).abs().max()
    assert moves > 1e-3                                            # the tangent is there
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3)).to(ours)
    grads = [torch.autograd.grad((y * weights).sum(), p.values(), allow_unused=True,
                                 materialize_grads=True) for y in (ours, definition)]
    for name, a, b in zip(p, *grads):
        close(a, b, atol=1e-10, rtol=1e-9, msg=lambda m: f"{name}: {m}")
    assert max(g.abs().max() for g in grads[0]) > 1e-3


@every_adapter
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_linearized_model_is_its_taylor_expansion(kind, name):
    make, x = ENCODERS[kind]
    torch.manual_seed(3)
    compare(adapted(make(), name, "model", x=x[:1]), x)


@pytest.mark.parametrize("targets", ["q,v", "blocks.1.fc2", "k,out,fc1"])
def test_layers_without_an_adapter_pass_tangents_on(targets):
    """A value without a tangent (here k or v, or the first block) is a constant."""
    encoder = ENCODERS["vit"][0]()
    model, _ = adapt(encoder, "lora", "model", targets, generator=torch.Generator().manual_seed(0))
    perturb(encoder)
    model.p0 = snapshot(encoder)
    compare(model, IMAGES)


def test_a_quantised_base():
    encoder = ENCODERS["vit"][0]()
    model, _ = adapt(encoder, "pissa", "model", generator=torch.Generator().manual_seed(0),
                     quantizer=QuantLinear, rank=2)
    compare(model, IMAGES)


def test_a_new_delta_does_not_inherit_a_closed_form():
    """A subclass of LoRA with a delta of its own is differentiated, not taken for LoRA."""
    class Squared(LoRA):
        def delta_weight(self):
            return super().delta_weight() ** 2

        forward = Adapter.forward

    class Shifted(LoRA):
        def delta_bias(self):
            return self.B.sum(1)

    low_rank = lambda cls: DualLayer(cls(nn.Linear(8, 8))).low_rank
    assert low_rank(LoRA) and not low_rank(Squared) and not low_rank(Shifted)
    ADAPTERS["squared"] = Squared
    try:
        encoder = ENCODERS["vit"][0]()
        inject(encoder, "squared", generator=torch.Generator().manual_seed(0))
    finally:
        del ADAPTERS["squared"]
    compare(DualModel(perturb(encoder)), IMAGES)


def test_autograd_records_no_values(encoder):
    """The value of the output has no graph; its tangent has."""
    outputs = []
    model, _ = adapt(encoder, "lora", "model", generator=torch.Generator().manual_seed(0))
    model.twin[0].norm.register_forward_hook(lambda module, args, y: outputs.append(y))
    model(IMAGES)
    assert outputs[0].z.grad_fn is None and outputs[0].dz.grad_fn is not None


def test_an_operation_without_a_rule_is_named():
    model, _ = adapt(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "lora", "model", rank=2)
    refuses("tanh of a model .* dual.py has no rule", model, torch.ones(1, 4))
    x = Dual(*pair())
    for operation in (lambda: x.tanh(), lambda: torch.exp(x), lambda: x / x, lambda: E / x):
        refuses("no rule", operation)
    assert isinstance(model.model[0](torch.ones(1, 4)), torch.Tensor)
