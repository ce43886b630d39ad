"""Grader of stage 6, against rules/fisher.py and numbers by hand."""

import math

import torch
import torch.nn.functional as F

from grader import check, draw, mapped, t
from rules.fisher import diagonal_fisher

ODDS = {"w": t(math.log(3))}                       # p = (3/4, 1/4), d log p / dw = (1/4, -3/4)


def two_classes(p, x):
    return torch.stack([p["w"] * x, 0 * x], -1)


def test_true_fisher(stage):
    """3/4 (1/4)^2 + 1/4 (3/4)^2 = 3/16."""
    check(stage.true_fisher(two_classes, ODDS, t(1)), {"w": t(3 / 16)}, "true_fisher", {
        "it is zero, the square comes before the mean over the classes": {"w": t(0)},
        "classes count alike, weight each by p(c|x)": {"w": t(10 / 16)},
        "classes count 1/C each, weight each by p(c|x)": {"w": t(5 / 16)},
        "it is divided by n C, divide by n": {"w": t(3 / 32)},
        "p(c|x) is squared, too, it is in front of the square": {"w": t(9 / 128)},
        "one class alone counts, the likeliest or a sampled one, sum over all": {"w": t(1 / 16)},
        "one class alone counts, a sampled one, sum over all": {"w": t(9 / 16)},
        "the weight is log p(c|x), it is p(c|x)": {"w": t(math.log(0.75 * 0.25 ** 9) / 16)}})


def test_true_fisher_linear(stage):
    linear, params = lambda p, x: F.linear(x, p["W"], p["b"]), {"W": draw(3, 4), "b": draw(3)}
    want = diagonal_fisher(linear, params, draw(6, 4, seed=2))
    check(stage.true_fisher(linear, params, draw(6, 4, seed=2)), want, "true_fisher", {
        "it is the sum over the examples, divide by n": mapped(lambda v: 6 * v, want)})


def test_empirical_fisher(stage):
    """(1/4)^2 where the label is 0, (3/4)^2 where it is 1, 5/16 for one of each."""
    for y, want in (([0], 1 / 16), ([1], 9 / 16), ([0, 1], 5 / 16)):
        got = stage.empirical_fisher(two_classes, ODDS, t(*[1] * len(y)), torch.tensor(y))
        check(got, {"w": t(want)}, f"empirical_fisher, labels {y}", {
            "this is the true Fisher, the labels are given": {"w": t(3 / 16)},
            "the mean gradient is squared, square that of each example": {"w": t(1 / 16)},
            "it is the sum over the examples, divide by n": {"w": t(want * len(y))},
            "the square is missing": {"w": t(y.count(0) / 4 - y.count(1) * 3 / 4) / len(y)},
            "the square is missing, and the sign is the loss's": {
                "w": t(y.count(1) * 3 / 4 - y.count(0) / 4) / len(y)}})


def test_log_trace(stage):
    """log(1 + 2 + 3 + 6)."""
    check(stage.log_trace({"a": t(1, 2), "b": t(3, 6)}), t(12).log()[0], "log_trace", {
        "the logarithm is missing": t(12)[0], "the sign is wrong": -t(12).log()[0],
        "logs are added up, the sum comes first": t(36).log()[0],
        "logs of tensors are added up, the sum comes first": t(27).log()[0],
        "this is the log of the mean, the trace is a sum": t(3).log()[0],
        "the logarithm is to base 10": t(12).log10()[0]})
