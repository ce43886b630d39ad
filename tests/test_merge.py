"""What every merge rule must satisfy, and the identities and worked examples of each."""

import weakref

import pytest
import torch

import merge
import rules  # noqa: F401  (fills RULES)
from errors import BadInput
from merge import RULES
from rules.arithmetic import dequantize_rows, quantize_rows
from rules.tall import masks
from support import refuses, same

EXPERTS = {"emr", "tall", "twin"}
every_name = pytest.mark.parametrize("name", sorted(RULES))

# one task at coefficient 1 comes back unchanged with these settings ...
IDENTITY = {"average": {}, "task_arithmetic": {"lam": 1.0}, "ties": {"density": 1.0, "lam": 1.0},
            "negation": {"lam": -1.0}, "score_weighted": {}, "layerwise": {}, "gram_schmidt": {},
            "symmetric_orthogonal": {}, "dare": {"drop": 0.0, "lam": 1.0}, "magmax": {"lam": 1.0},
            "breadcrumbs": {"density": 1.0, "gamma": 0.0, "lam": 1.0}, "tsv": {}, "wudi": {},
            "consensus": {"agree": 1, "lam": 1.0}, "knots": {"density": 1.0}, "fisher": {},
            "regmean": {}, "regmean_pp": {}, "fitted": {"steps": 0}, "pem": {},
            "adamerging_task": {"steps": 0, "init": 1.0},
            "adamerging_layer": {"steps": 0, "init": 1.0},
            "adamerging_task_pp": {"steps": 0, "init": 1.0, "density": 1.0},
            "adamerging_layer_pp": {"steps": 0, "init": 1.0, "density": 1.0},
            "model_stock": {}, "dare_ties": {"drop": 0.0}, "della": {"drop": 0.0, "epsilon": 0.0},
            "emr": {}, "tall": {}, "twin": {"keep": 1.0}}
# ... but for these: int8 rounds, Iso flattens the spectrum, LoRAHub searches for its coefficients,
# and PCB drops the smallest entry at any density
NOT_IDENTITY = {"int8", "iso_c", "iso_cts", "lorahub", "pcb"}
# the first task keeps what it shares; the draws and the batches go by position
ORDERED = {"gram_schmidt", "dare", "dare_ties", "della", "analogy", "lorahub"}
# weighted sums, which look for NaN in their result
SUMS = {"average", "task_arithmetic", "model_stock"}
QUICK = {"steps": 3, "budget": 10, "examples": 6}                      # where a rule has the key


def problem(tasks=3, dtype=torch.float64, seed=0):
    """A base and task vectors with two tensors of odd shapes."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda size: {"l.B": size * torch.randn(3, 5, generator=g, dtype=torch.float64),
                         "a": size * torch.randn(7, generator=g, dtype=torch.float64)}
    cast = lambda d: {k: v.to(dtype) for k, v in d.items()}
    return cast(draw(1.0)), [cast(draw(0.1)) for _ in range(tasks)]


def linear(params, x):
    """Three logits that depend on every tensor of `problem`."""
    x = x.to(params["a"].dtype)
    return x @ params["l.B"].T + params["a"][:3] * params["a"][3:6]


def data(tasks=3):
    """Every keyword that a rule can ask for, for the model `linear`."""
    g = torch.Generator().manual_seed(7)
    draw = lambda: torch.randn(6, 5, generator=g, dtype=torch.float64)
    return {"functions": [linear] * tasks, "batches": [draw() for _ in range(tasks)],
            "labelled": [(draw(), torch.arange(6) % 3) for _ in range(tasks)],
            "activations": lambda params, x: {"l.B": x.to(params["a"].dtype)},
            "features": linear, "scores": [0.5, 0.7, 0.8, 0.9][:tasks]}


def call(name, base, taus, order=None, **keywords):
    """The rule `name` with the data it needs; `order` rearranges task vectors and data alike."""
    function = RULES[name]
    needs = {k: v for k, v in data(len(taus)).items() if k in merge.needs(name)}
    if order:
        taus = [taus[i] for i in order]
        needs = {k: [v[i] for i in order] if isinstance(v, list) else v for k, v in needs.items()}
    quick = {k: v for k, v in QUICK.items() if k in merge.options(name)}
    return function(base, taus, **quick | needs | keywords)


def count(name, default=3):
    return RULES[name].count or default


def models(result):
    """A rule's result as a list of dicts."""
    return result.models if isinstance(result, merge.Experts) else [result]


