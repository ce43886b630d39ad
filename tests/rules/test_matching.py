"""Permutations that are known: the assignment finds them, and the network stays the same."""

import itertools

import pytest
import torch
from torch.func import functional_call

from errors import BadInput
from rules import matching
from support import (HEAD_ORDER, UNIT_ORDER, activations_of, close, draw, generator, images,
                     refuses, weights_of)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("seed", range(6))
def test_assignment_against_all_permutations(n, seed):
    similarity = draw(n, n, seed=seed)
    if seed % 2:
        similarity = similarity.round()                                          # many ties
    perm = matching.assignment(similarity)
    assert perm.sort().values.tolist() == list(range(n))
    best = max(sum(similarity[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n)))
    assert similarity[torch.arange(n), perm].sum() == pytest.approx(float(best), abs=1e-7)


def test_assignment_by_hand():
    """Greedy takes 9 and then 0; the best is 8 + 7. A row's permutation, not a column's."""
    assert matching.assignment(torch.tensor([[9.0, 8], [7, 0]])).tolist() == [1, 0]
    cycle = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert matching.assignment(cycle).tolist() == [1, 2, 0]


def test_ties_go_to_the_identity():
    assert matching.assignment(torch.ones(9, 9)).tolist() == list(range(9))
    rounding = 1e-14 * draw(9, 9)
    assert matching.assignment(torch.ones(9, 9) + rounding).tolist() == list(range(9))


@pytest.mark.parametrize("similarity", [torch.ones(2, 3), torch.full((2, 2), float("nan"))])
def test_assignment_rejects(similarity):
    refuses("give a square, finite matrix", matching.assignment, similarity)


def test_permuting_units_and_heads_keeps_the_function(encoder):
    params, x = weights_of(encoder), images()
    moved = matching.permute(params, "blocks.1", UNIT_ORDER, HEAD_ORDER)
    close(functional_call(encoder, moved, (x,)),
          functional_call(encoder, params, (x,)), atol=1e-10, rtol=0)
    for name in {*matching.UNITS, *matching.HEADS}:
        assert not torch.equal(moved[f"blocks.1.{name}"], params[f"blocks.1.{name}"])
    back = matching.permute(moved, "blocks.1", UNIT_ORDER.argsort(), HEAD_ORDER.argsort())
    assert all(torch.equal(back[k], params[k]) for k in params)


def test_permuting_by_hand():
    """W1 = [[1, 0], [0, 2]] with its units swapped, and the columns of W2 with them."""
    params = {"m.fc1.weight": torch.tensor([[1.0, 0], [0, 2]]),
              "m.fc1.bias": torch.tensor([3.0, 4]), "m.fc2.weight": torch.tensor([[5.0, 6]])}
    swapped = matching.permute(params, "m", torch.tensor([1, 0]))
    assert swapped["m.fc1.weight"].tolist() == [[0, 2], [1, 0]]
    assert swapped["m.fc1.bias"].tolist() == [4, 3]
    assert swapped["m.fc2.weight"].tolist() == [[6, 5]]
    with pytest.raises(BadInput, match="m.fc1.bias is missing"):
        matching.permute({k: v for k, v in params.items() if "bias" not in k}, "m", HEAD_ORDER)


def test_permuting_the_residual_stream_permutes_the_features(encoder):
    params, x = weights_of(encoder), images()
    stream = torch.randperm(16, generator=generator(3))
    moved = matching.permute_stream(params, stream)
    before, after = (functional_call(encoder, p, (x,)) for p in (params, moved))
    close(after, before[:, stream], atol=1e-10, rtol=0)
    assert matching.assignment(matching.correlation(before[:, stream], before)).equal(stream)
    with pytest.raises(BadInput, match="head.weight is no weight of an encoder"):
        matching.permute_stream({"head.weight": draw(3, 16)}, stream)


def test_layer_scale_moves_with_the_stream():
    params = {f"blocks.0.{k}": torch.arange(3.0) for k in ("ls1", "ls2", "fc1.bias")}
    moved = matching.permute_stream(params, torch.tensor([2, 0, 1]))
    assert [v.tolist() for v in moved.values()] == [[2, 0, 1], [2, 0, 1], [0, 1, 2]]


def test_matching_recovers_a_permutation(encoder):
    """Unit i of a is unit P^-1(i) of the b that has P applied."""
    a, block = weights_of(encoder), "blocks.0"
    b = matching.permute(a, block, UNIT_ORDER, HEAD_ORDER)
    seen = [activations_of(encoder)(p, images()) for p in (a, b)]
    units = matching.match_mlp(block, seen)
    assert units.equal(UNIT_ORDER.argsort()) and not units.equal(UNIT_ORDER)
    assert matching.match_heads(a, b, block, 2, seen).equal(HEAD_ORDER)


def test_matching_recovers_six_heads():
    order = torch.tensor([1, 2, 0, 5, 3, 4])
    a = {f"m.{k}": draw(18, 18 if "weight" in k else 1, seed=i).squeeze()
         for i, k in enumerate(matching.HEADS)}
    b, mixed = matching.permute(a, "m", heads=order), draw(40, 6, 3, seed=30)
    seen = [{"m.out.weight": x.reshape(40, 18)} for x in (mixed, mixed[:, order])]
    found = matching.match_heads(a, b, "m", 6, seen)
    assert found.equal(order.argsort()) and not found.equal(order)


def test_a_head_is_found_in_another_basis(encoder):
    """v -> R v and out -> out R^-1 within a head is the same head."""
    a, block = weights_of(encoder), "blocks.0"
    R = torch.block_diag(draw(8, 8, seed=1), draw(8, 8, seed=2))
    b = a | {f"{block}.v.weight": R @ a[f"{block}.v.weight"],
             f"{block}.out.weight": a[f"{block}.out.weight"] @ R.inverse()}
    b = matching.permute(b, block, heads=HEAD_ORDER)
    seen = [activations_of(encoder)(p, images()) for p in (a, b)]
    assert matching.match_heads(a, b, block, 2, seen).equal(HEAD_ORDER)
    with pytest.raises(BadInput, match="heads 3 does not divide the width 16 of blocks.0"):
        matching.match_heads(a, b, block, 3, seen)


def test_a_constant_unit_correlates_with_nothing():
    x = torch.cat([draw(9, 1), torch.full((9, 1), 0.1, dtype=torch.float64)], 1)
    close(matching.correlation(x, -x), torch.tensor([[-1.0, 0], [0, 0]], dtype=torch.float64))
