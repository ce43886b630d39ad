"""Grader of stage 5, against merge.py."""

import torch

import merge
from grader import check, draw, mapped, t, untouched

BASE, *TAUS = ({"w": draw(4, 5, seed=s), "b": 0.2 * draw(5, seed=s + 10)} for s in range(4))


def test_trim(stage):
    """Half of six entries: 5, 4 and -3, whichever tensor they are in."""
    got = untouched(stage.trim, {"a": t(5, -3, 4, 2), "b": t(1, -0.5)}, density=0.5)
    check(got, {"a": t(5, -3, 4, 0), "b": t(0, 0)}, "trim", {
        "the sign counts, it should be the magnitude": {"a": t(5, 0, 4, 2), "b": t(0, 0)},
        "every tensor is trimmed by itself, n counts them together":
        {"a": t(5, 0, 4, 0), "b": t(1, 0)},
        "the smallest entries are kept": {"a": t(0, 0, 0, 2), "b": t(1, -0.5)},
        "the sign is lost, magnitudes are returned": {"a": t(5, 3, 4, 0), "b": t(0, 0)}})


def test_elect(stage):
    want, signs = mapped(torch.sign, merge.total(TAUS)), [mapped(torch.sign, v) for v in TAUS]
    check(untouched(stage.elect, TAUS), want, "elect", {
        "the sign is wrong, it is that of the sum": mapped(torch.neg, want),
        "tasks are counted, the sum of the entries decides": merge.elect(signs)})


def test_elect_where_the_sum_is_zero(stage):
    """Sums 2, 5, 0, 0: most are positive; -2, -5, 0, 0; and 1, -1, 0."""
    for sign in (1, -1):
        got = stage.elect([{"w": sign * t(1, 2, 1, 0)}, {"w": sign * t(1, 3, -1, 0)}])
        check(got, {"w": t(sign, sign, sign, sign)}, "elect", {
            "0 is left where the sum is 0, the majority decides": {"w": t(sign, sign, 0, 0)},
            "where the sum is 0 the sign is that of the majority, yours is the opposite":
            {"w": t(sign, sign, -sign, -sign)}})
    check(stage.elect([{"w": t(1, -1, 0)}]), {"w": t(1, -1, 1)}, "elect, as many + as -")


def test_disjoint_mean(stage):
    """Columns: three agree, one does not, one is 0, none has the sign; and signs of -1."""
    taus = [{"w": t(1, -9, 0, -1)}, {"w": t(2, 2, 2, -2)}, {"w": t(6, 4, 6, 0)}]
    check(stage.disjoint_mean(taus, {"w": t(1, 1, 1, 1)}), {"w": t(3, 3, 4, 0)}, "disjoint_mean", {
        "it is divided by T, not by the number of tasks that agree": {"w": t(3, 2, 8 / 3, 0)},
        "it is a sum, divide by the number of tasks that agree": {"w": t(9, 6, 8, 0)},
        "entries of the other sign are counted in": {"w": t(3, -1, 4, -1.5)},
        "the entries that oppose the sign are kept, not those that have it":
        {"w": t(0, -9, 0, -1.5)}})
    check(stage.disjoint_mean(taus, {"w": t(-1, -1, -1, -1)}), {"w": t(0, -9, 0, -1.5)},
          "disjoint_mean", {"gamma is ignored, positive entries are kept": {"w": t(3, 3, 4, 0)}})


def test_ties(stage):
    merged = lambda **kw: merge.RULES["ties"](BASE, TAUS, **{"density": 0.4, "lam": 0.5} | kw)
    want, signs = merged(), merge.elect(TAUS)
    early = [mapped(merge.agreeing, merge.trim(tau, 0.4), signs) for tau in TAUS]
    early = mapped(lambda *v: merge.disjoint_mean(v), *early)
    check(untouched(stage.ties, BASE, TAUS, density=0.4, lam=0.5), want, "ties", {
        "nothing is trimmed": merged(density=1.0), "lam is not used": merged(lam=1.0),
        "density is 0.2 whatever is given": merged(density=0.2),
        "base is missing": mapped(torch.sub, want, BASE),
        "the sign is elected before trimming": merge.add(BASE, early, 0.5)})
