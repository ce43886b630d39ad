"""Grader of stage 1, against lora.LoRA."""

import torch
from torch import nn

import lora
from grader import check, draw, untouched

WRONG = {"the sign of s B A is wrong, it is added to W0": -1,      # its factor on the update
         "the scale is alpha / rank, yours is alpha": 2,
         "the scale is alpha / rank, yours is 1": 1 / 3,
         "the scale is alpha / rank, yours is rank / alpha": 1 / 9,
         "the scale is alpha / rank, yours is alpha / sqrt(rank), as in rsLoRA": 2 ** 0.5}


def layer(bias=True):
    """lora.LoRA of 5 inputs, 4 outputs, rank 2 and alpha 6, its W0, and (A, B, alpha)."""
    made = lora.LoRA(nn.Linear(5, 4, bias).double(), rank=2, alpha=6.0).requires_grad_(False)
    for seed, p in enumerate(made.parameters()):
        p.copy_(draw(*p.shape, seed=seed))
    return made, made.base.weight, (made.A, made.B, 6.0)


def test_start(stage):
    W0, make = draw(30, 400), lambda seed: torch.Generator().manual_seed(seed)
    A, B = stage.start(W0, 3, make(0))
    check(B, W0.new_zeros(30, 3), "start, B", {"B is not zero, so W_eff is not W0": B})
    assert (A.shape, A.dtype) == ((3, 400), W0.dtype), "start: A is (rank, in) in the dtype of W0"
    assert A.min() < 0 < A.max(), "start: the entries of A have one sign, 0 is not their middle"
    assert 0.9 < A.abs().max() * 20 <= 1, "start: A should fill -1/sqrt(in) to 1/sqrt(in), no more"
    assert torch.equal(A, stage.start(W0, 3, make(0))[0]), "start: the generator is not used"


def test_forward(stage):
    for bias, x in ((True, draw(2, 3, 5, seed=9)), (False, draw(5, seed=9))):
        made, W0, adapter = layer(bias)
        y, frozen, b = made(x), made.base(x), made.base.bias
        causes = {hint: frozen + factor * (y - frozen) for hint, factor in WRONG.items()}
        causes |= {"the bias b is missing": y - b} if bias else {}
        check(untouched(stage.forward, x, W0, b, *adapter), y, "forward", causes | {
            "the frozen part is missing": y - frozen, "A and B are missing": frozen})


def test_merge(stage):
    made, W0, adapter = layer()
    change = made.delta_weight()
    check(untouched(stage.merge, W0, *adapter), W0 + change, "merge", {"W0 is missing": change} | {
        hint: W0 + factor * change for hint, factor in WRONG.items()})


def test_unmerge(stage):
    made, W0, adapter = layer()
    change = made.delta_weight()
    check(untouched(stage.unmerge, W0 + change, *adapter), W0, "unmerge", {
        "the sign is wrong, what was added is subtracted": W0 + 2 * change} | {
        hint: W0 + (1 - factor) * change for hint, factor in WRONG.items()})


def test_trained(stage):
    got = stage.trained(5, 4, 2)
    assert got == 18 and isinstance(got, int), (
        f"trained: A (2, 5) and B (4, 2) hold 18 numbers, as an int, not {got!r}")