@every_name
def test_one_task_at_coefficient_one_is_that_task(name):
    base, (tau,) = problem(1)
    if count(name, 1) != 1 or name in NOT_IDENTITY:
        return
    merged = call(name, base, [tau], **IDENTITY.get(name, {}))
    assert isinstance(merged, merge.Experts) == RULES[name].experts == (name in EXPERTS)
    same(models(merged)[0], {k: base[k] + tau[k] for k in base}, atol=1e-9, rtol=0)


@every_name
def test_order_of_the_tasks_does_not_matter(name):
    """One model stays as it is, experts follow the order of their tasks."""
    base, taus = problem(count(name))
    order = list(range(len(taus)))[::-1]
    first, second = (models(call(name, base, taus, o)) for o in (None, order))
    for a, b in zip(first, second[::-1] if name in EXPERTS else second, strict=True):
        if name in ORDERED:
            assert any((a[k] - b[k]).abs().max() > 1e-6 for k in base)
        else:
            same(a, b, atol=1e-9, rtol=0)


@every_name
def test_inputs_are_untouched(name):
    base, taus = problem(count(name))
    copies = [{k: v.clone() for k, v in d.items()} for d in (base, *taus)]
    merged = models(call(name, base, taus))
    for given, copy in zip((base, *taus), copies):
        assert all(torch.equal(given[k], copy[k]) for k in given)
    merged[0]["a"].zero_()
    assert torch.equal(base["a"], copies[0]["a"])


@every_name
def test_task_vectors_may_come_from_a_generator(name):
    base, taus = problem(count(name))
    listed, streamed = call(name, base, taus), None
    needs = {k: v for k, v in data(len(taus)).items() if k in merge.needs(name)}
    quick = {k: v for k, v in QUICK.items() if k in merge.options(name)}
    streamed = RULES[name](base, (tau for tau in taus), **quick | needs)
    for a, b in zip(models(listed), models(streamed), strict=True):
        for k in base:                                                  # and: same input, same bits
            torch.testing.assert_close(a[k], b[k], rtol=1e-15 if name == "average" else 0, atol=0)


def test_a_sum_that_overflows_is_not_blamed_on_a_task_vector():
    """Large numbers are no NaN: what still fits passes, what does not is named."""
    base, large = {"a": torch.zeros(3), "b": torch.zeros(1)}, {"a": torch.full((3,), 2e38),
                                                             "b": torch.ones(1)}
    assert RULES["average"](base, [large])["a"].isfinite().all()          # though their sum is inf
    with pytest.raises(BadInput, match="the merged model has NaN or infinity in a"):
        RULES["task_arithmetic"](base, [large, large], lam=1.0)
    half = {k: v.half() for k, v in base.items()}
    with pytest.raises(BadInput, match="the merged model has NaN or infinity in a"):
        RULES["task_arithmetic"](half, [{"a": torch.full((3,), 6e4), "b": torch.ones(1)}], lam=2.0)
    with pytest.raises(BadInput, match="the merged model has NaN or infinity in b"):
        RULES["average"](base | {"b": torch.tensor([torch.nan])}, [large])


@every_name
def test_zero_task_vectors_give_the_base(name):
    base, taus = problem(count(name))
    zero = [{k: torch.zeros_like(v) for k, v in base.items()} for _ in taus]
    for merged in models(call(name, base, zero)):
        assert all(torch.equal(merged[k], base[k]) for k in base)


@every_name
def test_a_zero_vector_among_others_stays_finite(name):
    base, taus = problem(count(name))
    taus[1] = {k: torch.zeros_like(v) for k, v in base.items()}
    for merged in models(call(name, base, taus)):
        assert all(torch.isfinite(merged[k]).all() for k in base)


@every_name
def test_bfloat16_is_computed_in_float32_and_cast_once(name):
    base, taus = problem(count(name), dtype=torch.bfloat16)
    up = lambda d: {k: v.float() for k, v in d.items()}
    merged = models(call(name, base, taus))
    wide = models(call(name, up(base), [up(tau) for tau in taus]))
    for a, b in zip(merged, wide, strict=True):
        assert all(a[k].dtype == torch.bfloat16 and torch.equal(a[k], b[k].bfloat16()) for k in a)


