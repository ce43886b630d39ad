"""Grader of stage 4, against merge.py and analysis/measures.py."""

import torch

from analysis.measures import cosines
from grader import check, draw, mapped, untouched
from merge import add, total

BASE, *TAUS = ({"w": draw(3, 2, seed=s), "b": draw(3, seed=s + 10)} for s in range(4))
SUM = total(TAUS)


def test_task_vector(stage):
    got = untouched(stage.task_vector, BASE, add(BASE, TAUS[0]))
    check(got, TAUS[0], "task_vector", {
        "the sign is wrong, it is fine-tuned minus pretrained": mapped(torch.neg, TAUS[0]),
        "this is a sum, it is fine-tuned minus pretrained": add(add(BASE, TAUS[0]), BASE)})


def test_average(stage):
    check(untouched(stage.average, BASE, TAUS), add(BASE, SUM, 1 / 3), "average", {
        "this is the sum, divide by T": add(BASE, SUM), "base is missing": mapped(
            lambda v: v / 3, SUM), "it is divided by T + 1, base is no task": add(BASE, SUM, 1 / 4),
        "the sign is wrong, task vectors are added": add(BASE, SUM, -1 / 3)})


def test_task_arithmetic(stage):
    got = untouched(stage.task_arithmetic, BASE, TAUS, lam=0.7)
    check(got, add(BASE, SUM, 0.7), "task_arithmetic", {
        "lam is not used": add(BASE, SUM), "lam is 0.3 whatever is given": add(BASE, SUM, 0.3),
        "lam scales the mean, it scales the sum": add(BASE, SUM, 0.7 / 3),
        "lam scales base, too": mapped(lambda v: 0.7 * v, add(BASE, SUM)),
        "the sign is wrong, task vectors are added": add(BASE, SUM, -0.7)})
    check(stage.task_arithmetic(BASE, TAUS), add(BASE, SUM, 0.3),
          "task_arithmetic, lam = 0.3 by default")


def test_forget(stage):
    got = untouched(stage.forget, BASE, TAUS[0], lam=0.7)
    check(got, add(BASE, TAUS[0], -0.7), "forget", {
        "the sign is wrong, what is forgotten is subtracted": add(BASE, TAUS[0], 0.7),
        "lam is not used": add(BASE, TAUS[0], -1)})
    check(stage.forget(BASE, TAUS[0]), add(BASE, TAUS[0], -1), "forget, lam = 1 by default")


def test_cosine(stage):
    a, b = TAUS[:2]
    dot, one = sum((a[k] * b[k]).sum() for k in a), cosines([a, b])[0, 1]
    apart = sum(torch.cosine_similarity(a[k].flatten(), b[k].flatten(), 0) for k in a)
    check(stage.cosine(a, b), one, "cosine", {
        "the lengths are missing": dot, "the sign is wrong": -one, "the sign is lost": one.abs(),
        "these are cosines of single tensors, all entries are one vector": apart / 2,
        "these are cosines of single tensors, added up": apart})
