"""Grader of stage 2, against adapters/pissa.py and adapters/dora.py."""

import torch
from torch import nn

from adapters.dora import DoRA
from adapters.milora import MiLoRA
from adapters.pissa import PiSSA
from grader import check, draw, mapped, t


def made(cls, **hp):
    """An adapter of rank 2 and s = 3 on 5 inputs and 4 outputs, its W0, and what it trains."""
    base = nn.Linear(5, 4, bias=False).double()
    base.weight.data = draw(4, 5)
    layer = cls(base, rank=2, alpha=6.0, generator=torch.Generator().manual_seed(0), **hp)
    for seed, p in enumerate((layer.A, layer.B)):
        p.data += draw(*p.shape, seed=seed + 1)
    return layer, base.weight, {k: p for k, p in layer.named_parameters() if p.requires_grad}


def test_pissa_start(stage):
    (layer, W0, _), (least, _, _) = made(PiSSA), made(MiLoRA)
    A0, B0 = stage.pissa_start(W0, 2, 3.0)
    assert A0.shape == (2, 5) and B0.shape == (4, 2), "pissa_start: A0 is (r, in), B0 (out, r)"
    part, (U, S, VT) = 3 * layer.B0 @ layer.A0, torch.linalg.svd(W0, full_matrices=False)
    check(3 * B0 @ A0, part, "pissa_start, s B0 A0", {
        "S_r is not divided by s before the root": 3 * part, "S_r is multiplied by s": 9 * part,
        "it is S_r / s, yours is s / S_r": 9 * U[:, :2] / S[:2] @ VT[:2],
        "S_r / s is 1: has s, the argument, become the singular values?": 3 * U[:, :2] @ VT[:2],
        "the smallest singular values are taken (MiLoRA does)": 3 * least.B0 @ least.A0})
    a, b = A0.norm(dim=1), B0.norm(dim=0)
    check(a, b, "pissa_start", {"A0 holds all of S_r / s, each factor takes a root": a * b,
                                "B0 holds all of S_r / s, each factor takes a root": b / b})


def test_pissa_delta(stage):
    layer, _, p = made(PiSSA)
    want, taken = layer.delta_weight(), 3 * layer.B0 @ layer.A0
    check(stage.pissa_delta(p["A"], p["B"], layer.A0, layer.B0, 3.0), want, "pissa_delta", {
        "s B0 A0 is not subtracted, delta starts at zero": want + taken,
        "the sign of s B0 A0 is wrong, it was taken out of W0": want + 2 * taken,
        "the sign is wrong, it is B A - B0 A0": -want, "the scale s is missing": want / 3})


def test_dora_start(stage):
    check(stage.dora_start(torch.stack([t(3, 4, 0), t(0, 0, 2)])), t(5, 2), "dora_start", {
        "the root is missing": t(25, 4), "these are sums of |entries|": t(7, 2)})


def test_dora_weight(stage):
    layer, W0, p = made(DoRA)
    m, V = layer.m * 1.5, W0 + 3 * layer.B @ layer.A
    n = V.norm(dim=1)
    want = 1.5 * (W0 + layer.delta_weight())
    check(stage.dora_weight(W0, m, p["A"], p["B"], 3.0), want, "dora_weight", {
        "n is the length of the rows of V, not of W0": V * 1.5, "n is missing": m[:, None] * V,
        "n is squared": want / n[:, None], "m is missing": want / m[:, None]})


def test_dora_gradient(stage):
    def gradient(weight, p):
        assert weight.requires_grad, "dora_weight: nothing has a gradient, detach n alone"
        (weight * draw(4, 5, seed=7)).sum().backward()
        return mapped(lambda q: torch.zeros_like(q) if q.grad is None else q.grad, p)
    (through, _, q), (layer, W0, p), (_, _, new) = made(DoRA, detach=False), made(DoRA), made(DoRA)
    other, want = gradient(through.delta_weight(), q), gradient(layer.delta_weight(), p)
    got = stage.dora_weight(W0, new["m"], new["A"], new["B"], 3.0)
    check(gradient(got, new), want, "dora_weight, its gradient", {
        "it goes through n, detach n": other,
        "it does not reach A and B, detach n and not V": mapped(torch.mul, want, {
            "A": 0, "B": 0, "m": 1})})