@pytest.mark.parametrize("name", [n for n in sorted(RULES) if "lam" in merge.options(n)
                                  and n not in EXPERTS])
def test_lam_scales_the_merged_task_vector(name):
    base, taus = problem(count(name))
    one, part = call(name, base, taus, lam=1.0), call(name, base, taus, lam=0.35)
    same(part, {k: base[k] + 0.35 * (one[k] - base[k]) for k in base})


@every_name
def test_mismatch_is_named(name):
    base, taus = problem(count(name))
    if count(name, 0) == 0:
        refuses("nothing to merge|0 task vectors", call, name, base, [])
    with pytest.raises(BadInput, match="task vector 1 and the base differ in 1 keys or shapes: a"):
        call(name, base, [taus[0], {"l.B": taus[1]["l.B"]}, *taus[2:]])
    with pytest.raises(BadInput, match="differ in 1 keys or shapes: a"):
        call(name, base, [taus[0], taus[1] | {"a": torch.zeros(6)}, *taus[2:]])
    who = "the merged model" if name in SUMS else "task vector 1"
    with pytest.raises(BadInput, match=f"{who} has NaN or infinity in a"):
        call(name, base, [taus[0], taus[1] | {"a": torch.full((7,), float("nan"))}, *taus[2:]])


@pytest.mark.parametrize("name", [n for n in sorted(RULES) if merge.needs(n)])
def test_a_rule_that_needs_data_says_which(name):
    base, taus = problem(count(name))
    with pytest.raises(TypeError, match=f"missing .* {merge.needs(name)[0]!r}"):
        RULES[name](base, taus)


@pytest.mark.parametrize("name", [n for n, f in sorted(RULES.items()) if f.count])
def test_a_rule_with_a_fixed_number_of_tasks_says_so(name):
    base, taus = problem(4)
    refuses(f"{name} takes {count(name)} task vectors, not 4", call, name, base, taus)


# ---- one rule at a time --------------------------------------------------------------------------

ZERO = {"w": torch.zeros(4)}
A, B = {"w": torch.tensor([4.0, -3, 2, 1])}, {"w": torch.tensor([-1.0, -5, 3, 6])}


def test_task_arithmetic_is_arithmetic():
    """1/T is the average, lam is linear, a task and its negative cancel, forgetting undoes adding;
    and averages of pairs are not the average."""
    base, taus = problem(4)
    at = lambda lam, taus=taus: RULES["task_arithmetic"](base, taus, lam=lam)
    same(RULES["average"](base, taus), at(0.25))
    same(at(0.0), base)
    same({k: at(0.6)[k] - base[k] for k in base}, {k: 2 * (at(0.3)[k] - base[k]) for k in base})
    same(at(1.0, [taus[0], {k: -v for k, v in taus[0].items()}]), base)
    same(RULES["negation"](at(0.7, taus[:1]), taus[:1], lam=0.7), base)
    taus, zero = [{"w": torch.tensor([v])} for v in (1.0, 2.0, 6.0)], {"w": torch.zeros(1)}
    assert RULES["average"](zero, taus)["w"].item() == 3
    pair = RULES["average"](zero, taus[:2])
    assert RULES["average"](zero, [pair, taus[2]])["w"].item() == 3.75


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


def test_ties_trims_over_the_whole_model():
    """The two largest of five entries sit in one tensor: nothing is left of the other."""
    base = {"a": torch.zeros(2), "b": torch.zeros(3)}
    tau = {"a": torch.tensor([9.0, 8.0]), "b": torch.tensor([1.0, 2.0, 3.0])}
    merged = RULES["ties"](base, [tau], density=0.4)
    assert merged["a"].tolist() == [9, 8] and merged["b"].tolist() == [0, 0, 0]
    same(RULES["ties"](base, [tau, tau], density=1.0), tau)


@pytest.mark.parametrize("entries, density, kept", [
    ([1.0, -2, 2, 2, 1], 0.4, [0, -2, 2, 0, 0]),
    ([3.0, 1, 2, 4], 0.75, [3, 0, 2, 4]),
    ([3.0, 1], 0.2, [0, 0]),
    ([3.0, 1], 1.0, [3, 1]),
])
def test_trim_keeps_exactly_k_and_breaks_ties_by_position(entries, density, kept):
    assert merge.trim({"w": torch.tensor(entries)}, density)["w"].tolist() == kept
    tau = {"b": torch.tensor([2.0, 2]), "a": torch.tensor([1.0, 2])}          # tensors as sorted
    assert [merge.trim(tau, 0.5)[k].tolist() for k in "ab"] == [[0, 2], [2, 0]]


