"""What every merge rule must satisfy, and the identities and worked examples of each."""

import pytest
import torch

import merge
from errors import BadInput
from merge import RULES

every_rule = pytest.mark.parametrize("name", sorted(RULES))

# one task at coefficient 1 comes back unchanged with these settings; other rules are absent
IDENTITY = {"average": {}, "task_arithmetic": {"lam": 1.0}, "ties": {"density": 1.0, "lam": 1.0}}


def problem(tasks=3, dtype=torch.float64, seed=0):
    """A base and task vectors with two tensors of odd shapes."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda size: {"b.w": size * torch.randn(3, 5, generator=g, dtype=torch.float64),
                         "a": size * torch.randn(7, generator=g, dtype=torch.float64)}
    cast = lambda d: {k: v.to(dtype) for k, v in d.items()}
    return cast(draw(1.0)), [cast(draw(0.1)) for _ in range(tasks)]


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], **tolerance)


@every_rule
def test_one_task_at_coefficient_one_is_that_task(name):
    base, (tau,) = problem(1)
    same(RULES[name](base, [tau], **IDENTITY[name]), {k: base[k] + tau[k] for k in base})


@every_rule
def test_order_of_the_tasks_does_not_matter(name):
    base, taus = problem()
    same(RULES[name](base, taus), RULES[name](base, taus[::-1]), atol=1e-12, rtol=0)


@every_rule
def test_inputs_are_untouched(name):
    base, taus = problem()
    copies = [{k: v.clone() for k, v in d.items()} for d in (base, *taus)]
    merged = RULES[name](base, taus)
    for given, copy in zip((base, *taus), copies):
        assert all(torch.equal(given[k], copy[k]) for k in given)
    merged["a"].zero_()
    assert torch.equal(base["a"], copies[0]["a"])


@every_rule
def test_zero_task_vectors_give_the_base(name):
    base, taus = problem()
    same(RULES[name](base, [{k: torch.zeros_like(v) for k, v in base.items()} for _ in taus]), base)


@every_rule
def test_same_input_same_bits(name):
    base, taus = problem()
    first, second = RULES[name](base, taus), RULES[name](base, taus)
    assert all(torch.equal(first[k], second[k]) for k in base)


@every_rule
def test_bfloat16_is_computed_in_float32_and_cast_once(name):
    base, taus = problem(dtype=torch.bfloat16)
    up = lambda d: {k: v.float() for k, v in d.items()}
    merged = RULES[name](base, taus)
    assert all(v.dtype == torch.bfloat16 for v in merged.values())
    wide = RULES[name](up(base), [up(tau) for tau in taus])
    assert all(torch.equal(merged[k], wide[k].bfloat16()) for k in base)


@pytest.mark.parametrize("name", [n for n in sorted(RULES) if "lam" in merge.options(n)])
def test_lam_scales_the_merged_task_vector(name):
    base, taus = problem()
    one, part = RULES[name](base, taus, lam=1.0), RULES[name](base, taus, lam=0.35)
    same(part, {k: base[k] + 0.35 * (one[k] - base[k]) for k in base})


@every_rule
def test_mismatch_is_named(name):
    base, taus = problem()
    with pytest.raises(BadInput, match="nothing to merge"):
        RULES[name](base, [])
    with pytest.raises(BadInput, match="task vector 1 and the base differ in 1 keys: a"):
        RULES[name](base, [taus[0], {"b.w": taus[1]["b.w"]}])
    with pytest.raises(BadInput, match=r"another shape: a \(6,\) for \(7,\)"):
        RULES[name](base, [taus[0] | {"a": torch.zeros(6)}])
    with pytest.raises(BadInput, match="task vector 2 has NaN or infinity in a"):
        RULES[name](base, [*taus[:2], taus[2] | {"a": torch.full((7,), float("nan"))}])


# ---- one rule at a time --------------------------------------------------------------------------

ZERO = {"w": torch.zeros(4)}
A, B = {"w": torch.tensor([4.0, -3, 2, 1])}, {"w": torch.tensor([-1.0, -5, 3, 6])}


def test_average_is_arithmetic_with_one_over_T():
    base, taus = problem(4)
    same(RULES["average"](base, taus), RULES["task_arithmetic"](base, taus, lam=0.25))


def test_task_arithmetic_is_linear_in_its_coefficient():
    base, taus = problem(2)
    at = lambda lam: RULES["task_arithmetic"](base, taus, lam=lam)
    same(at(0.0), base)
    same({k: at(0.6)[k] - base[k] for k in base}, {k: 2 * (at(0.3)[k] - base[k]) for k in base})


def test_adding_and_subtracting_a_task_is_the_base():
    base, (tau,) = problem(1)
    same(RULES["task_arithmetic"](base, [tau, {k: -v for k, v in tau.items()}], lam=1.0), base)


@pytest.mark.parametrize("keywords, merged", [
    (dict(density=0.5, agg="mean"), [4, -4, 0, 6]),
    (dict(density=0.5, agg="sum"), [4, -8, 0, 6]),
    (dict(density=0.5, agg="max"), [4, -5, 0, 6]),
    (dict(density=1.0, agg="mean"), [4, -4, 2.5, 3.5]),
    (dict(density=1.0, agg="mean", lam=0.5), [2, -2, 1.25, 1.75]),
])
def test_ties_by_hand(keywords, merged):
    """a = [4, -3, 2, 1], b = [-1, -5, 3, 6]; half density keeps [4, -3, 0, 0] and [0, -5, 0, 6]."""
    assert RULES["ties"](ZERO, [A, B], **keywords)["w"].tolist() == merged


def test_ties_of_equal_tasks_is_the_task():
    base, (tau,) = problem(1)
    same(RULES["ties"](base, [tau, tau], density=1.0), {k: base[k] + tau[k] for k in base})


def test_ties_trims_over_the_whole_model():
    """The two largest of five entries sit in one tensor: nothing is left of the other."""
    base = {"a": torch.zeros(2), "b": torch.zeros(3)}
    tau = {"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    merged = RULES["ties"](base, [tau], density=0.4)
    assert merged["a"].tolist() == [9, 8] and merged["b"].tolist() == [0, 0, 0]


def test_trim_keeps_exactly_k_and_breaks_ties_by_position():
    assert merge.trim(torch.tensor([1.0, -2, 2, 2, 1]), 0.4).tolist() == [0, -2, 2, 0, 0]
    assert merge.trim(torch.tensor([3.0, 1, 2, 4]), 0.75).tolist() == [3, 0, 2, 4]
    assert merge.trim(torch.tensor([3.0, 1]), 0.2).tolist() == [0, 0]
    assert merge.trim(torch.tensor([3.0, 1]), 1.0).tolist() == [3, 1]


def test_elect_is_by_mass_not_by_votes():
    votes = [torch.tensor([5.0, 1]), torch.tensor([-2.0, 1]), torch.tensor([-2.0, -1])]
    assert merge.elect(votes).tolist() == [1, 1]


def test_a_sum_of_zero_takes_the_majority_sign():
    assert merge.elect([torch.tensor([0.0, -1, -2])]).tolist() == [-1, -1, -1]
    assert merge.elect([torch.tensor([0.0, -1, 2])]).tolist() == [1, -1, 1]


@pytest.mark.parametrize("keywords, told", [
    (dict(density=0.0), r"density 0.0 is outside \(0, 1\]"),
    (dict(density=1.5), r"density 1.5 is outside \(0, 1\]"),
    (dict(agg="median"), "unknown agg 'median'"),
])
def test_ties_rejects(keywords, told):
    with pytest.raises(BadInput, match=told):
        RULES["ties"](ZERO, [A, B], **keywords)


def test_flatten_and_back():
    base, _ = problem()
    same(merge.unflatten(merge.flatten(base), base), base)
    assert merge.flatten(base)[:7].equal(base["a"])                       # sorted keys
