"""Merging: several fine-tuned models into one. Weights in, weights out, no training.

    tau_t = theta_t - theta_0                                             the task vector of task t

A rule is a pure function `rule(base, taus, *, ...) -> merged`: `base` (theta_0) and every tau are
dicts name -> tensor with the same keys and shapes, T of them in the order given; `merged` has those
keys too. Inputs are never changed. A keyword `lam` always scales the whole merged task vector:
merged(lam) = base + lam (merged(1) - base). Arithmetic is float32 or better, cast back to the dtype
of `base` once.

What the dict holds is the caller's choice, and not the same thing (`eval.py --space`):
    weight    W0 and the dense delta of every layer: any adapters and ranks merge, and T adapters of
              rank r give a delta of rank up to T r
    adapter   the adapters' own parameters: averaging A and B separately makes cross terms B_i A_j
"""

import functools
import inspect

import torch

from errors import BadInput

RULES = {}


def rule(function):
    """Decorator: register a rule, check its input, compute in at least float32, cast back once."""

    @functools.wraps(function)
    def checked(base, taus, **keywords):
        check(base, taus)
        up = lambda d: {k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in d.items()}
        merged = function(up(base), [up(tau) for tau in taus], **keywords)
        return {k: merged[k].to(base[k].dtype) for k in base}

    RULES[function.__name__] = checked
    return checked


def check(base, taus):
    """Raise BadInput unless there is a task vector and all fit the base; names the first five."""
    if not taus:
        raise BadInput("nothing to merge: give at least one task vector")
    for t, tau in enumerate(taus):
        differing = sorted(base.keys() ^ tau.keys())
        if differing:
            raise BadInput(f"task vector {t} and the base differ in {len(differing)} keys: "
                           f"{', '.join(differing[:5])}: merge runs that adapt the same layers")
        shapes = [k for k in sorted(base) if base[k].shape != tau[k].shape]
        if shapes:
            told = ", ".join(f"{k} {tuple(tau[k].shape)} for {tuple(base[k].shape)}"
                             for k in shapes[:5])
            raise BadInput(f"task vector {t} has {len(shapes)} tensors of another shape: {told}")
        bad = [k for k in sorted(tau) if not torch.isfinite(tau[k]).all()]
        if bad:
            raise BadInput(f"task vector {t} has NaN or infinity in {', '.join(bad[:5])}: "
                           "retrain it")


def options(name):
    """{keyword: default} of a rule."""
    parameters = inspect.signature(RULES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def flatten(tau):
    """One vector (n,) of all tensors, keys in sorted order."""
    return torch.cat([tau[k].reshape(-1) for k in sorted(tau)])


def unflatten(vector, like):
    """Inverse of flatten: a dict with the keys and shapes of `like`."""
    parts = vector.split([like[k].numel() for k in sorted(like)])
    return {k: part.view(like[k].shape) for k, part in zip(sorted(like), parts)}


# ---- arithmetic ----------------------------------------------------------------------------------


@rule
def average(base, taus):
    """Model soup, arXiv:2203.05482.   theta = (1/T) sum_t theta_t = theta_0 + (1/T) sum_t tau_t"""
    return {k: base[k] + sum(tau[k] for tau in taus) / len(taus) for k in base}


@rule
def task_arithmetic(base, taus, *, lam=0.3):
    """Task arithmetic, arXiv:2212.04089, section 4.   theta = theta_0 + lam sum_t tau_t"""
    return {k: base[k] + lam * sum(tau[k] for tau in taus) for k in base}


# ---- sparsify and elect --------------------------------------------------------------------------


def trim(vector, density):
    """Keep the round(density n) entries of largest magnitude, zero the rest; ties by position."""
    keep = round(density * vector.numel())
    if keep == 0:
        return torch.zeros_like(vector)
    size = vector.abs()
    threshold = size.kthvalue(vector.numel() - keep + 1).values
    above, level = size > threshold, size == threshold
    room = keep - above.sum()
    return vector * (above | (level & (level.cumsum(0) <= room)))


def elect(vectors):
    """Sign of the summed vectors (T, n) per entry; a zero sum takes the majority sign, else +1."""
    sign = sum(vectors).sign()
    return torch.where(sign == 0, 1.0 if sign.sum() >= 0 else -1.0, sign)


@rule
def ties(base, taus, *, density=0.2, agg="mean", lam=1.0):
    """TIES, arXiv:2306.01708, algorithm 1.   theta = theta_0 + lam agg{ trimmed tau_t that agree }

    trim   every tau keeps its `density` (0, 1] largest entries over the whole model
    elect  per entry, the sign with the larger total mass over the tasks
    agg    "mean", "sum" or "max" (by magnitude) of the non-zero entries with the elected sign.
           mean with lam near 1 and sum with lam near .3 are different recipes.
    """
    if not 0 < density <= 1:
        raise BadInput(f"density {density} is outside (0, 1]")
    if agg not in ("mean", "sum", "max"):
        raise BadInput(f"unknown agg {agg!r}: choose mean, sum or max")
    trimmed = [trim(flatten(tau), density) for tau in taus]
    sign = elect(trimmed)
    agree = [torch.where(v * sign > 0, v, 0) for v in trimmed]
    if agg == "max":
        merged = sign * torch.stack([v.abs() for v in agree]).amax(0)
    else:
        merged = sum(agree)
    if agg == "mean":
        merged = merged / sum((v != 0).to(v.dtype) for v in agree).clamp(min=1)
    return {k: base[k] + lam * v for k, v in unflatten(merged, base).items()}