@pytest.mark.parametrize("keep", [1, 300, 2500, 4700, 4999])
def test_largest_of_many_is_that_of_a_sort(keep):
    """numpy's partition orders short arrays whatever it is asked, so the array is long."""
    size = torch.randperm(5000, generator=torch.Generator().manual_seed(0)).float()
    assert merge.largest(size, keep).equal(size >= 5000 - keep)


def test_elect_is_by_mass_not_by_votes_and_a_sum_of_zero_takes_the_majority_sign():
    votes = [{"w": torch.tensor(v)} for v in ([5.0, 1], [-2.0, 1], [-2.0, -1])]
    assert merge.elect(votes)["w"].tolist() == [1, 1]
    assert merge.elect([{"w": torch.tensor([0.0, -1, -2])}])["w"].tolist() == [-1, -1, -1]
    assert merge.elect([{"w": torch.tensor([0.0, -1, 2])}])["w"].tolist() == [1, -1, 1]


def test_flatten_and_back():
    base, _ = problem()
    same(merge.unflatten(merge.flatten(base), base), base)
    assert merge.flatten(base)[:7].equal(base["a"])                       # sorted keys


def test_interpolation_by_hand():
    a, b = {"w": torch.tensor([0.0, 4])}, {"w": torch.tensor([2.0, 0])}
    zero = {"w": torch.zeros(2)}
    at = lambda alpha: RULES["interpolation"](zero, [a, b], alpha=alpha)["w"].tolist()
    assert [at(0.0), at(0.25), at(1.0)] == [[0, 4], [0.5, 3], [2, 0]]


def test_coefficients_and_analogy_by_hand():
    assert RULES["task_arithmetic"](ZERO, [A, B], lam=0.5, coefficients=[1, 2])["w"].tolist() \
        == [1, -6.5, 4, 6.5]
    C = {"w": torch.ones(4)}
    assert RULES["analogy"](ZERO, [A, B, C])["w"].tolist() == [-4, -1, 2, 6]      # C + B - A
    with pytest.raises(BadInput, match="3 coefficients for 2 task vectors"):
        RULES["task_arithmetic"](ZERO, [A, B], coefficients=[1, 2, 3])


def test_scores_weigh_the_average():
    merged = RULES["score_weighted"](ZERO, [A, B], scores=[0.25, 0.75])["w"]
    assert merged.tolist() == [0.25, -4.5, 2.75, 4.75]
    assert RULES["score_weighted"](ZERO, [A, B], scores=[0.0, 0.1])["w"].equal(B["w"])
    for scores in ([0.0, 0.0], [-1.0, 2.0], [2.0, -1.0]):
        refuses("at least 0 and not all 0", RULES["score_weighted"], ZERO, [A, B], scores=scores)


def test_layerwise_groups_are_total_and_equal_coefficients_are_task_arithmetic():
    names = ["cls", "position", "patch.weight", "blocks.0.q.weight", "blocks.11.q.A", "norm.bias"]
    assert list(map(merge.layer_of, names)) == ["cls", "position", "patch.weight", "block0",
                                                "block11", "norm.bias"]
    base = {n: torch.ones(2) for n in names}
    taus = [{n: torch.full((2,), float(t)) for n in names} for t in (1, 2)]
    groups = {merge.layer_of(n): (0.3, 0.3) for n in names}
    same(RULES["layerwise"](base, taus, coefficients=groups), RULES["task_arithmetic"](base, taus))
    only = RULES["layerwise"](base, taus, coefficients=groups | {"block11": (0.0, 1.0)})
    assert only["blocks.11.q.A"].tolist() == [3, 3] and only["cls"][0].item() == pytest.approx(1.9)
    with pytest.raises(BadInput, match="missing or unknown for block12"):
        RULES["layerwise"](base, taus, coefficients=groups | {"block12": (0.3, 0.3)})


