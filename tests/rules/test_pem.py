"""PEM: one factor changes its sign."""

import pytest
import torch

from errors import BadInput
from merge import RULES
from rules.pem import pem_negate
from support import refuses, same, t

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
    refuses(told, pem, START, taus, signs=signs)


def test_pem_needs_a_factor_to_flip():
    """Only where a sign is -1; without, it is a sum, of any adapters."""
    tensors = {"q.weight": t(1.0), "B": t(1.0)}
    with pytest.raises(BadInput, match="have no B, or more than A and B"):
        pem(tensors, [tensors], signs=[-1])
    refuses("or more than A and B", pem, START | {"q.m": t(1.0)}, [TAU | {"q.m": t(1.0)}],
            signs=[-1])
    assert pem(tensors, [tensors])["B"] == 2
