"""Twin-Merging and PLeaS: the identities of the equations, and permutations that are known."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import merge
from errors import BadInput
from merge import EXPERTS, RULES
from rules import pleas

KEYS = ("q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias", "out.weight", "out.bias",
        "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], **tolerance)


def noise(like, size, seed=1):
    g = generator(seed)
    return {k: size * torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in like.items()}


# ---- Twin-Merging --------------------------------------------------------------------------------


def around(t, n, seed=50):
    return 0.5 * draw(n, 5, seed=seed + t) + 6 * torch.eye(5, dtype=torch.float64)[t] + 10


def twin_problem(tasks=3, dtype=torch.float64):
    """Features x W^T of inputs around 6 e_t + 10 for task t; a matrix, a vector and a number."""
    base = {"w": draw(6, 5).to(dtype), "b": draw(7, seed=9).to(dtype), "c": draw(1)[0].to(dtype)}
    taus = [noise(base, 0.1, seed=t + 1) for t in range(tasks)]
    labelled = [(around(t, 20).to(dtype), torch.zeros(20).long()) for t in range(tasks)]
    return base, taus, dict(labelled=labelled, features=lambda p, x: x.to(p["w"]) @ p["w"].T)


def test_twin_with_every_singular_value_is_the_tasks():
    base, taus, data = twin_problem()
    models = EXPERTS["twin"](base, taus, keep=1.0, lam=0.7, steps=1, **data).models
    for model, tau in zip(models, taus, strict=True):
        same(model, {k: base[k] + tau[k] for k in base}, atol=1e-12, rtol=0)


@pytest.mark.parametrize("keep, rank", [(0.1, 1), (0.3, 2), (0.5, 2), (0.6, 3), (1.0, 5)])
def test_low_rank_loses_the_tail_of_the_singular_values(keep, rank):
    v = draw(6, 5)
    left = pleas.low_rank(v, keep)
    tail = torch.linalg.svdvals(v)[rank:]
    torch.testing.assert_close((v - left).norm(), tail.norm(), atol=1e-12, rtol=1e-9)
    assert torch.linalg.matrix_rank(left) == rank


def test_twin_truncates_what_is_left_beside_the_shared_part_and_no_vector():
    base, taus, data = twin_problem()
    models = EXPERTS["twin"](base, taus, keep=0.3, lam=0.2, steps=1, **data).models
    shared = {k: base[k] + 0.2 * sum(tau[k] for tau in taus) for k in base}
    for model, tau in zip(models, taus):
        v = base["w"] + tau["w"] - shared["w"]
        torch.testing.assert_close(model["w"], shared["w"] + pleas.low_rank(v, 0.3))
        torch.testing.assert_close(model["b"], base["b"] + tau["b"])


def test_mixture_of_one_is_that_task_and_the_uniform_one_adds_the_mean():
    shared, (a, b, c) = twin_problem()[:2]
    same(pleas.mixture(shared, [a, b, c], [0, 1, 0]), {k: shared[k] + b[k] for k in b})
    same(pleas.mixture(shared, [a, b, c], [1 / 3] * 3),
         {k: shared[k] + (a[k] + b[k] + c[k]) / 3 for k in a})
    with pytest.raises(BadInput, match="2 weights for 3"):
        pleas.mixture(shared, [a, b, c], [0.5, 0.5])


def test_twin_routes_separable_inputs_to_their_task():
    base, taus, data = twin_problem()
    route = EXPERTS["twin"](base, taus, steps=100, **data).route
    for t in range(3):
        assert route(around(t, 300, seed=80)).tolist() == [t] * 300


def test_a_task_with_few_examples_weighs_as_much():
    """Features that tell nothing: one half for each task, not 2 in 40."""
    route = pleas.fit_router([torch.zeros(2, 3), torch.zeros(38, 3)], 100, 8, 1e-2, 0)
    torch.testing.assert_close(route(torch.zeros(1, 3)).softmax(1), torch.full((1, 2), 0.5),
                               atol=0.02, rtol=0)


def test_twin_routes_on_the_features_of_the_shared_model():
    base, taus, data = twin_problem()
    seen = []
    features = lambda p, x: seen.append(p["w"]) or data["features"](p, x)
    EXPERTS["twin"](base, taus, lam=0.4, steps=1, labelled=data["labelled"], features=features)
    assert len(seen) == 3
    for w in seen:
        torch.testing.assert_close(w, base["w"] + 0.4 * sum(tau["w"] for tau in taus))


def test_twin_same_seed_same_bits_and_the_random_state_stays():
    base, taus, data = twin_problem()
    x, state = draw(64, 5, seed=7) + 12, torch.get_rng_state()
    with torch.no_grad():
        one, two, other = (EXPERTS["twin"](base, taus, steps=3, seed=s, **data) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.route(x), two.route(x)) and not torch.equal(one.route(x), other.route(x))
    assert all(torch.equal(p[k], q[k]) for p, q in zip(one.models, two.models) for k in base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_twin_of_zeros_is_the_base_and_inputs_are_untouched(dtype):
    base, taus, data = twin_problem(dtype=dtype)
    zeros = [{k: torch.zeros_like(v) for k, v in base.items()} for _ in taus]
    for model in EXPERTS["twin"](base, zeros, steps=1, **data).models:
        assert all(torch.equal(model[k], base[k]) and model[k].dtype == dtype for k in base)
    copies = [{k: v.clone() for k, v in d.items()} for d in (base, *taus)]
    models = EXPERTS["twin"](base, [*taus[:2], zeros[0]], steps=1, **data).models
    assert all(v.isfinite().all() for model in models for v in model.values())
    assert all(torch.equal(d[k], c[k]) for d, c in zip((base, *taus), copies) for k in d)


def test_twin_rejects():
    base, taus, data = twin_problem()
    with pytest.raises(BadInput, match=r"keep 0.0 is outside \(0, 1\]"):
        EXPERTS["twin"](base, taus, keep=0.0, **data)
    with pytest.raises(BadInput, match="3 labelled for 2 task vectors"):
        EXPERTS["twin"](base, taus[:2], **data)
    with pytest.raises(BadInput, match="twin needs data: labelled .*features"):
        EXPERTS["twin"](base, taus)


# ---- PLeaS: permutations -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("seed", range(6))
def test_assignment_against_all_permutations(n, seed):
    similarity = draw(n, n, seed=seed)
    if seed % 2:
        similarity = similarity.round()                                          # many ties
    perm = pleas.assignment(similarity)
    assert perm.sort().values.tolist() == list(range(n))
    best = max(sum(similarity[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n)))
    assert similarity[torch.arange(n), perm].sum() == pytest.approx(float(best), abs=1e-7)


def test_assignment_by_hand():
    """Greedy takes 9 and then 0; the best is 8 + 7. A row's permutation, not a column's."""
    assert pleas.assignment(torch.tensor([[9.0, 8], [7, 0]])).tolist() == [1, 0]
    cycle = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert pleas.assignment(cycle).tolist() == [1, 2, 0]


def test_ties_go_to_the_identity():
    assert pleas.assignment(torch.ones(9, 9)).tolist() == list(range(9))
    rounding = 1e-14 * draw(9, 9)
    assert pleas.assignment(torch.ones(9, 9) + rounding).tolist() == list(range(9))


@pytest.mark.parametrize("similarity", [torch.ones(2, 3), torch.full((2, 2), float("nan"))])
def test_assignment_rejects(similarity):
    with pytest.raises(BadInput, match="give a square, finite matrix"):
        pleas.assignment(similarity)


def weights_of(encoder, seed=5):
    """Every weight of the encoder, LayerNorms moved off 1 and 0."""
    params = {k: v.detach().clone() for k, v in encoder.named_parameters()}
    return {k: v + d for (k, v), d in zip(params.items(), noise(params, 0.1, seed).values())}


def activations_of(encoder):
    """The callable (params, images) -> {weight name: inputs (rows, in)} of the linear layers."""
    def activations(params, x):
        seen, hooks = {}, []
        for name, layer in encoder.named_modules():
            if isinstance(layer, torch.nn.Linear):
                keep = lambda _, args, name=name: seen.update(
                    {f"{name}.weight": args[0].reshape(-1, args[0].shape[-1])})
                hooks.append(layer.register_forward_pre_hook(keep))
        functional_call(encoder, params, (x,))
        for hook in hooks:
            hook.remove()
        return seen
    return activations


def images(n=12, seed=2):
    return torch.rand(n, 1, 28, 28, generator=generator(seed), dtype=torch.float64)


UNITS, HEADS = torch.randperm(24, generator=generator(1)), torch.tensor([1, 0])


def test_permuting_units_and_heads_keeps_the_function(encoder):
    params, x = weights_of(encoder), images()
    moved = pleas.permute(params, "blocks.1", UNITS, HEADS)
    torch.testing.assert_close(functional_call(encoder, moved, (x,)),
                               functional_call(encoder, params, (x,)), atol=1e-10, rtol=0)
    for name in {*pleas.UNITS, *pleas.HEADS}:
        assert not torch.equal(moved[f"blocks.1.{name}"], params[f"blocks.1.{name}"])
    back = pleas.permute(moved, "blocks.1", UNITS.argsort(), HEADS.argsort())
    assert all(torch.equal(back[k], params[k]) for k in params)


def test_permuting_by_hand():
    """W1 = [[1, 0], [0, 2]] with its units swapped, and the columns of W2 with them."""
    params = {"m.fc1.weight": torch.tensor([[1.0, 0], [0, 2]]),
              "m.fc1.bias": torch.tensor([3.0, 4]), "m.fc2.weight": torch.tensor([[5.0, 6]])}
    swapped = pleas.permute(params, "m", torch.tensor([1, 0]))
    assert swapped["m.fc1.weight"].tolist() == [[0, 2], [1, 0]]
    assert swapped["m.fc1.bias"].tolist() == [4, 3]
    assert swapped["m.fc2.weight"].tolist() == [[6, 5]]
    assert pleas.match_mlp(params, swapped, "m")[0].tolist() == [1, 0]
    with pytest.raises(BadInput, match="m.fc1.bias is missing"):
        pleas.permute({k: v for k, v in params.items() if "bias" not in k}, "m", HEADS)


def test_permuting_the_residual_stream_permutes_the_features(encoder):
    params, x = weights_of(encoder), images()
    stream = torch.randperm(16, generator=generator(3))
    moved = pleas.permute_stream(params, stream)
    before, after = (functional_call(encoder, p, (x,)) for p in (params, moved))
    torch.testing.assert_close(after, before[:, stream], atol=1e-10, rtol=0)
    assert pleas.assignment(pleas.correlation(before[:, stream], before)).equal(stream)
    with pytest.raises(BadInput, match="head.weight is no weight of an encoder"):
        pleas.permute_stream({"head.weight": draw(3, 16)}, stream)


def test_layer_scale_moves_with_the_stream():
    params = {f"blocks.0.{k}": torch.arange(3.0) for k in ("ls1", "ls2", "fc1.bias")}
    moved = pleas.permute_stream(params, torch.tensor([2, 0, 1]))
    assert [v.tolist() for v in moved.values()] == [[2, 0, 1], [2, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize("from_data", [False, True])
def test_matching_recovers_a_permutation(encoder, from_data):
    """Unit i of a is unit P^-1(i) of the b that has P applied."""
    a, block = weights_of(encoder), "blocks.0"
    b = pleas.permute(a, block, UNITS, HEADS)
    seen = [activations_of(encoder)(p, images()) for p in (a, b)] if from_data else None
    units, likeness = pleas.match_mlp(a, b, block, seen)
    assert units.equal(UNITS.argsort()) and not units.equal(UNITS)
    torch.testing.assert_close(likeness, torch.ones_like(likeness))
    assert pleas.match_heads(a, b, block, 2, seen).equal(HEADS)


def test_units_that_differ_in_their_bias_only_are_told_apart():
    a = {"m.fc1.weight": torch.ones(2, 3), "m.fc2.weight": torch.ones(3, 2),
         "m.fc1.bias": torch.tensor([1.0, -1])}
    b = pleas.permute(a, "m", HEADS)
    assert pleas.match_mlp(a, b, "m")[0].tolist() == [1, 0]


@pytest.mark.parametrize("from_data", [False, True])
def test_matching_recovers_six_heads(from_data):
    order = torch.tensor([1, 2, 0, 5, 3, 4])
    a = {f"m.{k}": draw(18, 18 if "weight" in k else 1, seed=i).squeeze()
         for i, k in enumerate(pleas.HEADS)}
    b, mixed = pleas.permute(a, "m", heads=order), draw(40, 6, 3, seed=30)
    seen = [{"m.out.weight": x.reshape(40, 18)} for x in (mixed, mixed[:, order])]
    found = pleas.match_heads(a, b, "m", 6, seen if from_data else None)
    assert found.equal(order.argsort()) and not found.equal(order)


def test_a_head_is_found_in_another_basis(encoder):
    """v -> R v and out -> out R^-1 within a head is the same head."""
    a, block = weights_of(encoder), "blocks.0"
    R = torch.block_diag(draw(8, 8, seed=1), draw(8, 8, seed=2))
    b = a | {f"{block}.v.weight": R @ a[f"{block}.v.weight"],
             f"{block}.out.weight": a[f"{block}.out.weight"] @ R.inverse()}
    b = pleas.permute(b, block, heads=HEADS)
    assert pleas.match_heads(a, b, block, 2).equal(HEADS)
    with pytest.raises(BadInput, match="heads 3 does not divide the width 16 of blocks.0"):
        pleas.match_heads(a, b, block, 3)


def test_a_constant_unit_correlates_with_nothing():
    x = torch.cat([draw(9, 1), torch.full((9, 1), 0.1, dtype=torch.float64)], 1)
    torch.testing.assert_close(pleas.correlation(x, -x),
                               torch.tensor([[-1.0, 0], [0, 0]], dtype=torch.float64))


# ---- PLeaS: widths and fits ----------------------------------------------------------------------


def mlps():
    """Two MLPs 4 -> 6 -> 3 of nothing in common, inputs (40, 4) and their activations."""
    shapes = {"fc1.weight": (6, 4), "fc1.bias": (6,), "fc2.weight": (3, 6), "fc2.bias": (3,)}
    a, b = ({f"m.{k}": draw(*s, seed=10 * j + i) for i, (k, s) in enumerate(shapes.items())}
            for j in (1, 2))
    x = draw(40, 4, seed=99)
    hidden = lambda p: F.gelu(pleas.output(p, "m.fc1.weight", x))
    return a, b, x, [{"m.fc1.weight": x, "m.fc2.weight": hidden(p)} for p in (a, b)]


def mlp(p, x):
    return pleas.output(p, "m.fc2.weight", F.gelu(pleas.output(p, "m.fc1.weight", x)))


@pytest.mark.parametrize("with_data", [False, True])
def test_full_width_is_the_mean_of_both_outputs(with_data):
    a, b, x, seen = mlps()
    both = pleas.partial_mlp(a, b, "m", 1.0, seen if with_data else None)
    assert both["m.fc1.weight"].shape == (12, 4) and both["m.fc2.weight"].shape == (3, 12)
    torch.testing.assert_close(mlp(both, x), (mlp(a, x) + mlp(b, x)) / 2, atol=1e-10, rtol=0)


def test_width_zero_is_the_mean_of_matched_units():
    a, b, *_ = mlps()
    perm = pleas.match_mlp(a, b, "m")[0]
    assert perm.tolist() != list(range(6))
    merged, b = pleas.partial_mlp(a, b, "m", 0.0), pleas.permute(b, "m", perm)
    same(merged, {k: (a[k] + b[k]) / 2 for k in a})


def test_the_worst_pairs_stay_apart():
    """Unit 1 of b is another one: half of two units, with half the output weight each."""
    a, other, x, _ = mlps()
    b = dict(a)
    for k, dim in pleas.UNITS.items():
        b[f"m.{k}"] = a[f"m.{k}"].clone()
        b[f"m.{k}"].select(dim, 1).copy_(-other[f"m.{k}"].select(dim, 1))
    merged = pleas.partial_mlp(a, b, "m", 0.2)
    assert merged["m.fc1.weight"].shape == (7, 4) and merged["m.fc2.weight"].shape == (3, 7)
    assert merged["m.fc1.bias"].equal(torch.cat([a["m.fc1.bias"][[0, 2, 3, 4, 5, 1]],
                                                 b["m.fc1.bias"][[1]]]))
    torch.testing.assert_close(mlp(merged, x), (mlp(a, x) + mlp(b, x)) / 2)
    with pytest.raises(BadInput, match=r"ratio 1.2 is outside \[0, 1\]"):
        pleas.partial_mlp(a, b, "m", 1.2)


def test_a_refit_is_nearer_to_the_mean_output():
    a, b, x, seen = mlps()
    miss = [(mlp(pleas.partial_mlp(a, b, "m", 0.5, s), x) - (mlp(a, x) + mlp(b, x)) / 2).norm()
            for s in (None, seen)]
    assert miss[1] < 0.8 * miss[0]


def test_least_squares_against_lstsq():
    Z, Y, start = draw(30, 5), draw(30, 4, seed=1), draw(4, 5, seed=2)
    torch.testing.assert_close(pleas.least_squares(Z, Y, start, 1e-13),
                               torch.linalg.lstsq(Z, Y).solution.T)
    scale = (0.3 * Z.square().sum(0).mean()).sqrt()              # a ridge is five more rows
    rows = torch.cat([Z, scale * torch.eye(5)]), torch.cat([Y, scale * start.T])
    torch.testing.assert_close(pleas.least_squares(Z, Y, start, 0.3),
                               torch.linalg.lstsq(*rows).solution.T)


def test_what_no_input_shows_keeps_its_start():
    """One row e_1 with target 7: the other column stays; without inputs everything does."""
    start, Z = draw(1, 2), torch.tensor([[1.0, 0]])
    W = pleas.least_squares(Z, torch.tensor([[7.0]]), start)
    assert W[0, 0] == pytest.approx(7, abs=1e-4) and W[0, 1] == start[0, 1]
    assert pleas.least_squares(0 * Z, torch.tensor([[7.0]]), start).equal(start)
    with pytest.raises(BadInput, match="ridge 0.0 must be above 0"):
        pleas.least_squares(Z, Z, start, 0.0)


def pleas_problem(encoder, size=0.01, keys=KEYS):
    """Weights of both blocks by `keys`, two task vectors of entries `size`, and the data."""
    params = dict(encoder.named_parameters())
    base = {k: v.detach().clone() for k, v in params.items() if k.startswith("blocks.")
            and k.split(".", 2)[2] in keys}
    full = activations_of(encoder)
    batches = [images(10, seed=21), images(10, seed=22)]
    return base, [noise(base, size, s) for s in (1, 2)], dict(activations=full, batches=batches)


def test_pleas_of_equal_tasks_is_the_task(encoder):
    base, (tau, _), data = pleas_problem(encoder, 0.1)
    same(RULES["pleas"](base, [tau, tau], heads=2, **data), {k: base[k] + tau[k] for k in base},
         atol=1e-8, rtol=0)


def test_pleas_of_a_model_and_its_permutation_is_the_model(encoder):
    base, (tau, _), data = pleas_problem(encoder, 0.1)
    a = {k: base[k] + tau[k] for k in base}
    b = pleas.permute(pleas.permute(a, "blocks.0", UNITS, HEADS), "blocks.1", UNITS)
    taus = [tau, {k: b[k] - base[k] for k in base}]
    same(RULES["pleas"](base, taus, heads=2, **data), a, atol=1e-6, rtol=0)
    k = "blocks.0.fc1.weight"
    assert (RULES["average"](base, taus)[k] - a[k]).norm() > 1


def test_pleas_averages_the_first_layer_and_fits_the_last_to_the_mean_output(encoder):
    """q of the first block has the same inputs in both models, out of the last has not."""
    base, taus, data = pleas_problem(encoder, 0.1, ("q.weight", "out.weight"))
    merged = RULES["pleas"](base, taus, **data)
    k = "blocks.0.q.weight"
    mean = base[k] + (taus[0][k] + taus[1][k]) / 2
    torch.testing.assert_close(merged[k], mean, atol=1e-9, rtol=0)
    k = "blocks.1.out.weight"
    (A, X), (B, Y) = ((p[k], data["activations"](p, torch.cat(data["batches"]))[k].detach())
                      for p in ({n: base[n] + tau[n] for n in base} for tau in taus))
    Z = (X + Y) / 2
    left = torch.linalg.lstsq(Z, (X - Y) @ (A - B).T / 4).solution.T
    assert left.norm() > 1e-3
    assert (merged[k] - (A + B) / 2 - left).norm() < 1e-3 * left.norm()


@pytest.mark.parametrize("dropped", ["fc1.bias", "fc1.weight", "fc2.weight"])
def test_units_stay_in_place_where_a_key_is_missing(encoder, dropped):
    """Without fc1.bias a permutation would change the function."""
    keys = [k for k in KEYS if k != dropped]
    base, (tau, _), data = pleas_problem(encoder, 0.0, keys)
    calls = []
    activations = lambda p, x: calls.append(p) or data["activations"](p, x)
    RULES["pleas"](base, [tau, noise(base, 0.5)], batches=data["batches"], activations=activations)
    before, after = calls[len(calls) // 3], calls[-1]      # a, b, b again, on every batch
    assert all(torch.equal(before[k], after[k]) for k in base)


def test_fine_tunes_of_one_base_are_matched_already(encoder):
    base, taus, data = pleas_problem(encoder, 0.02)
    a, b = ({k: base[k] + tau[k] for k in base} for tau in taus)
    seen = [data["activations"](p, torch.cat(data["batches"])) for p in (a, b)]
    for block in ("blocks.0", "blocks.1"):
        for known in (seen, None):
            fixed = pleas.match_mlp(a, b, block, known)[0] == torch.arange(24)
            assert fixed.double().mean() >= 0.95
            assert pleas.match_heads(a, b, block, 2, known).tolist() == [0, 1]


def test_pleas_keeps_the_contract(encoder):
    base, taus, data = pleas_problem(encoder)
    zero = {k: torch.zeros_like(v) for k, v in base.items()}
    same(RULES["pleas"](base, [zero, zero], heads=2, **data), base, atol=1e-12, rtol=0)
    copies = [{k: v.clone() for k, v in d.items()} for d in (base, *taus)]
    one, two = (RULES["pleas"](base, taus, heads=2, **data) for _ in range(2))
    assert one.keys() == base.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert all(v.isfinite().all() for v in RULES["pleas"](base, [zero, taus[0]], **data).values())
    assert all(torch.equal(d[k], c[k]) for d, c in zip((base, *taus), copies) for k in d)
    with pytest.raises(BadInput, match="pleas takes 2 task vectors and got 3"):
        RULES["pleas"](base, [*taus, zero], **data)
    assert RULES["pleas"].space == "weight" and "ridge" in merge.options("pleas")


def test_pleas_computes_in_float32_and_casts_once():
    """Any name is a weight: the rule asks `activations`, not the model, what is a linear layer."""
    base = {"b.w": draw(3, 5).bfloat16(), "a": draw(7).bfloat16()}
    taus = [{k: v.bfloat16() for k, v in noise(base, 0.1, s).items()} for s in (1, 2)]
    data = dict(batches=[draw(9, 5).float()] * 2, activations=lambda p, x: {"b.w": x + p["a"][:5]})
    up = lambda d: {k: v.float() for k, v in d.items()}
    merged = RULES["pleas"](base, taus, **data)
    wide = RULES["pleas"](up(base), [up(tau) for tau in taus], **data)
    assert all(v.dtype == torch.bfloat16 for v in merged.values())
    assert all(torch.equal(merged[k], wide[k].bfloat16()) for k in base)
