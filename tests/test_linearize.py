"""The two readings of partial linearization: superposition, closed form, dead gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F

import lora
from linearize import (DualModel, LinearizedLayer, LinearizedModel, adapt, encoder_of, param_groups,
                       snapshot, taylor, undecayed)
from lora import ADAPTERS, NotMergeable
from support import (SHAPES, adapted, close, displacement, every_adapter, every_weight_edit,
                     inputs, make, moved, perturb, placed, refuses, small, sums_and_differences,
                     train_steps)

readings = pytest.mark.parametrize("reading", ["layer", "model"])


def images():
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@every_adapter
def test_superposition_holds_for_the_whole_model(encoder, name):
    together, apart = sums_and_differences(adapted(encoder, name, "model"), images())
    assert together.abs().max() > 1e-3
    close(together, apart, atol=1e-10, rtol=0)


@every_adapter
def test_superposition_fails_for_the_layer_reading(encoder, name):
    together, apart = sums_and_differences(adapted(encoder, name, "layer"), images())
    assert (together - apart).abs().max() > 1e-4


@every_adapter
@readings
def test_value_and_first_derivative_at_the_expansion_point(encoder, name, reading):
    """f_lin(p0 + h v) = f(p0) + h df/dv, the derivative from central differences of f itself."""
    plain = adapted(copy.deepcopy(encoder), name, "off")
    linear = adapted(encoder, name, reading)
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    start = {n: p.detach().clone() for n, p in lora.trainable(plain).items()}
    rename = lambda tau: {n: t for n, t in zip(lora.trainable(encoder_of(linear)), tau.values())}
    v, h = displacement(plain, 1, 1.0), 1e-4
    step = lambda s: {n: s * t for n, t in v.items()}
    with torch.no_grad():
        f0 = placed(plain, start)(x)
        slope = (placed(plain, start, step(h))(x) - placed(plain, start, step(-h))(x)) / (2 * h)
        close(placed(linear, rename(start))(x), f0, atol=1e-12, rtol=0)
        at_h = placed(linear, rename(start), rename(step(1e-6)))(x)
    close((at_h - f0) / 1e-6, slope, atol=2e-4, rtol=1e-3)


def lora_pair(shape=(7, 5, True)):
    """A LoRA layer with A0, B0 both away from zero, its closed form and its jvp, moved alike."""
    plain = perturb(make("lora", shape))
    closed = make("l_lora", shape)
    with torch.no_grad():
        for leaf in ("A", "B"):
            getattr(closed, leaf).copy_(getattr(plain, leaf))
            getattr(closed, f"{leaf}0").copy_(getattr(plain, leaf))
    generic = LinearizedLayer(plain)
    perturb(closed, seed=9), perturb(generic, seed=9)
    return closed, generic


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_closed_form_is_the_jvp_of_the_lora_layer(shape):
    closed, generic = lora_pair(shape)
    x, _ = inputs(closed)
    assert torch.equal(closed.A, generic.inner.A) and closed.B0.abs().min() > 0
    close(closed(x), generic(x), atol=1e-12, rtol=0)
    close(closed.delta_weight(), generic.delta_weight(), atol=1e-12, rtol=0)


def test_closed_form_has_the_gradient_of_the_jvp():
    closed, generic = lora_pair()
    x, target = inputs(closed)
    for layer in (closed, generic):
        F.mse_loss(layer(x), target).backward()
    close(closed.A.grad, generic.inner.A.grad, atol=1e-12, rtol=0)
    close(closed.B.grad, generic.inner.B.grad, atol=1e-12, rtol=0)
    assert closed.A.grad.abs().max() > 1e-3                  # with B0 != 0 A is alive


@every_weight_edit
def test_layer_taylor_forward_is_its_dense_edit(name):
    layer = LinearizedLayer(moved(name, (7, 5, True)))
    perturb(layer, seed=4)
    x, _ = inputs(layer)
    change = layer.delta_bias()
    bias = layer.base.bias if change is None else layer.base.bias + change
    dense = F.linear(x, layer.base.weight + layer.delta_weight(), bias)
    close(layer(x), dense, atol=1e-12, rtol=0)


@every_adapter
def test_the_first_step_of_an_expanded_layer_is_that_of_the_layer(name):
    """At p0 value and gradient agree, so the step and all that the hooks leave behind agree."""
    hp = {"project": True} if name == "lora_fa" else {}
    plain, layer = make(name, (7, 5, True), **hp), LinearizedLayer(make(name, (7, 5, True), **hp))
    layer.before_training([layer], 3)
    train_steps(plain, 1), train_steps(layer, 1)
    expected, found = plain.state_dict(), layer.inner.state_dict()
    assert expected.keys() == found.keys()
    for k in expected:
        close(found[k], expected[k], atol=1e-10, rtol=0)


@readings
@pytest.mark.parametrize("name", ["lora", "l_lora"])
def test_A_gets_no_gradient_and_survives_weight_decay(encoder, name, reading):
    """B0 = 0: grad A is exactly zero in both readings; AdamW with decay leaves A alone, moves B."""
    model = adapted(encoder, name, reading, away=0)
    inner = encoder_of(model)
    optimizer = torch.optim.AdamW(param_groups(model, 1e-2, 0.5))
    before = {n: p.detach().clone() for n, p in lora.trainable(inner).items()}
    x = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        for n, p in lora.trainable(inner).items():
            if n.endswith(".A"):
                assert p.grad is None or not p.grad.any(), n     # no path to A, or exactly zero
        optimizer.step()
    for n, p in lora.trainable(inner).items():
        assert torch.equal(p, before[n]) == n.endswith(".A"), n


def test_weight_decay_is_kept_where_the_start_is_zero():
    layer = make("lora", (7, 5, True))
    groups = undecayed(layer.param_groups(0.1, 0.5), layer, snapshot(layer))
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay == {id(layer.A): 0.0, id(layer.B): 0.5}


def test_both_readings_agree_for_a_single_layer():
    """With one layer and nothing after it, the network is the layer."""
    closed, plain = make("l_lora", (7, 5, True)), make("lora", (7, 5, True))
    model = LinearizedModel(torch.nn.Sequential(plain))
    perturb(closed, seed=2), perturb(model, seed=2)
    x, _ = inputs(closed)
    close(closed(x), model(x), atol=1e-12, rtol=0)


def test_expanding_lora_or_its_expansion_gives_the_same_model(encoder):
    x, outputs = torch.rand(2, 1, 28, 28, dtype=torch.float64), []
    for name in ("lora", "l_lora"):
        inner = copy.deepcopy(encoder)
        lora.inject(inner, name, generator=torch.Generator().manual_seed(0), **small(name))
        outputs.append(perturb(LinearizedModel(inner), 0.1)(x))
    a, b = outputs
    close(a, b, atol=1e-10, rtol=0)


def test_taylor_of_a_polynomial():
    """f(p) = p0^2 p1 around (1, 2), moved to (3, 5): 2 + 4 * 2 + 1 * 3 = 13."""
    f = lambda p: p["a"] ** 2 * p["b"]
    t = lambda a, b: {"a": torch.tensor(a), "b": torch.tensor(b)}
    assert taylor(f, t(1.0, 2.0), t(3.0, 5.0)) == 13.0


def test_layer_form_is_not_inherited():
    """A subclass of LoRA that declares no closed form gets the generic jvp, not its parent's."""
    class Doubled(lora.LoRA):
        def delta_weight(self):
            return 2 * super().delta_weight()

    ADAPTERS["doubled"] = Doubled
    try:
        model, _ = adapt(torch.nn.Sequential(torch.nn.Linear(4, 4)), "doubled", "layer", rank=2)
    finally:
        del ADAPTERS["doubled"]
    assert isinstance(model[0], LinearizedLayer) and isinstance(model[0].inner, Doubled)


# ---- what must be refused ------------------------------------------------------------------------

def test_a_dense_change_of_a_model_linearized_as_a_whole_is_refused(encoder):
    model, _ = adapt(encoder, "l_lora")
    assert isinstance(model, DualModel)                              # its own reading: the model
    with pytest.raises(NotMergeable, match="--space adapter"):
        lora.deltas(model)


def test_a_second_adapter_on_one_model_is_refused(encoder):
    adapt(encoder, "lora")
    refuses("has adapters already", adapt, encoder, "dora")


def test_copies_of_a_linearized_model_are_apart(encoder):
    """A copy keeps its twin on its own tensors: moving one leaves the other where it is."""
    model, _ = adapt(encoder, "l_lora")
    x = torch.rand(2, 1, 28, 28, dtype=torch.float64)
    other, before = copy.deepcopy(model), model(x)
    perturb(other)
    assert torch.equal(model(x), before) and not torch.allclose(other(x), before)
    definition = LinearizedModel(other.model)
    definition.p0 = other.p0
    close(other(x), definition(x))
