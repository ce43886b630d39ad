"""Twin-Merging: the identities of its equations, the router, and what is left to a task."""

import pytest
import torch

from merge import RULES
from rules import twin
from support import close, draw, noise, refuses, same


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
    models = RULES["twin"](base, taus, keep=1.0, lam=0.7, steps=1, **data).models
    for model, tau in zip(models, taus, strict=True):
        same(model, {k: base[k] + tau[k] for k in base}, atol=1e-12, rtol=0)


@pytest.mark.parametrize("keep, rank", [(0.1, 1), (0.3, 2), (0.5, 2), (0.6, 3), (1.0, 5)])
def test_low_rank_loses_the_tail_of_the_singular_values(keep, rank):
    v = draw(6, 5)
    left = twin.low_rank(v, keep)
    tail = torch.linalg.svdvals(v)[rank:]
    close((v - left).norm(), tail.norm(), atol=1e-12, rtol=1e-9)
    assert torch.linalg.matrix_rank(left) == rank


def test_twin_truncates_what_is_left_beside_the_shared_part_and_no_vector():
    base, taus, data = twin_problem()
    models = RULES["twin"](base, taus, keep=0.3, lam=0.2, steps=1, **data).models
    shared = {k: base[k] + 0.2 * sum(tau[k] for tau in taus) for k in base}
    for model, tau in zip(models, taus):
        v = base["w"] + tau["w"] - shared["w"]
        close(model["w"], shared["w"] + twin.low_rank(v, 0.3))
        close(model["b"], base["b"] + tau["b"])


def test_twin_routes_separable_inputs_to_their_task():
    base, taus, data = twin_problem()
    route = RULES["twin"](base, taus, steps=100, **data).route
    for t in range(3):
        assert route(around(t, 300, seed=80)).tolist() == [t] * 300


def test_a_task_with_few_examples_weighs_as_much():
    """Features that tell nothing: one half for each task, not 2 in 40."""
    route = twin.fit_router([torch.zeros(2, 3), torch.zeros(38, 3)], 100, 8, 1e-2, 0)
    close(route(torch.zeros(1, 3)).softmax(1), torch.full((1, 2), 0.5), atol=0.02, rtol=0)


def test_twin_routes_on_the_features_of_the_shared_model():
    base, taus, data = twin_problem()
    seen = []
    features = lambda p, x: seen.append(p["w"]) or data["features"](p, x)
    RULES["twin"](base, taus, lam=0.4, steps=1, labelled=data["labelled"], features=features)
    assert len(seen) == 3
    for w in seen:
        close(w, base["w"] + 0.4 * sum(tau["w"] for tau in taus))


def test_twin_same_seed_same_bits_and_the_random_state_stays():
    base, taus, data = twin_problem()
    x, state = draw(64, 5, seed=7) + 12, torch.get_rng_state()
    with torch.no_grad():
        one, two, other = (RULES["twin"](base, taus, steps=3, seed=s, **data) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.route(x), two.route(x)) and not torch.equal(one.route(x), other.route(x))
    assert all(torch.equal(p[k], q[k]) for p, q in zip(one.models, two.models) for k in base)


def test_twin_rejects():
    base, taus, data = twin_problem()
    refuses(r"keep 0.0 is outside \(0, 1\]", RULES["twin"], base, taus, keep=0.0, **data)
    refuses("3 labelled for 2 task vectors", RULES["twin"], base, taus[:2], **data)
    with pytest.raises(TypeError, match="missing .*features.*labelled"):
        RULES["twin"](base, taus)
