"""CMA-ES on known functions, and LoRAHub on known objectives."""

import math

import pytest
import torch

from merge import RULES
from rules import lorahub
from rules.coefficients import combine, group_index
from rules.lorahub import cma_es
from support import coefficients, one_weight, refuses, same, small_network, t

f64 = torch.float64


def few_shot(base, taus, functions, labelled, **more):
    """The weights w (T,) that LoRAHub finds."""
    merged = lorahub.lorahub(base, taus, functions=functions, labelled=labelled, **more)
    return coefficients(merged, base, taus, group_index(base, "task")).squeeze(1)


def test_cma_es_on_a_sphere_and_on_a_rotated_ellipsoid():
    """Condition 1e3 along random axes; without learning the covariance it is not done in time."""
    target = t(0.3, -0.7, 1.1, 0, -1.2)
    g = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=f64))[0]
    scale = torch.logspace(0, 3, 5, dtype=f64)
    sphere = lambda x: (x - target).square().sum()
    ellipsoid = lambda x: (scale * (axes.T @ (x - target)).square()).sum()
    for loss, budget in ((sphere, 600), (ellipsoid, 1200)):
        for seed in (0, 1):
            x, value = cma_es(loss, 5, budget=budget, low=-2, high=2, seed=seed)
            assert value < 1e-6 and value == loss(x).item()


def test_cma_es_keeps_to_the_box_and_the_budget():
    """The optimum of sum x^2 + 3 x lies at -1.5, outside: the answer is the corner."""
    seen = []

    def loss(x):
        seen.append(x)
        return x.square().sum() + 3 * x.sum()

    for budget in (1, 2, 11, 150):
        seen.clear()
        x, value = cma_es(loss, 3, budget=budget, low=-1, high=0.5, inject=[[9.0, -9, 0]])
        assert len(seen) == budget and torch.stack(seen).min() >= -1
        assert torch.stack(seen).max() <= 0.5
        assert value == min(v.square().sum() + 3 * v.sum() for v in seen) and x.dtype == f64
    torch.testing.assert_close(x, t(-1.0, -1, -1), atol=1e-3, rtol=0)
    refuses("budget 0", cma_es, loss, 3, budget=0, low=-1, high=1)


def test_cma_es_is_seeded_and_takes_its_start_from_the_best_candidate():
    loss = lambda x: (x - 0.4).square().sum()
    run = lambda seed, **more: cma_es(loss, 2, budget=9, low=-1, high=1, seed=seed, **more)
    assert torch.equal(run(3)[0], run(3)[0]) and not torch.equal(run(3)[0], run(4)[0])
    x, value = run(0, inject=[[1.0, 1], [0.4, 0.4]])
    assert x.tolist() == [0.4, 0.4] and value == 0
    assert cma_es(loss, 2, budget=1, low=-1, high=0)[0].tolist() == [-0.5, -0.5]   # middle
    near, _ = cma_es(loss, 2, budget=9, low=-1, high=1, inject=[[0.5, 0.5]], sigma=1e-3)
    assert (near - 0.5).abs().max() < 0.01


def test_cma_es_only_ranks():
    loss = lambda x: (x - t(0.2, -0.3)).square().sum()
    seen = {}
    for name, bend in (("plain", lambda v: v), ("cubed", lambda v: v ** 3)):
        seen[name] = []
        cma_es(lambda x: seen[name].append(x) or bend(loss(x)), 2, budget=60, low=-1, high=1)
    assert torch.equal(torch.stack(seen["plain"]), torch.stack(seen["cubed"]))


def test_cma_es_never_prefers_nan():
    x, value = cma_es(lambda x: x[0] if x[0] > 0 else x[0] * float("nan"), 1, budget=60, low=-1,
                      high=1, inject=[[0.9]])
    assert 0 < value < 0.1 and value == x.item()


def test_lorahub_composes():
    """w = e_i is adapter i, w = 0 the base; the answer is at least as good as 0, 1/T and .3."""
    base, taus, functions, _, labelled = small_network()
    index, unit = group_index(base, "task"), torch.eye(3, dtype=f64)
    for i in range(3):
        same(combine(base, taus, unit[:, i:i + 1], index), {k: base[k] + taus[i][k] for k in base})
    same(combine(base, taus, torch.zeros(3, 1, dtype=f64), index), base)

    def cost(w):
        theta = combine(base, taus, torch.as_tensor(w, dtype=f64)[:, None], index)
        each = [torch.nn.functional.cross_entropy(f(theta, x[:5]), y[:5])
                for f, (x, y) in zip(functions, labelled)]
        return (sum(each) / 3 + 0.05 * sum(abs(v) for v in w) / 3).item()

    w = few_shot(base, taus, functions, labelled, budget=30, shots=5)
    assert w.abs().max() <= 1.5
    assert cost(w.tolist()) <= min(cost([0, 0, 0]), cost([1 / 3] * 3), cost([0.3] * 3)) - 0.02
    zero = torch.zeros(3, dtype=f64)
    torch.testing.assert_close(few_shot(base, taus, functions, labelled, budget=1), zero)
    floor = min(cost([0, 0, 0]), cost([1 / 3] * 3), cost([0.3] * 3))
    best = few_shot(base, taus, functions, labelled, budget=3, shots=5)
    assert cost(best.tolist()) == pytest.approx(floor)
    box = few_shot(base, taus, functions, labelled, bound=0.1, budget=30)
    assert box.abs().max() <= 0.1 + 1e-9
    torch.testing.assert_close(few_shot(base, taus, functions, labelled, l1=1e3), zero)


