"""Grader of stage 3, against linearize.taylor."""

import torch

from grader import check, draw, mapped, t
from linearize import taylor

LAYERS = [lambda p, h: torch.tanh(h @ p["first"].T), lambda p, h: torch.tanh(h @ p["second"].T)]
P0, T1, T2 = ({"first": draw(5, 3, seed=s), "second": draw(2, 5, seed=s + 1)} for s in (0, 2, 4))
P, X = mapped(torch.add, P0, T1), draw(4, 3, seed=6)


def network(p):
    return LAYERS[1](p, LAYERS[0](p, X))


def one_by_one(inner):
    """The network's expanded layers at P; the second gets the first's expansion at inner."""
    h = taylor(lambda q: LAYERS[0](q, X), P0, inner)
    return taylor(lambda q: LAYERS[1](q, h), P0, P)


def test_taylor(stage):
    """f = w^2 at 3: 9 + 6 (5 - 3)."""
    got = stage.taylor(lambda p: p["w"] ** 2, {"w": t(3)}, {"w": t(5)})
    check(got, t(21), "taylor", {
        "the sign of p - p0 is wrong": t(-3), "the value f(p0) is missing": t(12),
        "this is f(p), not its expansion": t(25), "the expansion is around p, not p0": t(5),
        "the tangent is p, not p - p0": t(39), "value and Jacobian are taken at p": t(45)})


def test_whole(stage):
    check(stage.whole(LAYERS, P0, P, X), taylor(network, P0, P), "whole", {
        "this is the network itself at p": network(P), "this is the network at p0": network(P0),
        "the layers are expanded one by one": one_by_one(P)}, lambda: test_taylor(stage))


def test_layer_by_layer(stage):
    check(stage.layer_by_layer(LAYERS, P0, P, X), one_by_one(P), "layer_by_layer", {
        "the network is expanded as a whole": taylor(network, P0, P),
        "a layer gets the value at p0, not the expansion of the one before": one_by_one(P0),
        "this is the network itself at p": network(P)}, lambda: test_taylor(stage))


def test_gap(stage):
    """f = w^2 at 1 with 2 and 5: [64 - 1] - [9 - 1] - [36 - 1] = 20 = 2 * 2 * 5."""
    got = stage.gap(lambda p: p["w"] ** 2, {"w": t(1)}, {"w": t(2)}, {"w": t(5)})
    check(got, t(20), "gap", {
        "f(p0) is forgotten, it is added once in all": t(19),
        "the sign of f(p0) is wrong, it is added once in all": t(18),
        "the sign is wrong, the two parts are subtracted from the whole": t(-20),
        "the sign of the first part is wrong": t(36),
        "the sign of the second part is wrong": t(90)})


def test_superposition(stage):
    test_gap(stage), test_whole(stage), test_layer_by_layer(stage)
    size = lambda reading: stage.gap(lambda p: reading(LAYERS, P0, p, X), P0, T1, T2).abs().max()
    whole, layers = size(stage.whole), size(stage.layer_by_layer)
    assert whole < 1e-12, f"whole: the gap is {whole:.2g}, not zero: it is not affine in p"
    assert layers > 0.01, f"layer_by_layer: the gap is {layers:.2g}, so the layers do not interact"
