"""Learned coefficients: gradients against finite differences, hand-worked examples, CMA-ES, PEM."""

import pytest
import torch

from errors import BadInput
from merge import RULES
from rules.adamerging import (
    adamerge,
    agreeing,
    coefficient_gradient,
    combine,
    entropy,
    few_shot,
    fit,
    group_index,
    pem_negate,
    weight_gradient,
)
from rules.coefficients import cma_es, project_simplex, shrink

f64 = torch.float64
ADA = ["adamerging_task", "adamerging_layer", "adamerging_task_pp", "adamerging_layer_pp"]


def t(*values):
    return torch.tensor(values, dtype=f64)


def problem(tasks=3, seed=0):
    """A two-block network, its task vectors, and per task a head, inputs and labels."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=f64)
    body = lambda: {"blocks.1.v": draw(4, 5), "blocks.0.q": draw(5, 3), "blocks.0.b": draw(5),
                    "norm": draw(4), "unused": draw(2)}
    heads = [draw(4, 3) for _ in range(tasks)]

    def function(head):
        def forward(params, x):
            h = torch.tanh(x @ params["blocks.0.q"].T + params["blocks.0.b"])
            return (torch.tanh(h @ params["blocks.1.v"].T) * params["norm"]) @ head
        return forward

    base, taus = body(), [body() for _ in range(tasks)]
    inputs = [draw(12, 3) for _ in range(tasks)]
    labels = [torch.randint(3, (12,), generator=g) for _ in range(tasks)]
    return base, taus, [function(h) for h in heads], inputs, list(zip(inputs, labels))


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], **tolerance)


def objective(base, taus, functions, inputs, lam, index):
    """sum_t mean H at theta(lam), built inside the graph, as the library does not do it."""
    theta = {k: base[k] + sum(lam[i, index[k]] * tau[k] for i, tau in enumerate(taus))
             for k in base}
    return sum(entropy(f(theta, x)).mean() for f, x in zip(functions, inputs))


# ---- groups and gradients ------------------------------------------------------------------------


def test_groups():
    base = problem()[0]
    assert group_index(base, "task") == dict.fromkeys(base, 0)
    assert group_index(base, "block") == {"blocks.0.b": 0, "blocks.0.q": 0, "blocks.1.v": 1,
                                          "norm": 2, "unused": 3}
    assert sorted(group_index(base, "tensor").values()) == [0, 1, 2, 3, 4]
    with pytest.raises(BadInput, match="unknown groups 'blok': did you mean 'block'"):
        group_index(base, "blok")


def test_combine_by_hand():
    """a: 1 + 2*3 - 1*5 = 2;  b: 1 + 4*3 + .5*5 = 15.5."""
    base = {"a": t(1.0), "b": t(1.0)}
    taus = [{"a": t(3.0), "b": t(3.0)}, {"a": t(5.0), "b": t(5.0)}]
    lam = torch.tensor([[2, 4], [-1, 0.5]], dtype=f64)
    assert combine(base, taus, lam, {"a": 0, "b": 1}) == {"a": t(2.0), "b": t(15.5)}


def test_coefficient_gradient_by_hand():
    """<(1, 2), (3, 4)> = 11, and for the second task <(1, 2), (0, 1)> = 2; nothing arrives at b."""
    taus = [{"a": t(3.0, 4), "b": t(9.0)}, {"a": t(0.0, 1), "b": t(9.0)}]
    out = coefficient_gradient({"a": t(1.0, 2)}, taus, {"a": 1, "b": 0})
    assert out.tolist() == [[0, 11], [0, 2]]


@pytest.mark.parametrize("groups", ["task", "block", "tensor"])
def test_coefficient_gradient_is_that_of_autograd_and_of_finite_differences(groups):
    base, taus, functions, inputs, _ = problem()
    index = group_index(base, groups)
    g = torch.Generator().manual_seed(1)
    lam = torch.rand(3, 1 + max(index.values()), generator=g, dtype=f64)
    loss = lambda i, theta: entropy(functions[i](theta, inputs[i])).mean()
    found = weight_gradient(loss, 3, combine(base, taus, lam, index))
    assert "unused" not in found
    exact = coefficient_gradient(found, taus, index)

    def value(lam):
        return objective(base, taus, functions, inputs, lam, index)

    leaf = lam.clone().requires_grad_()
    value(leaf).backward()
    torch.testing.assert_close(exact, leaf.grad, rtol=1e-10, atol=1e-12)
    for i, j in [(0, 0), (2, lam.shape[1] - 1), (1, lam.shape[1] // 2)]:
        step = torch.zeros_like(lam)
        step[i, j] = 1e-6
        slope = (value(lam + step) - value(lam - step)) / 2e-6
        torch.testing.assert_close(exact[i, j], slope, rtol=1e-6, atol=1e-8)


def test_gradients_leave_the_functions_own_parameters_and_no_grad_alone():
    base, taus, functions, inputs, _ = problem(1)
    head = torch.ones(3, dtype=f64, requires_grad=True)
    own = [lambda params, x: functions[0](params, x) * head]
    with torch.no_grad():
        lam = adamerge(base, taus, own, inputs, steps=2)
    assert head.grad is None and not lam.requires_grad and lam.item() != 0.3


# ---- AdaMerging ----------------------------------------------------------------------------------


def test_entropy_by_hand():
    logits = t(0.7, 0.2, 0.1).log()
    assert entropy(logits).item() == pytest.approx(0.8018, abs=5e-5)
    assert entropy(logits + 30).item() == pytest.approx(entropy(logits).item())
    assert entropy(torch.zeros(2, 3, 4)).tolist() == [[pytest.approx(1.386294)] * 3] * 2   # log 4
    assert entropy(t(0.0, 1000)).item() == 0                              # no NaN at p = 0


@pytest.mark.parametrize("name", ADA[:2])
def test_no_step_is_task_arithmetic_at_the_start(name):
    base, taus, functions, inputs, _ = problem()
    rule = lambda **more: RULES[name](base, taus, functions=functions, batches=inputs, steps=0,
                                      **more)
    same(rule(), RULES["task_arithmetic"](base, taus, lam=0.3))
    same(rule(init=0.7), RULES["task_arithmetic"](base, taus, lam=0.7))


@pytest.mark.parametrize("groups, count", [("task", 1), ("block", 4), ("tensor", 5)])
def test_adamerging_lowers_the_entropy_and_stays_in_the_box(groups, count):
    base, taus, functions, inputs, _ = problem()
    lam = adamerge(base, taus, functions, inputs, groups=groups, steps=25, lr=0.1)
    assert lam.shape == (3, count) and lam.min() >= 0 and lam.max() <= 1
    index = group_index(base, groups)
    value = lambda lam: objective(base, taus, functions, inputs, lam, index).item()
    assert value(lam) < value(torch.full_like(lam, 0.3)) - 0.1
    if groups == "tensor":                                # a tensor nobody reads keeps its start
        assert lam[:, index["unused"]].tolist() == [0.3] * 3


def test_the_first_step_of_adam_goes_down_the_gradient_by_lr():
    """lr sign(gradient), and projection brings what leaves the box back to its edge."""
    base, taus, functions, inputs, _ = problem()
    index, start = group_index(base, "task"), torch.full((3, 1), 0.3, dtype=f64, requires_grad=True)
    objective(base, taus, functions, inputs, start, index).backward()
    moved = adamerge(base, taus, functions, inputs, steps=1, lr=0.05)
    torch.testing.assert_close(moved, start.detach() - 0.05 * start.grad.sign(), atol=1e-6, rtol=0)
    far = adamerge(base, taus, functions, inputs, steps=1, lr=5.0)
    assert torch.equal(far, (start.grad < 0).to(f64))


def test_a_coefficient_at_the_edge_can_come_back():
    """H(sigmoid(2 (lam - a))) is highest at lam = a: from .3 > a up to the edge 1, a > 1 down."""
    base, taus, function = {"w": t(0.0)}, [{"w": t(1.0)}], lambda a: (
        lambda p, x: torch.stack([0 * x, 2 * (p["w"] - a) + 0 * x], -1))
    run = lambda a: adamerge(base, taus, [function(a)], [t(0.0)], lr=0.2, steps=20).item()
    assert run(0.0) == 1 and run(2.0) == 0
    turning = iter([0.0] * 10 + [2.0] * 40)
    lam = adamerge(base, taus, [lambda p, x: function(next(turning))(p, x)], [t(0.0)], lr=0.2,
                   steps=50)
    assert lam.item() == 0                                # up to 1 first, then all the way back


def test_layer_wise_with_equal_coefficients_is_task_wise():
    base, taus = problem()[:2]
    task, tensor = group_index(base, "task"), group_index(base, "tensor")
    lam = torch.tensor([[0.1], [0.7], [0.4]], dtype=f64)
    same(combine(base, taus, lam, task), combine(base, taus, lam.expand(3, 5), tensor))
    g = {k: torch.ones_like(v) for k, v in base.items()}
    torch.testing.assert_close(coefficient_gradient(g, taus, tensor).sum(1, keepdim=True),
                               coefficient_gradient(g, taus, task))


def test_rules_apply_the_coefficients_they_learn():
    base, taus, functions, inputs, labelled = problem()
    keep = dict(functions=functions, batches=inputs, steps=3, batch=5, lr=0.05, init=0.2, seed=4)
    short = {k: v for k, v in keep.items() if k not in ("functions", "batches")}
    for name, plus, groups in zip(ADA, (0, 0, 1, 1), ("task", "tensor") * 2):
        used = agreeing(taus, 0.5) if plus else taus
        lam = adamerge(base, used, functions, inputs, groups=groups, **short)
        same(RULES[name](base, taus, **keep, **{"density": 0.5} if plus else {}),
             combine(base, used, lam, group_index(base, groups)))
    for name, used in (("adamerging_layer", taus), ("adamerging_layer_pp", agreeing(taus, 0.2))):
        lam = adamerge(base, used, functions, inputs, groups="block", **short)
        same(RULES[name](base, taus, groups="block", **keep),
             combine(base, used, lam, group_index(base, "block")))
    lam = fit(base, taus, functions, labelled, groups="block", steps=3)
    same(RULES["fitted"](base, taus, functions=functions, labelled=labelled, groups="block",
                         steps=3), combine(base, taus, lam, group_index(base, "block")))
    w, _ = few_shot(base, taus, functions, labelled, budget=12)
    same(RULES["lorahub"](base, taus, functions=functions, labelled=labelled, budget=12),
         RULES["task_arithmetic"](base, taus, lam=1.0, coefficients=w.tolist()))


def test_agreeing_by_hand():
    """The example of TIES: half of [4, -3, 2, 1] and [-1, -5, 3, 6], elected signs + - + +."""
    taus = [{"w": t(4.0, -3, 2, 1)}, {"w": t(-1.0, -5, 3, 6)}]
    assert [p["w"].tolist() for p in agreeing(taus, 0.5)] == [[4, -3, 0, 0], [0, -5, 0, 6]]
    assert [p["w"].tolist() for p in agreeing(taus, 1.0)] == [[4, -3, 2, 1], [0, -5, 3, 6]]
    # what is trimmed has no vote: 3 - 2 > 0, but 3 goes first and -2 stays
    after = agreeing([{"w": t(3.0, -4)}, {"w": t(-2.0, 1)}], 0.5)
    assert [p["w"].tolist() for p in after] == [[0, -4], [-2, 0]]
    with pytest.raises(BadInput, match="density 0 is outside"):
        agreeing(taus, 0)


@pytest.mark.parametrize("plain, plus", [ADA[::2], ADA[1::2]])
def test_plus_plus_at_density_one_of_agreeing_task_vectors_is_plain(plain, plus):
    base, taus, functions, inputs, _ = problem()
    taus = [{k: v.abs() for k, v in tau.items()} for tau in taus]
    data = dict(functions=functions, batches=inputs, steps=3)
    same(RULES[plus](base, taus, density=1.0, **data), RULES[plain](base, taus, **data))


def test_the_seed_draws_the_batches():
    base, taus, functions, inputs, labelled = problem()
    run = lambda seed, batch: adamerge(base, taus, functions, inputs, steps=3, batch=batch,
                                       seed=seed)
    assert torch.equal(run(1, 4), run(1, 4)) and not torch.equal(run(1, 4), run(2, 4))
    torch.testing.assert_close(run(1, 12), run(2, 99))                    # all of them, every time
    run = lambda seed, batch: fit(base, taus, functions, labelled, steps=3, batch=batch, seed=seed)
    assert torch.equal(run(1, 4), run(1, 4)) and not torch.equal(run(1, 4), run(2, 4))
    torch.testing.assert_close(run(1, 12), run(2, 99))


# ---- supervised coefficients ---------------------------------------------------------------------


@pytest.mark.parametrize("v, projected", [
    ((1.2, 0.3, -0.5), (0.95, 0.05, 0)), ((0.5, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)),
    ((0.9, 0.6, -0.1), (0.65, 0.35, 0)), ((0.2, 0.5, 0.3), (0.2, 0.5, 0.3)), ((7.0,), (1,)),
    ((-3.0, -1.0), (0, 1))])
def test_simplex_by_hand(v, projected):
    torch.testing.assert_close(project_simplex(t(*v)), t(*projected))


def test_simplex_is_idempotent_by_column_and_nearest():
    g = torch.Generator().manual_seed(0)
    v = torch.randn(4, 6, generator=g, dtype=f64)
    p = project_simplex(v)
    assert p.min() >= 0
    torch.testing.assert_close(p.sum(0), torch.ones(6, dtype=f64))
    torch.testing.assert_close(project_simplex(p), p)
    torch.testing.assert_close(torch.stack([project_simplex(c) for c in v.T], 1), p)
    others = torch.rand(4, 4000, generator=g, dtype=f64).log()
    others = others / others.sum(0)                                          # uniform on it
    for j in range(6):
        assert (v[:, j] - p[:, j]).norm() <= (v[:, j, None] - others).norm(dim=0).min()


def test_shrink_by_hand():
    """(3, 4) is 5 long: shorter by 1 is (2.4, 3.2); (.3, .4) is within 1 of zero; zero stays."""
    v = torch.tensor([[3, 0.3, 0], [4, 0.4, 0]], dtype=f64)
    found = shrink(v, torch.ones(1, 3, dtype=f64))
    torch.testing.assert_close(found, torch.tensor([[2.4, 0, 0], [3.2, 0, 0]], dtype=f64))
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
    torch.testing.assert_close(pull(target, False), t(0.9, 0.6, 0), atol=0.01, rtol=0)
    torch.testing.assert_close(pull(target, True), t(0.65, 0.35, 0), atol=0.01, rtol=0)


def test_equal_signs_of_the_gradient_still_move_on_the_simplex():
    torch.testing.assert_close(pull(t(3.0, 2.5), True), t(0.75, 0.25), atol=0.01, rtol=0)


def test_l2_is_squared_and_not_divided_by_the_tasks():
    """A loss without lam: the first step is down the penalty, and 0 is where it ends."""
    base, taus, functions, _, labelled = problem(2)
    flat = [lambda p, x: 0 * p["norm"].sum() + torch.zeros(len(x), 3, dtype=f64)] * 2
    lam = fit(base, taus, flat, labelled, steps=1, lr=0.1, l2=0.01)
    torch.testing.assert_close(lam, torch.full((2, 1), 0.4, dtype=f64), atol=1e-5, rtol=0)
    assert fit(base, taus, flat, labelled, steps=60, lr=0.05, l2=0.01).max() < 0.05
    assert torch.equal(fit(base, taus, flat, labelled, steps=9, l2=0.0), lam * 0 + 0.5)


def one_weight(slope=1.0, offset=0.0):
    """base 0, tau 1, logits (slope w + offset, 0) and one example of label 0."""
    f = lambda p, x: torch.stack([slope * p["w"] + offset + 0 * x, 0 * x], -1)
    return {"w": t(0.0)}, {"w": t(1.0)}, f, (t(0.0), torch.tensor([0]))


def test_the_mean_of_the_tasks_balances_the_l2_penalty():
    """-log sigmoid(lam) + mu lam^2 is least where sigmoid(-lam) = 2 mu lam: at 2 for mu = .0298."""
    base, tau, f, pair = one_weight()
    mu = torch.sigmoid(t(-2.0)).item() / 4
    lam = fit(base, [tau], [f], [pair], l2=mu, steps=150, lr=0.05)
    assert lam.item() == pytest.approx(2.0, abs=0.02)
    # two tasks, the second with tau = 0: half the loss on lam_0, so half the mu; lam_1 goes to 0
    lam = fit(base, [tau, {"w": t(0.0)}], [f, lambda p, x: 0 * f(p, x)], [pair] * 2, l2=mu / 2,
              steps=250, lr=0.05)
    torch.testing.assert_close(lam, torch.tensor([[2.0], [0]], dtype=f64), atol=0.03, rtol=0)


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
    base, taus, functions, _, labelled = problem()
    data = dict(functions=functions, labelled=labelled)
    for simplex in (False, True):
        same(RULES["fitted"](base, taus, steps=0, simplex=simplex, **data),
             RULES["average"](base, taus))
        loss = lambda theta: sum(torch.nn.functional.cross_entropy(f(theta, x), y).item()
                                 for f, (x, y) in zip(functions, labelled))
        after = RULES["fitted"](base, taus, groups="tensor", simplex=simplex, steps=30, **data)
        assert loss(after) < loss(RULES["average"](base, taus)) - 0.1


# ---- CMA-ES and LoRAHub --------------------------------------------------------------------------


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
    with pytest.raises(BadInput, match="budget 0"):
        cma_es(loss, 3, budget=0, low=-1, high=1)


def test_cma_es_is_seeded_and_takes_its_start_from_the_best_candidate():
    loss = lambda x: (x - 0.4).square().sum()
    run = lambda seed, **more: cma_es(loss, 2, budget=9, low=-1, high=1, seed=seed, **more)
    assert torch.equal(run(3)[0], run(3)[0]) and not torch.equal(run(3)[0], run(4)[0])
    x, value = run(0, start=[1.0, 1], inject=[[0.4, 0.4], [0.0, 0]])
    assert x.tolist() == [0.4, 0.4] and value == 0
    assert cma_es(loss, 2, budget=1, low=-1, high=0)[0].tolist() == [-0.5, -0.5]   # middle
    near, _ = cma_es(loss, 2, budget=9, low=-1, high=1, start=[1.0, 1], inject=[[0.5, 0.5]],
                     sigma=1e-3)
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
                      high=1, start=[0.9])
    assert 0 < value < 0.1 and value == x.item()


def test_lorahub_composes():
    """w = e_i is adapter i, w = 0 the base; the answer is at least as good as 0, 1/T and .3."""
    base, taus, functions, _, labelled = problem()
    index, unit = group_index(base, "task"), torch.eye(3, dtype=f64)
    for i in range(3):
        same(combine(base, taus, unit[:, i:i + 1], index),
             {k: base[k] + taus[i][k] for k in base})
    same(combine(base, taus, torch.zeros(3, 1, dtype=f64), index), base)

    def cost(w):
        theta = combine(base, taus, torch.as_tensor(w, dtype=f64)[:, None], index)
        each = [torch.nn.functional.cross_entropy(f(theta, x[:5]), y[:5])
                for f, (x, y) in zip(functions, labelled)]
        return (sum(each) / 3 + 0.05 * sum(abs(v) for v in w) / 3).item()

    w, value = few_shot(base, taus, functions, labelled, budget=30, shots=5)
    assert value == pytest.approx(cost(w.tolist())) and w.abs().max() <= 1.5
    assert value <= min(cost([0, 0, 0]), cost([1 / 3] * 3), cost([0.3] * 3)) - 0.02
    assert few_shot(base, taus, functions, labelled, budget=1)[0].tolist() == [0, 0, 0]
    floor = min(cost([0, 0, 0]), cost([1 / 3] * 3), cost([0.3] * 3))
    assert few_shot(base, taus, functions, labelled, budget=3, shots=5)[1] == pytest.approx(floor)
    assert few_shot(base, taus, functions, labelled, bound=0.1, budget=30)[0].abs().max() <= 0.1
    assert few_shot(base, taus, functions, labelled, l1=1e3)[0].tolist() == [0, 0, 0]


def test_lorahub_can_subtract_and_pays_for_it():
    """log(1 + e^3w) + l1 |w|: 3 sigmoid(3w) = l1 at w = -1.359 for .05; the edge for 0; 0 for 9."""
    base, tau, f, pair = one_weight(slope=-3.0)
    for l1, best in ((0.05, -1.359), (0.0, -1.5), (9.0, 0)):
        w, value = few_shot(base, [tau], [f], [pair], l1=l1)
        assert w.item() == pytest.approx(best, abs=0.03)
        assert value == pytest.approx(torch.log1p((3 * w).exp()).item() + l1 * abs(w.item()))


@pytest.mark.parametrize("change, told", [
    (dict(functions=[]), "0 functions for 2 task vectors"),
    (dict(labelled=[]), "0 labelled for 2 task vectors"),
    (dict(labelled=[(torch.ones(1, 3), [0]), (torch.ones(0, 3), [])]), "task 1 is empty"),
])
def test_data_that_does_not_fit_is_named(change, told):
    base, taus, functions, _, labelled = problem(2)
    data = dict(functions=functions, labelled=labelled) | change
    for name in ("fitted", "lorahub"):
        with pytest.raises(BadInput, match=told):
            RULES[name](base, taus, **data)


def test_no_batch_is_named():
    base, taus, functions, inputs, _ = problem(2)
    for batches, batch, told in ((inputs[:1], 4, "1 batches for 2"), (inputs, 0, "too few")):
        with pytest.raises(BadInput, match=told):
            RULES["adamerging_task"](base, taus, functions=functions, batches=batches, batch=batch)


# ---- PEM -----------------------------------------------------------------------------------------

START = {"q.A": torch.tensor([[1.0, 2]]), "q.B": torch.tensor([[0.0], [0]])}
TAU = {"q.A": torch.tensor([[0.5, 0]]), "q.B": torch.tensor([[1.0], [3]])}
pem = RULES["pem"]


def product(params):
    return params["q.B"] @ params["q.A"]


def test_pem_negates_the_update_by_one_factor():
    """A = (1.5, 2), B = (1, 3): B A = ((1.5, 2), (4.5, 6)), and its negative."""
    assert product(pem(START, [TAU])).tolist() == [[1.5, 2], [4.5, 6]]
    assert product(pem(START, [TAU], signs=[-1])).tolist() == [[-1.5, -2], [-4.5, -6]]
    same(pem_negate(pem_negate(TAU)), TAU)
    assert pem_negate(TAU)["q.A"] is TAU["q.A"] and (pem_negate(TAU)["q.B"] == -TAU["q.B"]).all()


def test_flipping_both_factors_cancels():
    both = {k: -v for k, v in pem(START, [TAU]).items()}
    assert torch.equal(product(both), product(pem(START, [TAU])))


def test_an_adapter_and_its_negation_merge_to_nothing():
    """In factors B - B = 0, so the product is zero; the dense updates add up to zero as well."""
    both = pem(START, [TAU, TAU], signs=[1, -1])
    assert both["q.B"].tolist() == [[0], [0]] and both["q.A"].tolist() == [[2, 2]]
    assert not product(both).any()
    assert not (product(pem(START, [TAU])) + product(pem(START, [TAU], signs=[-1]))).any()


def test_pem_adds_and_scales():
    other = {"q.A": torch.tensor([[0.0, 1]]), "q.B": torch.tensor([[2.0], [0]])}
    one = pem(START, [TAU, other], signs=[1, -1])
    assert one["q.A"].tolist() == [[1.5, 3]] and one["q.B"].tolist() == [[-1], [3]]
    same(pem(START, [TAU, other], signs=[1, -1], lam=0.5),
         {k: START[k] + 0.5 * (one[k] - START[k]) for k in START})
    same(pem(START, [TAU, other]), RULES["task_arithmetic"](START, [TAU, other], lam=1.0))
    assert pem.space == "adapter"


@pytest.mark.parametrize("taus, signs, told", [
    ([TAU], [1, -1], "2 signs for 1 task vectors"), ([TAU], [0.5], "must be .1 or -1"),
    ([TAU], [0], "must be .1 or -1")])
def test_pem_rejects(taus, signs, told):
    with pytest.raises(BadInput, match=told):
        pem(START, taus, signs=signs)


def test_pem_needs_a_factor_to_flip():
    with pytest.raises(BadInput, match=r"no name ends in .B"):
        pem({"q.weight": t(1.0), "B": t(1.0)}, [{"q.weight": t(1.0), "B": t(1.0)}])
