"""Grader of stage 7, against rules/adamerging.py and torch.func.grad."""

import torch

from grader import check, draw, mapped, t, untouched
from merge import add, weighted_sum
from rules import adamerging

BASE, *TAUS = ({"w": draw(3, 4, seed=s), "b": draw(3, seed=s + 10)} for s in range(3))
LAM, X = t(0.3, 0.6), draw(7, 4, seed=20)
LEAF = LAM.clone().requires_grad_()


def loss(theta):
    """The mean entropy of a linear classifier."""
    return adamerging.entropy(X @ theta["w"].T + theta["b"]).mean()


def theta(lam):
    return weighted_sum(BASE, TAUS, list(lam))


def derivative(at, vectors=TAUS):
    """(<dL/dtheta at `at`, vector>) for every vector."""
    g = torch.func.grad(loss)(at)
    return torch.stack([sum((g[k] * v[k]).sum() for k in g) for v in vectors])


def test_entropy(stage):
    logits = draw(2, 3, 4)
    want = adamerging.entropy(logits)
    check(stage.entropy(logits), want, "entropy", {
        "the sign is wrong, entropy is positive": -want, "it is in bits": want / t(2).log(),
        "it is the mean over the classes, not the sum": want / 4})
    assert stage.entropy(t(1000, 0)).isfinite(), "entropy: 0 log 0 is NaN, use log_softmax"
    slope = lambda h: torch.func.grad(lambda z: h(z).sum())(logits)
    check(slope(stage.entropy), slope(adamerging.entropy), "entropy, its gradient", {
        "it is zero, detach nothing": 0 * logits})


def test_merged(stage):
    got = untouched(stage.merged, BASE, TAUS, LEAF)
    check(got, theta(LAM), "merged", {
        "the sign is wrong, task vectors are added": theta(-LAM), "lam is not used": theta(t(1, 1)),
        "base is missing": mapped(torch.sub, theta(LAM), BASE),
        "this is the mean over the tasks, not the sum": theta(LAM / 2)})


def test_gradient(stage):
    got, want = untouched(stage.gradient, loss, BASE, TAUS, LEAF), derivative(theta(LAM))
    check(got, want, "gradient", {
        "the sign is wrong, dL/dlam_t is + <dL/dtheta, tau_t>": -want,
        "dL/dtheta is taken at theta_0, take it at theta(lam)": derivative(BASE),
        "it is multiplied by lam once more": LAM * want,
        "the inner product is a mean, it is a sum over all entries": want / 15,
        "the inner product is with theta_t, it is with tau_t":
        derivative(theta(LAM), [add(tau, BASE) for tau in TAUS])}, lambda: test_merged(stage))
    got = stage.gradient(loss, BASE, TAUS, LAM.float())
    assert got.dtype == torch.float32, f"gradient is {got.dtype} for a lam of torch.float32"


def test_descend(stage):
    got, (want, up) = untouched(stage.descend, loss, BASE, TAUS, LEAF, lr=0.1, steps=3), (LAM, LAM)
    for _ in range(3):
        want, up = want - 0.1 * derivative(theta(want)), up + 0.1 * derivative(theta(up))
    check(got, want, "descend", {"the sign is wrong, it climbs": up}, lambda: test_gradient(stage))


def test_descend_clips(stage):
    """L = w_1^2 + 3/2 (w_2 - 1)^2: the first step goes from 1/2 to -1/2 and to 2."""
    taus, bowl = [{"w": t(1, 0)}, {"w": t(0, 1)}], lambda p: (p["w"] - t(0, 1)).square() @ t(1, 1.5)
    got = stage.descend(bowl, {"w": t(0, 0)}, taus, t(0.5, 0.5), lr=1, steps=2)
    check(got, t(0, 1), "descend", {
        "lam is not clipped to [0, 1] after the step": t(0.5, -1),
        "lam is clipped after the last step alone": t(0.5, 0),
        "lam is above 1, clip it to [0, 1]": t(0, 0), "lam is below 0, clip it": t(0.5, 1),
        "the sign is wrong, it climbs": t(1, 0)}, lambda: test_gradient(stage))
