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
        "tensors are trimmed one by one, not together": {"a": t(5, 0, 4, 0), "b": t(1, 0)},
        "the smallest entries are kept": {"a": t(0, 0, 0, 2), "b": t(1, -0.5)},
        "the sign is lost, magnitudes are returned": {"a": t(5, 3, 4, 0), "b": t(0, 0)}})
    for density, want in ((0.5, 2), (0.7, 4), (1, 5), (0.1, 0)):      # of 5: 2.5, 3.5, 5 and 0.5
        kept = len(stage.trim({"a": t(1, 2, 3, 4, 5)}, density)["a"].nonzero())
        assert kept == want, f"trim: round({density} * 5) is {want} in Python, you keep {kept}"


def test_elect(stage):
    want, signs = mapped(torch.sign, merge.total(TAUS)), [mapped(torch.sign, v) for v in TAUS]
    check(untouched(stage.elect, TAUS), want, "elect", {
        "the sign is wrong, it is that of the sum": mapped(torch.neg, want),
        "tasks are counted, the sum of the entries decides": merge.elect(signs)})


def test_elect_zero(stage):
    """Sums (0, -9), (0, 1, 1, 1): + if their signs are added, - if they are, or entries' signs."""
    for s in (1, -1):
        one, other = ({"w": s * t(2, -9), "b": s * t(-2, 3, 3, 3)},
                      {"w": s * t(-1, 0), "b": s * t(1, -1, -1, -1)})
        votes = lambda w, b: {"w": s * t(w, -1), "b": s * t(b, 1, 1, 1)}
        check(stage.elect([one, other, other]), votes(1, 1), "elect", {
            "0 is left where the sum is 0, the majority decides": votes(0, 0),
            "where the sum is 0, all entries of all tensors make one majority": votes(-1, 1),
            "where the sum is 0, add up sign(sum_t tau_t), yours is the opposite": votes(-1, -1)})
    check(stage.elect([{"w": t(1, -1, 0)}]), {"w": t(1, -1, 1)}, "elect, as many + as -")


def test_disjoint_mean(stage):
    """Columns: three agree, one does not, one is 0, none has the sign; and signs of -1."""
    taus = [{"w": t(1, -9, 0, -1)}, {"w": t(2, 2, 2, -2)}, {"w": t(6, 4, 6, 0)}]
    got = untouched(stage.disjoint_mean, taus, {"w": t(1, 1, 1, 1)})
    check(got, {"w": t(3, 3, 4, 0)}, "disjoint_mean", {
        "an entry of 0 is counted, it has no sign": {"w": t(3, 3, 8 / 3, 0)},
        "it is divided by T, not by the number of tasks that agree": {"w": t(3, 2, 8 / 3, 0)},
        "it is a sum, divide by the number of tasks that agree": {"w": t(9, 6, 8, 0)},
        "entries of the other sign are counted in": {"w": t(3, -1, 4, -1.5)},
        "the entries that oppose the sign are kept": {"w": t(0, -9, 0, -1.5)}})
    check(stage.disjoint_mean(taus, {"w": t(-1, -1, -1, -1)}), {"w": t(0, -9, 0, -1.5)},
          "disjoint_mean", {"gamma is ignored, positive entries are kept": {"w": t(3, 3, 4, 0)}})


def test_ties(stage):
    merged = lambda **kw: merge.RULES["ties"](BASE, TAUS, **{"density": 0.4, "lam": 0.5} | kw)
    want, signs = merged(), merge.elect(TAUS)
    first = lambda: [test(stage) for test in (test_trim, test_elect, test_disjoint_mean)]
    early = [mapped(merge.agreeing, merge.trim(tau, 0.4), signs) for tau in TAUS]
    early = mapped(lambda *v: merge.disjoint_mean(v), *early)
    check(untouched(stage.ties, BASE, TAUS, density=0.4, lam=0.5), want, "ties", {
        "nothing is trimmed": merged(density=1.0), "lam is not used": merged(lam=1.0),
        "density is 0.2 whatever is given": merged(density=0.2),
        "base is missing": mapped(torch.sub, want, BASE),
        "the sign is elected before trimming": merge.add(BASE, early, 0.5)}, first)
    check(stage.ties(BASE, TAUS), merge.RULES["ties"](BASE, TAUS),
          "ties, density = 0.2 and lam = 1 by default")
