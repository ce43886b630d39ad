"""Weighted sums of task vectors beside average and task arithmetic of merge.py.

    theta = theta_0 + sum_t c_t tau_t           each rule says where its coefficients c_t come from

WiSE-FT, arXiv:2109.01903 · forgetting and analogies, arXiv:2212.04089 · layers, scores, 8 bits
"""

import torch

from errors import BadInput
from merge import add, check_length, layer_of, rule, task_arithmetic


@rule(count=2)
def interpolation(base, taus, *, alpha=0.5):
    """WiSE-FT, arXiv:2109.01903.   theta = (1 - alpha) theta_a + alpha theta_b

    With tau_a = 0, the pretrained model itself, it is task arithmetic with lam = alpha.
    """
    a, b = taus
    return {k: base[k] + (1 - alpha) * a[k] + alpha * b[k] for k in base}


@rule()
def negation(base, taus, *, lam=1.0):
    """Forgetting, arXiv:2212.04089.   theta = theta_0 - lam sum_t tau_t

    tau_t comes from fine-tuning on what the model is to forget.
    """
    return task_arithmetic(base, taus, lam=-lam)


@rule(count=3)
def analogy(base, taus, *, lam=1.0):
    """Task analogy, arXiv:2212.04089.   A is to B as C is to D:  tau_D ~ tau_C + tau_B - tau_A"""
    return task_arithmetic(base, taus, lam=lam, coefficients=(-1, 1, 1))


@rule()
def score_weighted(base, taus, *, scores, lam=1.0):
    """Weighted average.   theta = theta_0 + lam sum_t (s_t / sum s) tau_t

    scores   s_t >= 0, one per task: how good its own model is
    """
    check_length("scores", scores, taus)
    if min(scores) < 0 or sum(scores) <= 0:
        raise BadInput(f"scores {list(scores)} must be at least 0 and not all 0")
    share = [s / sum(scores) for s in scores]
    return task_arithmetic(base, taus, lam=lam, coefficients=share)


@rule()
def layerwise(base, taus, *, coefficients=None, lam=1.0):
    """Given coefficients per layer.   theta^l = theta_0^l + lam sum_t c_t^l tau_t^l

    coefficients   {group: one number per task} with exactly the groups of `layer_of`; None is 1/T
    """
    groups = {layer_of(k) for k in base}
    coefficients = coefficients or {g: [1 / len(taus)] * len(taus) for g in groups}
    if not isinstance(coefficients, dict):
        raise BadInput(f"coefficients {coefficients!r}: give {{group: one number per task}}")
    if odd := sorted(groups ^ set(coefficients)):
        raise BadInput(f"coefficients are missing or unknown for {', '.join(odd[:5])}: the groups "
                       f"are {', '.join(sorted(groups))}")
    for values in coefficients.values():
        check_length("coefficients", values, taus)
    return {k: base[k] + lam * sum(c * tau[k] for c, tau in zip(coefficients[layer_of(k)], taus,
                                                                strict=True)) for k in base}


def quantize_rows(tensor):
    """8-bit integers and a scale per row: q = round(x / s), s = max|row| / 127.

    Returns q (like tensor, int8) and s (rows, 1); a tensor of one dimension is one row, and a row
    of zeros has s = 1. |q s - x| <= s / 2.
    """
    rows = torch.atleast_2d(tensor).flatten(1)
    scale = rows.abs().amax(1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1, scale)
    q = (rows / scale).round().clamp(-127, 127).to(torch.int8)
    return q.view(tensor.shape), scale


def dequantize_rows(q, scale):
    """q s, in the dtype of the scale."""
    return (q.reshape(len(scale), -1).to(scale.dtype) * scale).view(q.shape)


@rule()
def int8(base, taus, *, lam=0.3):
    """Task arithmetic on 8-bit task vectors.   theta = theta_0 + lam sum_t s_t q_t

    A quarter of the memory. A bare cast to int8 would round every entry below 1 to 0.
    """
    rounded = lambda v: dequantize_rows(*quantize_rows(v))
    return add(base, {k: sum(rounded(tau[k]) for tau in taus) for k in base}, lam)