def test_lorahub_can_subtract_and_pays_for_it():
    """log(1 + e^3w) + l1 |w|: 3 sigmoid(3w) = l1 at w = -1.359 for .05; the edge for 0; 0 for 9."""
    base, tau, f, pair = one_weight(slope=-3.0)
    for l1, best in ((0.05, -1.359), (0.0, -1.5), (9.0, 0)):
        w = few_shot(base, [tau], [f], [pair], l1=l1)
        assert w.item() == pytest.approx(best, abs=0.03)


@pytest.mark.parametrize("change, told", [
    (dict(functions=[]), "0 functions for 2 task vectors"),
    (dict(labelled=[]), "0 labelled for 2 task vectors"),
    (dict(labelled=[(torch.ones(1, 3), [0]), (torch.ones(0, 3), [])]), "task 1 is empty"),
])
def test_data_that_does_not_fit_is_named(change, told):
    base, taus, functions, _, labelled = small_network(2)
    data = dict(functions=functions, labelled=labelled) | change
    for name in ("fitted", "lorahub"):
        refuses(told, RULES[name], base, taus, **data)


def test_the_rates_of_cma_es_by_hand():
    """n = 10: weights ln 5.5 - ln i over their sum, 1 / sum w^2 = 3.167; arXiv:1604.00772."""
    size, w, mu, c_s, d_s, c_c, c_1, c_mu = lorahub.rates(10)
    assert (size, len(w)) == (10, 5) and w[0].item() == pytest.approx(0.4563, abs=1e-4)
    assert [mu, c_s, d_s, c_c, c_1, c_mu] == pytest.approx(
        [3.1673, 0.28443, 1.28443, 0.29499, 0.015284, 0.020151], rel=2e-3)


@pytest.mark.parametrize("slope", [1.0, 0.0])
def test_cma_es_on_a_line_is_its_equations(slope):
    """One dimension: C, p_s and p_c are numbers, and every population follows from the one before
    by arXiv:1604.00772, eq. 24 to 47. Going down a line |p_s| grows long and h is 0, on a plain of
    equal losses it is not; in one dimension the best half is the best two of four."""
    low, high, seed, sigma = -1e9, 1e9, 3, 0.5
    seen, draws = [], torch.Generator().manual_seed(seed)
    cma_es(lambda x: seen.append(x.item()) or slope * x.item(), 1, budget=1 + 4 * 12, low=low,
           high=high, seed=seed, sigma=sigma)
    size, w, mu, c_s, d_s, c_c, c_1, c_mu = lorahub.rates(1)
    w1, w2 = w.tolist()
    chi, m, C, p_s, p_c, short = 1 - 1 / 4 + 1 / 21, 0.0, 1.0, 0.0, 0.0, []
    for g in range(1, 13):
        z = torch.randn(4, 1, generator=draws, dtype=f64).flatten().tolist()
        x = seen[4 * g - 3:4 * g + 1]
        assert x == pytest.approx([m + sigma * C ** 0.5 * v for v in z], rel=1e-9)
        best = sorted(x)[:2] if slope else x[:2]
        y1, y2 = ((v - m) / sigma for v in best)
        step = w1 * y1 + w2 * y2
        m += sigma * step
        p_s = (1 - c_s) * p_s + (c_s * (2 - c_s) * mu) ** 0.5 * step / C ** 0.5
        h = abs(p_s) / (1 - (1 - c_s) ** (2 * g)) ** 0.5 < (1.4 + 2 / 2) * chi
        p_c = (1 - c_c) * p_c + (h and (c_c * (2 - c_c) * mu) ** 0.5 * step)
        C = ((1 - c_1 - c_mu) * C + c_1 * (p_c ** 2 + (0 if h else c_c * (2 - c_c) * C))
             + c_mu * (w1 * y1 ** 2 + w2 * y2 ** 2))
        sigma *= math.exp(c_s / d_s * (abs(p_s) / chi - 1))
        short.append(h)
    assert size == 4 and any(short) and all(short) == (not slope)
