"""Grader of stage 8, against rules/fitted.py."""

import torch

from grader import check, draw, t, untouched
from rules.fitted import project_simplex


def causes(v):
    """Points that are not the nearest."""
    shift, rest, u = (v.sum() - 1) / len(v), v.clamp(min=0), v.sort(descending=True).values
    one_rho = {f"rho is the largest j of the inequality, yours is {j}":
               (v - (u[:j].sum() - 1) / j).clamp(min=0) for j in range(1, len(v))}
    return {"clipping at 0 and dividing by the sum is not the nearest point": rest / rest.sum(),
            "a softmax is not the nearest point": v.softmax(0),
            "entries are below 0, take max(., 0)": v - shift,
            "the shift is of all entries, take the rho largest": (v - shift).clamp(min=0)} | one_rho


def test_project(stage):
    """(1.4, -1, 2): rho = 2, shift = (3.4 - 1) / 2 = 1.2."""
    v = t(1.4, -1, 2)
    check(untouched(stage.project, v), t(0.2, 0, 0.8), "project", causes(v) | {
        "the 1 in the shift is missing": t(0, 0, 0.3), "rho counts from 1, not from 0": t(0, 0, 0),
        "the sum of the shift ends with u_rho": t(0.7, 0, 1.3),
        "the order is lost, subtract from v, not from the sorted u": t(0.8, 0.2, 0),
        "entries are below 0, take max(., 0)": t(0.2, -2.2, 0.8),
        "the sign of the shift is wrong, it is subtracted": (v + 1.2).clamp(min=0)})


def test_project_any(stage):
    for v in (t(0.2, 0.3, 0.5), t(0, 1), t(1), *(3 * draw(5, seed=seed) for seed in range(20))):
        check(stage.project(v), project_simplex(v), "project", causes(v))


def test_search(stage):
    """(1/2, 1/2) - (1/2) (1, 0) = (0, 1/2), whose projection is (1/4, 3/4)."""
    got = stage.search(lambda lam: t(1, 0), 2, lr=0.5, steps=1)
    check(got, t(0.25, 0.75), "search, one step", {
        "the sign is wrong, it climbs": t(0.75, 0.25), "the step is not projected": t(0, 0.5),
        "lr is not used, or it is not the projection": t(0, 1)}, lambda: test_project_any(stage))
    start = stage.search(lambda lam: t(1, 0, 0), 3, lr=0.5, steps=0)
    assert start.dtype == torch.float64, "search must return float64"
    check(start, t(1, 1, 1) / 3, "search, no step")


def test_search_converges(stage):
    """The nearest point of the simplex by descent on |lam - v|^2 / 2."""
    v = t(0.7, 0.5, -0.4)
    check(stage.search(lambda lam: lam - v, 3, lr=0.2, steps=200), project_simplex(v), "search", {
        "it leaves the simplex, project after every step": v}, lambda: test_project_any(stage))
