"""What every adapter in the registry must satisfy, in float64 and away from initialisation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import lora
from lora import ADAPTERS
from support import (SHAPES, close, every_adapter, every_shape, every_weight_edit, inputs, make,
                     moved, perturb, refuses, small, train_steps)


@every_adapter
@every_shape
def test_unchanged_at_the_start(name, shape):
    layer = make(name, shape)
    x, _ = inputs(layer)
    close(layer(x), layer.base(x), atol=1e-10, rtol=0)
    assert not layer.weight_edit or layer.delta_weight().abs().max() < 1e-10


@every_weight_edit
@every_shape
def test_forward_is_the_dense_edit(name, shape):
    layer = moved(name, shape)
    x, _ = inputs(layer)
    bias, change = layer.base.bias, layer.delta_bias()
    bias = bias if change is None else bias + change
    dense = F.linear(x, layer.base.weight + layer.delta_weight(), bias)
    close(layer(x), dense, atol=1e-10, rtol=0)


@every_adapter
@every_shape
def test_a_moved_adapter_does_something(name, shape):
    layer = moved(name, shape)
    x, _ = inputs(layer)
    assert (layer(x) - layer.base(x)).abs().max() > 1e-2


@every_adapter
@every_shape
def test_base_is_frozen_bit_for_bit(name, shape):
    layer = make(name, shape)
    before = {k: v.clone() for k, v in layer.base.state_dict().items()}
    train_steps(layer, 3, wd=0.1)
    for k, v in layer.base.state_dict().items():
        assert torch.equal(v, before[k]), k
    assert not any(p.requires_grad for p in layer.base.parameters())


@every_adapter
@every_shape
def test_trainable_count_is_the_closed_form(name, shape):
    layer = make(name, shape)
    assert sum(p.numel() for p in lora.trainable(layer).values()) == layer.trainable_count()


@every_adapter
def test_optimizer_groups_hold_every_parameter_once(name):
    layer = make(name, SHAPES[0])
    grouped = [id(p) for g in layer.param_groups(0.1, 0.1) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in lora.trainable(layer).values())


DEAD = {"l_lora": {"A"}}             # B0 = 0, so no gradient ever reaches A


@every_adapter
def test_every_trained_parameter_moves_or_is_declared_dead(name):
    layer = make(name, SHAPES[0])
    before = {k: p.detach().clone() for k, p in lora.trainable(layer).items()}
    train_steps(layer, 3)
    still = {k for k, p in lora.trainable(layer).items() if torch.equal(p, before[k])}
    assert still == DEAD.get(name, set())


@every_adapter
def test_gradient_against_finite_differences(name):
    layer = moved(name, (4, 3, True))
    x, target = inputs(layer)
    names = list(lora.trainable(layer))

    def loss(*values):
        return F.mse_loss(functional_call(layer, dict(zip(names, values)), (x,)), target)

    assert torch.autograd.gradcheck(loss, tuple(lora.trainable(layer).values()))


@every_adapter
def test_train_and_eval_mode_agree(name):
    layer = moved(name, SHAPES[0])
    x, _ = inputs(layer)
    assert torch.equal(layer.train()(x), layer.eval()(x))


@every_weight_edit
def test_rank_bound_is_the_rank_in_general(name):
    layer = moved(name, (9, 8, True))
    rank, bound = torch.linalg.matrix_rank(layer.delta_weight()), layer.rank_bound()
    sparse = name in ("spa", "rosa")                      # a row without an entry costs them rank
    assert rank == bound or sparse and rank < bound == 8


@pytest.mark.parametrize("name, hp, bound", [
    ("disha", {"rank": 2, "columns": 3}, 2), ("disha", {"rank": 3, "columns": 2}, 2),
    ("vera", {"rank": 40}, 5), ("dora", {}, 5), ("l_lora", {}, 2), ("pissa", {}, 4)])
def test_rank_bound_by_hand(name, hp, bound):
    """A layer of 7 inputs and 5 outputs; L-LoRA has rank r while B0 = 0, PiSSA has 2 r."""
    assert make(name, (7, 5, True), **hp).rank_bound() == bound


def test_l_lora_away_from_zero_has_twice_the_rank():
    """B A0 + B0 (A - A0), two products of rank r = 2."""
    layer = perturb(make("l_lora", (7, 5, True)))
    layer.B0.copy_(torch.eye(5, 2))
    assert torch.linalg.matrix_rank(layer.delta_weight()) == layer.rank_bound() == 4


LIMITS = [                                    # a layer of 9 inputs and 7 outputs, 50 steps
    ("lora", "rank", [1, 7], [0, 8], {}),
    ("spectral_a", "rank", [1, 7], [0, 8], {}),
    ("bone", "rank", [1, 7], [0, 8], {}),
    ("disha", "columns", [1, 7], [0, 8], {}),
    ("vera", "rank", [1, 90], [0], {}),
    ("adalora", "target", [1, 4], [0, 5], {"rank": 4}),
    ("adalora", "warmup", [0.0, 0.68], [-0.02, 0.7], {"final": 0.3}),
    ("adalora", "final", [0.0, 0.88], [-0.02, 0.9], {"warmup": 0.1}),
    ("lora_dash", "directions", [1, 7], [0, 8], {}),
    ("lora_dash", "launch", [1, 49], [0, 50], {}),
    ("spa", "density", [1 / 63 + 1e-9, 1.0], [0.0, 1 / 63 - 1e-9, 1.001], {}),
    ("spa", "collect", [1, 49], [0, 50], {}),
    ("rosa", "collect", [1, 5], [0, 6], {"warmup": 5}),
    ("rosa", "warmup", [5, 49], [4, 50], {"collect": 5}),
]


@pytest.mark.parametrize("name, key, fit, misfit, others", LIMITS)
def test_the_last_value_that_fits_and_the_first_that_does_not(name, key, fit, misfit, others):
    def start(value):
        layer = make(name, (9, 7, True), **others | {key: value})
        layer.before_training([layer], 50)

    for value in fit:
        start(value)
    for value in misfit:
        refuses(str(value) if value else key, start, value)


def test_columns_may_outnumber_the_inputs():
    assert make("disha", (5, 9, True), columns=9).delta_weight().shape == (9, 5)


@every_adapter
def test_default_learning_rates_cover_the_readings(name):
    assert set(ADAPTERS[name].lr) <= {"off", "layer", "model"}
    assert ADAPTERS[name].linearize in ADAPTERS[name].lr


@every_adapter
def test_bfloat16_trains(name):
    """Two steps with the hooks, which may need what bfloat16 lacks: inverse, SVD, solve."""
    project = {"project": True} if name == "lora_fa" else {}
    layer = ADAPTERS[name](nn.Linear(7, 5).bfloat16(), **small(name) | project)
    x, target = (v.bfloat16() for v in inputs(layer))
    for step in (1, 2):
        F.mse_loss(layer(x), target).backward()
        type(layer).after_backward([layer], step, 2)
        torch.optim.SGD(layer.param_groups(0.1, 0.0)).step()
        type(layer).after_step([layer], step, 2)
    assert layer(x).dtype == torch.bfloat16 and layer(x).isfinite().all()


def test_doubling_alpha_doubles_the_delta():
    base = nn.Linear(6, 5)
    deltas = [perturb(lora.LoRA(base, rank=2, alpha=a, generator=torch.Generator().manual_seed(0)))
              .delta_weight() for a in (4.0, 8.0)]
    close(deltas[1], 2 * deltas[0])


def test_lora_gradients_at_the_start():
    """At B = 0: grad A = 0 and grad B = s (g^T x) A^T with g = dL/dy."""
    layer = make("lora", (7, 5, True))
    x, _ = inputs(layer)
    g = torch.randn(2, 3, 5, dtype=torch.float64)
    (layer(x) * g).sum().backward()
    assert torch.equal(layer.A.grad, torch.zeros_like(layer.A))
    G = torch.einsum("bto,bti->oi", g, x)
    close(layer.B.grad, layer.scale * G @ layer.A.detach().T)


def test_lora_starts_from_a_uniform_A_of_width_one_over_root_in():
    A = lora.LoRA(nn.Linear(400, 300), rank=100, generator=torch.Generator().manual_seed(0)).A
    assert 0.045 < A.max() < 0.05 and -0.05 < A.min() < -0.045
    assert abs(A.std() - 0.05 / 3 ** 0.5) < 0.0005


# ---- inject --------------------------------------------------------------------------------------

def test_inject_freezes_all_else_and_names_what_it_replaced(encoder):
    names = lora.inject(encoder, "lora", "q,v", rank=2)
    assert names == ["blocks.0.q", "blocks.0.v", "blocks.1.q", "blocks.1.v"]
    assert set(lora.adapters(encoder)) == set(names)
    assert {n.rpartition(".")[2] for n in lora.trainable(encoder)} == {"A", "B"}


def test_inject_all_is_every_linear(encoder):
    assert len(lora.inject(encoder, "lora", rank=2)) == 12


def test_target_must_be_a_whole_name(encoder):
    """`ut` is the end of `out` as text, but not as a name."""
    refuses("unknown target 'ut': did you mean 'out'", lora.inject, encoder, "lora", "ut")


@pytest.mark.parametrize("arguments, told", [
    (dict(name="l_lra"), "unknown adapter 'l_lra': did you mean 'l_lora'"),
    (dict(name="lora", targets="q,v_porj"), "unknown target 'v_porj'"),
    (dict(name="lora", rank=0), "rank 0 does not fit"),
    (dict(name="lora", rank=17), "rank 17 does not fit a layer of 16 inputs"),
    (dict(name="lora", rnk=4), "unknown key for adapter lora 'rnk': did you mean 'rank'"),
    (dict(name="full", rank=4), "unknown key for adapter full 'rank'"),
])
def test_inject_rejects(encoder, arguments, told):
    refuses(told, lora.inject, encoder, **arguments)


def test_the_same_seed_gives_the_same_start(encoder):
    import copy
    starts = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(encoder)
        lora.inject(model, "lora", generator=torch.Generator().manual_seed(seed))
        starts.append(model.blocks[1].fc1.A.detach())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_scale_title_and_defaults():
    """AdaLoRA by hand: alpha / rank P diag(e) Q = 16 / 2 (1, 2)^T (3) (1, 1), the other e is 0."""
    layer = ADAPTERS["adalora"](nn.Linear(2, 2), rank=2, target=1, alpha=16.0)
    with torch.no_grad():
        layer.P.copy_(torch.tensor([[1.0, 9], [2, 9]])), layer.Q.copy_(torch.ones(2, 2))
        layer.e.copy_(torch.tensor([3.0, 0]))
    assert layer.delta_weight().tolist() == [[24, 24], [48, 48]]
    assert lora.paper(ADAPTERS["dora"]) == \
        "DoRA: Weight-Decomposed Low-Rank Adaptation. arXiv:2402.09353, eq. 5"
    assert lora.hyperparameters(ADAPTERS["spa"]) == {"density": 0.01, "collect": 1}
