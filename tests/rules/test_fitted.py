"""Supervised coefficients: projections by hand, and the optimum of known losses."""

import pytest
import torch

from errors import BadInput
from merge import RULES
from rules.coefficients import group_index
from rules.fitted import fitted, project_simplex, shrink
from support import close, coefficients, one_weight, same, small_network, t

f64 = torch.float64


def fit(base, taus, functions, labelled, groups="task", **more):
    """The coefficients (T, G) that `fitted` learns."""
    merged = fitted(base, taus, functions=functions, labelled=labelled, groups=groups, **more)
    return coefficients(merged, base, taus, group_index(base, groups))


@pytest.mark.parametrize("v, projected", [
    ((1.2, 0.3, -0.5), (0.95, 0.05, 0)), ((0.5, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)),
    ((0.9, 0.6, -0.1), (0.65, 0.35, 0)), ((0.2, 0.5, 0.3), (0.2, 0.5, 0.3)), ((7.0,), (1,)),
    ((-3.0, -1.0), (0, 1))])
def test_simplex_by_hand(v, projected):
    close(project_simplex(t(*v)), t(*projected))


def test_simplex_is_idempotent_by_column_and_nearest():
    g = torch.Generator().manual_seed(0)
    v = torch.randn(4, 6, generator=g, dtype=f64)
    p = project_simplex(v)
    assert p.min() >= 0
    close(p.sum(0), torch.ones(6, dtype=f64))
    close(project_simplex(p), p)
    close(torch.stack([project_simplex(c) for c in v.T], 1), p)
    others = torch.rand(4, 4000, generator=g, dtype=f64).log()
    others = others / others.sum(0)                                          # uniform on it
    for j in range(6):
        assert (v[:, j] - p[:, j]).norm() <= (v[:, j, None] - others).norm(dim=0).min()


def test_shrink_by_hand():
    """(3, 4) is 5 long: shorter by 1 is (2.4, 3.2); (.3, .4) is within 1 of zero; zero stays."""
    v = torch.tensor([[3, 0.3, 0], [4, 0.4, 0]], dtype=f64)
    found = shrink(v, torch.ones(1, 3, dtype=f64))
    close(found, torch.tensor([[2.4, 0, 0], [3.2, 0, 0]], dtype=f64))
    assert torch.equal(shrink(v, torch.zeros(1, 3, dtype=f64)), v)


def toward(target):
    """Logits (-a, 0) with a = |w - target|^2: for label 0, CE = log(1 + e^a) is least at target."""
    def forward(params, x):
        a = ((params["w"] - target) ** 2).sum() * torch.ones(len(x), dtype=f64)
        return torch.stack([-a, 0 * a], -1)
    return forward


def pull(target, simplex, **more):
    """Coefficients fitted to a loss that is least where theta = target, tau_t the unit vectors."""
    n = len(target)
    base, taus = {"w": torch.zeros(n, dtype=f64)}, [{"w": row} for row in torch.eye(n, dtype=f64)]
    labelled = [(torch.zeros(2, 1, dtype=f64), torch.tensor([0, 0]))] * n
    return fit(base, taus, [toward(target)] * n, labelled, simplex=simplex, l2=0.0, lr=0.02,
               steps=150, **more).squeeze(1)


def test_fitted_finds_the_nearest_coefficients_that_are_allowed():
    """Distance to (.9, .6, -.1): at least 0 gives (.9, .6, 0), on the simplex (.65, .35, 0)."""
    target = t(0.9, 0.6, -0.1)
    close(pull(target, False), t(0.9, 0.6, 0), atol=0.01, rtol=0)
    close(pull(target, True), t(0.65, 0.35, 0), atol=0.01, rtol=0)


def test_equal_signs_of_the_gradient_still_move_on_the_simplex():
    close(pull(t(3.0, 2.5), True), t(0.75, 0.25), atol=0.01, rtol=0)