def test_gram_schmidt_by_hand_and_its_order():
    """(1,2,2), (2,1,2), (2,2,1) share (1,1,1): the first keeps it."""
    rows = torch.tensor([[1.0, 2, 2], [2, 1, 2], [2, 2, 1]], dtype=torch.float64)
    taus, zero = [{"w": row} for row in rows], {"w": torch.zeros(3, dtype=torch.float64)}
    merged = RULES["gram_schmidt"](zero, taus)["w"]
    expected = torch.tensor([2.70, 1.81, 1.34], dtype=torch.float64)
    torch.testing.assert_close(merged, expected, atol=0.006, rtol=0)
    reverse = RULES["gram_schmidt"](zero, taus[::-1])["w"]
    torch.testing.assert_close(reverse, merged.flip(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["gram_schmidt", "symmetric_orthogonal"])
def test_orthogonal_task_vectors_stay_as_they_are(name):
    taus = [{"w": torch.tensor([3.0, 0, 0])}, {"w": torch.tensor([0, 0.5, 0])}]
    zero = {"w": torch.zeros(3)}
    torch.testing.assert_close(RULES[name](zero, taus)["w"], torch.tensor([3.0, 0.5, 0]))


def test_symmetric_orthogonalisation_treats_both_alike():
    """Two unit vectors at 60 degrees move apart by 15 degrees each, and keep their length."""
    c, s = 0.5, 0.75 ** 0.5
    taus = [{"w": torch.tensor([1.0, 0])}, {"w": torch.tensor([c, s])}]
    merged = RULES["symmetric_orthogonal"]({"w": torch.zeros(2)}, taus)["w"]
    bisector = torch.tensor([s, c])                                  # at 30 degrees
    torch.testing.assert_close(merged, 2 ** 0.5 * bisector)          # 2 cos 45 along it


def test_int8_by_hand():
    """[-2, 1.2, .5, 0]: s = 2/127, 76.2 -> 76 and 31.75 -> 32."""
    q, scale = quantize_rows(torch.tensor([[-2.0, 1.2, 0.5, 0], [0, 0, 0, 0]]))
    assert q.dtype == torch.int8 and q.tolist() == [[-127, 76, 32, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(scale, torch.tensor([[2 / 127], [1.0]]))
    least = 2.0 ** -149             # below it is 0, so s = 190 / 127 of it is rounded to it alone
    assert quantize_rows(torch.tensor([-190 * least, 190 * least]))[0].tolist() == [-127, 127]


def test_int8_error_is_half_a_step_and_below_a_percent():
    base, taus = problem(2)
    exact, close = RULES["task_arithmetic"](base, taus), RULES["int8"](base, taus)
    steps = sum(quantize_rows(tau["l.B"])[1] for tau in taus) / 2
    assert ((exact["l.B"] - close["l.B"]).abs() <= 0.3 * steps + 1e-12).all()
    wide = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    assert (dequantize_rows(*quantize_rows(wide)) - wide).norm() < 0.01 * wide.norm()


def test_dare_survivors_and_expectation():
    tau = {"w": torch.linspace(1, 2, 1000)}
    zero = {"w": torch.zeros(1000)}
    draws = torch.stack([RULES["dare"](zero, [tau], drop=0.75, lam=1.0, seed=s)["w"]
                         for s in range(400)])
    kept = draws != 0
    torch.testing.assert_close(draws[kept], (4 * tau["w"]).expand(400, -1)[kept])
    assert abs(kept.float().mean() - 0.25) < 3 * (0.1875 / 400_000) ** 0.5
    assert (draws.mean(0) - tau["w"]).abs().mean() < 0.25            # sd of one entry's mean: .13


def test_breadcrumbs_by_hand():
    """|x| = .1 ... .9, 10: the largest is an outlier, the smallest three are noise."""
    x = torch.tensor([-0.1, 0.2, -0.3, 0.4, 0.5, 0.6, -0.7, 0.8, 0.9, 10])
    merged = RULES["breadcrumbs"]({"w": torch.zeros(10)}, [{"w": x}], density=0.6, gamma=0.1,
                                  lam=1.0)["w"]
    assert merged.tolist() == [0, 0, 0, *x[3:9].tolist(), 0]


def test_magmax_by_hand():
    assert RULES["magmax"](ZERO, [A, B], lam=1.0)["w"].tolist() == [4, -5, 3, 6]
    tie = [{"w": torch.tensor([2.0])}, {"w": torch.tensor([-2.0])}]
    assert RULES["magmax"]({"w": torch.zeros(1)}, tie, lam=1.0)["w"].tolist() == [-2]


def test_emr_by_hand():
    """tau_uni = [4, -5, 3, 6]; masks 1111 (a agrees everywhere) and 0111; r = 10/18 and 15/14."""
    first, second = RULES["emr"](ZERO, [A, B]).models
    torch.testing.assert_close(first["w"], 10 / 18 * torch.tensor([4.0, -5, 3, 6]))
    torch.testing.assert_close(second["w"], 15 / 14 * torch.tensor([0.0, -5, 3, 6]))


def test_emr_rescales_over_the_whole_model():
    """tau_uni = [1, 3] and [-6]; r = (1 + 3 + 2) / (1 + 3) and (1 + 1 + 6) / (1 + 3 + 6)."""
    taus = [{"a": torch.tensor([1.0, 3]), "b": torch.tensor([2.0])},
            {"a": torch.tensor([1.0, 1]), "b": torch.tensor([-6.0])}]
    first, second = RULES["emr"]({"a": torch.zeros(2), "b": torch.zeros(1)}, taus).models
    same(first, {"a": torch.tensor([1.5, 4.5]), "b": torch.tensor([0.0])})
    same(second, {"a": torch.tensor([0.8, 2.4]), "b": torch.tensor([-4.8])})


def test_tall_masks_and_consensus_by_hand():
    at = lambda threshold: [m["w"].int().tolist() for m in masks([A, B], threshold)[0]]
    assert at(1.0) == [[1, 0, 0, 0], [0, 1, 1, 1]]
    assert at(0.4) == [[1, 1, 1, 0], [0, 1, 1, 1]]
    assert RULES["tall"](ZERO, [A, B], threshold=1.0).models[1]["w"].tolist() == [0, -8, 5, 7]
    merged = RULES["consensus"](ZERO, [A, B], threshold=0.4, lam=1.0)["w"]
    assert merged.tolist() == [0, -8, 5, 0]


SHARE = [0.01, 1.0], [0.0, 1.01]                                # (0, 1]
REST = [0.0, 0.99], [-0.01, 1.0]                                # [0, 1)
SOME = [1], [0]                                                 # at least 1
LIMITS = [("ties", "density", *SHARE), ("knots", "density", *SHARE), ("twin", "keep", *SHARE),
          ("breadcrumbs", "density", *SHARE), ("breadcrumbs", "gamma", *REST),
          ("dare", "drop", *REST), ("iso_cts", "common", *SHARE),
          ("adamerging_task_pp", "density", *SHARE), ("adamerging_task", "batch", *SOME),
          ("fitted", "batch", *SOME), ("lorahub", "shots", *SOME), ("lorahub", "budget", *SOME),
          ("fisher", "examples", *SOME), ("regmean", "examples", *SOME),
          ("regmean_pp", "examples", *SOME), ("regmean", "shrink", [0.0, 1.0], [-0.01, 1.01]),
          ("regmean_pp", "shrink", [0.0, 1.0], [-0.01, 1.01]), ("pleas", "ridge", [1e-9], [0.0])]


@pytest.mark.parametrize("name, key, fit, misfit", LIMITS)
def test_the_last_value_that_fits_and_the_first_that_does_not(name, key, fit, misfit):
    base, taus = problem(count(name))
    for value in fit:
        call(name, base, taus, **{key: value})
    for value in misfit:
        refuses(str(value), call, name, base, taus, **{key: value})


def test_an_unknown_aggregate_is_named():
    refuses("unknown agg 'median'", RULES["ties"], ZERO, [A, B], agg="median")


@pytest.mark.parametrize("name", sorted(SUMS))
def test_a_weighted_sum_holds_one_task_vector_at_a_time(name):
    """When the next one is asked for, only the one before is still held."""
    base, _ = problem()
    refs, most = [], []

    def one_by_one():
        for t in range(4):
            most.append(sum(ref() is not None for ref in refs))
            tau = {k: torch.full_like(v, 0.1 * t + 0.1) for k, v in base.items()}
            refs.append(weakref.ref(tau["a"]))
            yield tau
            del tau

    RULES[name](base, one_by_one())
    assert max(most) <= 1
