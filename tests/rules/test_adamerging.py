"""Learned coefficients: gradients against finite differences, and AdaMerging by hand."""

import pytest
import torch

from merge import RULES
from rules.adamerging import entropy, without_conflict
from rules.coefficients import coefficient_gradient, combine, group_index, weight_gradient
from support import close, coefficients, refuses, same, small_network, t

f64 = torch.float64
ADA = ["adamerging_task", "adamerging_layer", "adamerging_task_pp", "adamerging_layer_pp"]


def adamerge(base, taus, functions, batches, groups="task", **more):
    """The coefficients (T, G) that AdaMerging learns."""
    merged = RULES["adamerging_task"](base, taus, functions=functions, batches=batches,
                                      groups=groups, **more)
    return coefficients(merged, base, taus, group_index(base, groups))


def objective(base, taus, functions, inputs, lam, index):
    """sum_t mean H at theta(lam), built inside the graph, as the library does not do it."""
    theta = {k: base[k] + sum(lam[i, index[k]] * tau[k] for i, tau in enumerate(taus))
             for k in base}
    return sum(entropy(f(theta, x)).mean() for f, x in zip(functions, inputs))


def test_groups():
    base = small_network()[0]
    assert group_index(base, "task") == dict.fromkeys(base, 0)
    assert group_index(base, "block") == {"blocks.0.b": 0, "blocks.0.q": 0, "blocks.1.v": 1,
                                          "norm": 2, "unused": 3}
    assert sorted(group_index(base, "tensor").values()) == [0, 1, 2, 3, 4]
    refuses("unknown groups 'blok': did you mean 'block'", group_index, base, "blok")


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
    base, taus, functions, inputs, _ = small_network()
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
    close(exact, leaf.grad, rtol=1e-10, atol=1e-12)
    for i, j in [(0, 0), (2, lam.shape[1] - 1), (1, lam.shape[1] // 2)]:
        step = torch.zeros_like(lam)
        step[i, j] = 1e-6
        slope = (value(lam + step) - value(lam - step)) / 2e-6
        close(exact[i, j], slope, rtol=1e-6, atol=1e-8)


def test_gradients_leave_the_functions_own_parameters_and_no_grad_alone():
    base, taus, functions, inputs, _ = small_network(1)
    head = torch.ones(3, dtype=f64, requires_grad=True)
    own = [lambda params, x: functions[0](params, x) * head]
    with torch.no_grad():
        lam = adamerge(base, taus, own, inputs, steps=2)
    assert head.grad is None and not lam.requires_grad and lam.item() != 0.3


def test_entropy_by_hand():
    logits = t(0.7, 0.2, 0.1).log()
    assert entropy(logits).item() == pytest.approx(0.8018, abs=5e-5)
    assert entropy(logits + 30).item() == pytest.approx(entropy(logits).item())
    assert entropy(torch.zeros(2, 3, 4)).tolist() == [[pytest.approx(1.386294)] * 3] * 2   # log 4
    assert entropy(t(0.0, 1000)).item() == 0                              # no NaN at p = 0


@pytest.mark.parametrize("name", ADA[:2])
def test_no_step_is_task_arithmetic_at_the_start(name):
    base, taus, functions, inputs, _ = small_network()
    rule = lambda **more: RULES[name](base, taus, functions=functions, batches=inputs, steps=0,
                                      **more)
    same(rule(), RULES["task_arithmetic"](base, taus, lam=0.3))
    same(rule(init=0.7), RULES["task_arithmetic"](base, taus, lam=0.7))


@pytest.mark.parametrize("groups, count", [("task", 1), ("block", 4), ("tensor", 5)])
def test_adamerging_lowers_the_entropy_and_stays_in_the_box(groups, count):
    base, taus, functions, inputs, _ = small_network()
    lam = adamerge(base, taus, functions, inputs, groups=groups, steps=25, lr=0.1)
    read = lam if groups == "task" else lam[:, :-1]        # no function reads the last group
    assert lam.shape == (3, count) and read.min() >= -1e-9 and read.max() <= 1 + 1e-9
    index = group_index(base, groups)
    value = lambda lam: objective(base, taus, functions, inputs, lam, index).item()
    assert value(lam) < value(torch.full_like(lam, 0.3)) - 0.1
    start = RULES["task_arithmetic"](base, taus, lam=0.3)
    merged = RULES["adamerging_layer"](base, taus, functions=functions, batches=inputs, steps=5)
    same({"unused": merged["unused"]}, {"unused": start["unused"]})    # nobody reads that tensor


def test_the_first_step_of_adam_goes_down_the_gradient_by_lr():
    """lr sign(gradient), and projection brings what leaves the box back to its edge."""
    base, taus, functions, inputs, _ = small_network()
    index, start = group_index(base, "task"), torch.full((3, 1), 0.3, dtype=f64, requires_grad=True)
    objective(base, taus, functions, inputs, start, index).backward()
    moved = adamerge(base, taus, functions, inputs, steps=1, lr=0.05)
    close(moved, start.detach() - 0.05 * start.grad.sign(), atol=1e-6, rtol=0)
    far = adamerge(base, taus, functions, inputs, steps=1, lr=5.0)
    close(far, (start.grad < 0).to(f64))


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
    base, taus = small_network()[:2]
    task, tensor = group_index(base, "task"), group_index(base, "tensor")
    lam = torch.tensor([[0.1], [0.7], [0.4]], dtype=f64)
    same(combine(base, taus, lam, task), combine(base, taus, lam.expand(3, 5), tensor))
    g = {k: torch.ones_like(v) for k, v in base.items()}
    close(coefficient_gradient(g, taus, tensor).sum(1, keepdim=True),
          coefficient_gradient(g, taus, task))


@pytest.mark.parametrize("name, groups, plus", [
    ("adamerging_task", "task", False), ("adamerging_layer", "tensor", False),
    ("adamerging_task_pp", "task", True), ("adamerging_layer_pp", "tensor", True)])
def test_the_four_names_are_one_function_with_other_defaults(name, groups, plus):
    base, taus, functions, inputs, _ = small_network()
    data = dict(functions=functions, batches=inputs, steps=3, batch=5, lr=0.05, init=0.2, seed=4)
    merged = RULES[name](base, taus, **data)
    vectors = without_conflict(taus, 0.2) if plus else taus
    same(merged, RULES["adamerging_task"](base, vectors, groups=groups, **data))
    if groups == "task":
        lam = coefficients(merged, base, vectors, group_index(base, "task"))
        same(merged, combine(base, vectors, lam, group_index(base, "task")))


def test_entries_without_conflict_by_hand():
    """The example of TIES: half of [4, -3, 2, 1] and [-1, -5, 3, 6], elected signs + - + +."""
    taus = [{"w": t(4.0, -3, 2, 1)}, {"w": t(-1.0, -5, 3, 6)}]
    assert [p["w"].tolist() for p in without_conflict(taus, 0.5)] == [[4, -3, 0, 0], [0, -5, 0, 6]]
    assert [p["w"].tolist() for p in without_conflict(taus, 1.0)] == [[4, -3, 2, 1], [0, -5, 3, 6]]
    # what is trimmed has no vote: 3 - 2 > 0, but 3 goes first and -2 stays
    after = without_conflict([{"w": t(3.0, -4)}, {"w": t(-2.0, 1)}], 0.5)
    assert [p["w"].tolist() for p in after] == [[0, -4], [-2, 0]]
    refuses("density 0 is outside", without_conflict, taus, 0)


@pytest.mark.parametrize("plain, plus", [ADA[::2], ADA[1::2]])
def test_plus_plus_at_density_one_of_agreeing_task_vectors_is_plain(plain, plus):
    base, taus, functions, inputs, _ = small_network()
    taus = [{k: v.abs() for k, v in tau.items()} for tau in taus]
    data = dict(functions=functions, batches=inputs, steps=3)
    same(RULES[plus](base, taus, density=1.0, **data), RULES[plain](base, taus, **data))


def test_the_seed_draws_the_batches():
    base, taus, functions, inputs, _ = small_network()
    run = lambda seed, batch: adamerge(base, taus, functions, inputs, steps=3, batch=batch,
                                       seed=seed)
    assert torch.equal(run(1, 4), run(1, 4)) and not torch.equal(run(1, 4), run(2, 4))
    close(run(1, 12), run(2, 99))                    # all of them, every time
    for batches, batch, told in ((inputs[:1], 4, "1 batches for 3"), (inputs, 0, "too few")):
        refuses(told, adamerge, base, taus, functions, batches, batch=batch)
