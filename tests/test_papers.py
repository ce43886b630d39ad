"""One worked example per paper, small enough for pencil and paper."""

import torch
from torch import nn

import merge
from lora import ADAPTERS

t = torch.tensor


def layer(weight, bias=None):
    """An nn.Linear with the given weight and bias."""
    base = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    base.weight.data = t(weight)
    if bias is not None:
        base.bias.data = t(bias)
    return base


def put(adapter, **tensors):
    """Set parameters and buffers by name."""
    for name, value in tensors.items():
        getattr(adapter, name).data = t(value)
    return adapter


def test_lora_eq_3():
    """W0 = [[1, 2], [3, 4]], A = [[1, -1]], B = [[2], [1]], s = 4 / 1:
    delta = 4 [[2, -2], [1, -1]],  W_eff = [[9, -6], [7, 0]],  x = (1, 1) -> (3, 7)."""
    adapter = put(ADAPTERS["lora"](layer([[1.0, 2], [3, 4]]), rank=1, alpha=4.0),
                  A=[[1.0, -1]], B=[[2.0], [1]])
    assert adapter.delta_weight().tolist() == [[8, -8], [4, -4]]
    assert adapter(t([1.0, 1])).tolist() == [3, 7]
    assert adapter(t([1.0, 0])).tolist() == [9, 7]


def test_l_lora_eq_3_for_one_layer():
    """A0 = [[1, 0]], B0 = [[1], [0]], moved to A = [[1, -1]], B = [[2], [1]], s = 1. To first order
    BA0 + B0(A - A0) = [[2, 0], [1, 0]] + [[0, -1], [0, 0]] = [[2, -1], [1, 0]].
    LoRA itself would have BA = [[2, -2], [1, -1]]: the missing part is (B - B0)(A - A0)."""
    adapter = put(ADAPTERS["l_lora"](layer([[0.0, 0], [0, 0]]), rank=1, alpha=1.0),
                  A=[[1.0, -1]], B=[[2.0], [1]], A0=[[1.0, 0]], B0=[[1.0], [0]])
    assert adapter.delta_weight().tolist() == [[2, -1], [1, 0]]
    assert adapter(t([1.0, 2])).tolist() == [0, 1]


def test_l_lora_ignores_a_moved_A_while_B0_is_zero():
    """B0 = 0, B = [[2]]: delta = B A0 = [[2, 4]], whatever became of A."""
    adapter = put(ADAPTERS["l_lora"](layer([[0.0, 0]]), rank=1, alpha=1.0),
                  A=[[50.0, -7]], B=[[2.0]], A0=[[1.0, 2]])
    assert adapter.delta_weight().tolist() == [[2, 4]]


def test_full_fine_tuning():
    """W0 + D = [[1, 2]] + [[1, -1]], b0 + d = 3 + 1: x = (1, 1) -> 2 + 1 + 4."""
    adapter = put(ADAPTERS["full"](layer([[1.0, 2]], [3.0])), D=[[1.0, -1]], d=[1.0])
    assert adapter(t([1.0, 1])).tolist() == [7]
    assert adapter.delta_weight().tolist() == [[1, -1]] and adapter.delta_bias().tolist() == [1]


def test_model_soup_and_task_arithmetic():
    """theta_0 = 1, tau = 2 and 6: average 1 + 8/2 = 5, arithmetic at lam = .25: 1 + .25 * 8 = 3."""
    base, taus = {"w": t([1.0])}, [{"w": t([2.0])}, {"w": t([6.0])}]
    assert merge.average(base, taus)["w"].tolist() == [5]
    assert merge.task_arithmetic(base, taus, lam=0.25)["w"].tolist() == [3]


def test_ties_figure_1():
    """Trim to two of four, elect by mass, average those that agree."""
    base, taus = {"w": torch.zeros(4)}, [{"w": t([4.0, -3, 2, 1])}, {"w": t([-1.0, -5, 3, 6])}]
    assert merge.ties(base, taus, density=0.5)["w"].tolist() == [4, -4, 0, 6]


def test_averaging_A_and_B_apart_is_not_averaging_the_models():
    """Two rank-1 adapters at 1/2: the models average to (B1 A1 + B2 A2) / 2, the factors multiply
    out to (B1 + B2)(A1 + A2) / 4, with the cross terms B1 A2 and B2 A1."""
    A1, B1, A2, B2 = t([[1.0, 0]]), t([[1.0], [0]]), t([[0.0, 1]]), t([[0.0], [1]])
    dense = merge.average({"d": torch.zeros(2, 2)}, [{"d": B1 @ A1}, {"d": B2 @ A2}])["d"]
    zero = {"A": torch.zeros(1, 2), "B": torch.zeros(2, 1)}
    factors = merge.average(zero, [{"A": A1, "B": B1}, {"A": A2, "B": B2}])
    assert dense.tolist() == [[0.5, 0], [0, 0.5]]
    assert (factors["B"] @ factors["A"]).tolist() == [[0.25, 0.25], [0.25, 0.25]]
