"""Grader of stage 9: what every adapter and every rule of the project must do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lora
import merge
from grader import check, draw, mapped, untouched

BASE, *TAUS = ({"w": draw(3, 2, seed=s), "b": draw(3, seed=s + 10)} for s in range(4))


def adapted(stage, steps=0):
    """(model, inputs, outputs before the adapter, its layers): two layers, after steps of SGD."""
    assert stage.__name__ in lora.ADAPTERS, "no class has @lora.register above it"
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 6, bias=False)).double(), draw(4, 7)
    y = model(x).detach()
    lora.inject(model, stage.__name__)
    parameters = list(lora.trainable(model).values())
    assert parameters, "adapter: nothing is trained: assign an nn.Parameter in __init__"
    for _ in range(steps):
        gradients = torch.autograd.grad(F.mse_loss(model(x), draw(4, 6, seed=1)), parameters)
        for p, g in zip(parameters, gradients):
            p.data -= 0.1 * g
    return model, x, y, list(lora.adapters(model).values())


def rules(stage):
    """The rules that the stage has registered, by name."""
    found = {k: f for k, f in merge.RULES.items() if f.__module__ == stage.__name__}
    assert found, "no function has @merge.rule() above it"
    return found


def test_adapter_start(stage):
    model, x, y, layers = adapted(stage)
    now = model(x).detach()
    check(now, y, "adapter", {"W_eff is not W0 at the start, delta_weight must be zero there": now})
    assert type(layers[0]).__doc__, "adapter: give the class a docstring"


def test_adapter_count(stage):
    for before, layer in zip(adapted(stage)[3], adapted(stage, steps=3)[3]):
        got, want = layer.trainable_count(), sum(p.numel() for p in lora.trainable(layer).values())
        assert got == want, f"trainable_count: it says {got}, {want} numbers are trained"
        assert torch.equal(before.base.weight, layer.base.weight), "adapter: W0 has changed"


def test_adapter_delta(stage):
    for layer in adapted(stage, steps=3)[3]:
        h, delta = draw(2, 3, layer.base.in_features), layer.delta_weight()
        assert delta.any(), "delta_weight: it is still zero after three steps"
        frozen, want = layer.base(h), F.linear(h, layer.base.weight + delta, layer.base.bias)
        check(layer(h), want, "forward", {
            "it leaves out the delta": frozen, "its sign is not delta_weight's": 2 * frozen - want})


def test_rule(stage):
    zero = mapped(torch.zeros_like, BASE)
    for name, rule in rules(stage).items():
        check(rule(BASE, [zero] * 3), BASE, f"{name} of zero task vectors, which is base")
        check(rule(BASE, TAUS[:1]), merge.add(BASE, TAUS[0]), f"{name} of one task vector", {
            "the sign is wrong, it is added": merge.add(BASE, TAUS[0], -1),
            "base is missing": TAUS[0]})
        assert rule.__doc__, f"{name}: give the rule a docstring"
        with pytest.raises(merge.BadInput):
            rule(BASE, [{"w": TAUS[0]["w"]}])


def test_rule_is_new(stage):
    known = (merge.average(BASE, TAUS), merge.task_arithmetic(BASE, TAUS, lam=1.0))
    for name, rule in rules(stage).items():
        once = untouched(rule, BASE, TAUS)
        check(rule(BASE, TAUS[::-1]), once, f"{name} depends on the order of the tasks, and")
        change = mapped(torch.sub, once, BASE)
        check(rule(BASE, TAUS, lam=0.4), merge.add(BASE, change, 0.4), f"{name} at lam = 0.4", {
            "lam is not used": once, "lam scales base, too": mapped(lambda v: 0.4 * v, once)})
        assert not any(torch.allclose(once["w"], old["w"]) for old in known), (
            f"{name} is average or task arithmetic: make something else of the task vectors")