def test_l2_is_squared_and_not_divided_by_the_tasks():
    """A loss without lam: the first step is down the penalty, and 0 is where it ends."""
    base, taus, functions, _, labelled = small_network(2)
    flat = [lambda p, x: 0 * p["norm"].sum() + torch.zeros(len(x), 3, dtype=f64)] * 2
    lam = fit(base, taus, flat, labelled, steps=1, lr=0.1, l2=0.01)
    close(lam, torch.full((2, 1), 0.4, dtype=f64), atol=1e-5, rtol=0)
    assert fit(base, taus, flat, labelled, steps=60, lr=0.05, l2=0.01).max() < 0.05
    close(fit(base, taus, flat, labelled, steps=9, l2=0.0), lam * 0 + 0.5)


def test_the_mean_of_the_tasks_balances_the_l2_penalty():
    """-log sigmoid(lam) + mu lam^2 is least where sigmoid(-lam) = 2 mu lam: at 2 for mu = .0298."""
    base, tau, f, pair = one_weight()
    mu = torch.sigmoid(t(-2.0)).item() / 4
    lam = fit(base, [tau], [f], [pair], l2=mu, steps=150, lr=0.05)
    assert lam.item() == pytest.approx(2.0, abs=0.02)
    # two tasks, the second with tau = 0: half the loss on lam_0, so half the mu; lam_1 goes to 0
    lam = fit(base, [tau, {"w": t(0.0)}], [f, lambda p, x: 0 * f(p, x)], [pair] * 2, l2=mu / 2,
              steps=250, lr=0.05)
    close(lam, torch.tensor([[2.0], [0]], dtype=f64), atol=0.03, rtol=0)


def test_under_a_constant_gradient_every_step_is_lr():
    """CE is 50 - w to the last digits: three steps of .1 up from 1."""
    base, tau, f, pair = one_weight(offset=-50.0)
    assert fit(base, [tau], [f], [pair], l2=0.0, steps=3, lr=0.1).item() == pytest.approx(1.3)


def test_group_penalty_empties_whole_groups():
    """The loss is nearly flat along the first tensor: its group goes to zero, the other not."""
    base = {"a": t(0.0), "b": t(0.0)}
    taus = [{"a": t(1.0), "b": t(1.0)}, {"a": t(1.0), "b": t(0.5)}]
    f = lambda p, x: torch.stack([3 * p["b"] + 0.01 * p["a"] + 0 * x, 0 * x], -1)
    data = [(t(0.0), torch.tensor([0]))] * 2
    run = lambda penalty: fit(base, taus, [f, f], data, groups="tensor", group_penalty=penalty,
                              l2=0.0, steps=80, lr=0.05)
    assert run(0.0).min() > 0.5
    assert run(0.1)[:, 0].tolist() == [0, 0] and run(0.1)[:, 1].min() > 0
    with pytest.raises(BadInput, match="choose simplex or group_penalty"):
        fit(base, taus, [f, f], data, simplex=True, group_penalty=0.1)


def test_fitted_starts_at_the_average_and_lowers_the_loss():
    base, taus, functions, _, labelled = small_network()
    data = dict(functions=functions, labelled=labelled)
    for simplex in (False, True):
        same(RULES["fitted"](base, taus, steps=0, simplex=simplex, **data),
             RULES["average"](base, taus))
        loss = lambda theta: sum(torch.nn.functional.cross_entropy(f(theta, x), y).item()
                                 for f, (x, y) in zip(functions, labelled))
        after = RULES["fitted"](base, taus, groups="tensor", simplex=simplex, steps=30, **data)
        assert loss(after) < loss(RULES["average"](base, taus)) - 0.1


def test_the_seed_draws_the_batches():
    base, taus, functions, _, labelled = small_network()
    run = lambda seed, batch: fit(base, taus, functions, labelled, steps=3, batch=batch, seed=seed)
    assert torch.equal(run(1, 4), run(1, 4)) and not torch.equal(run(1, 4), run(2, 4))
    close(run(1, 12), run(2, 99))                    # all of them, every time
