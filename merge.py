"""Merging: several fine-tuned models into one. Weights in, weights out.

    tau_t = theta_t - theta_0                      the task vector of task t = 1 .. T
    rule(base, taus, *, ...) -> merged             base is theta_0, taus a list of T task vectors

Shapes   base, every tau and merged are dicts name -> tensor with the same keys and shapes. They
         hold dense weights or the adapters' own parameters: experiment/spaces.py says which.

This file has the contract, averaging (2203.05482), task arithmetic (2212.04089) and TIES
(2306.01708). Every other paper is one file of rules/; `import rules` registers them all.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from errors import BadInput

Tensors = dict[str, torch.Tensor]
RULES: dict[str, Callable] = {}              # name -> rule


class Experts(NamedTuple):
    """What a rule returns that keeps one model per task."""

    models: list[Tensors]            # T of them
    route: Callable | None = None    # x (B, ...) -> task index (B,); None: the task must be known


def rule(*, count=None, space=None, experts=False, streams=False):
    """Decorator: register a rule; check its input, compute in float32 or better, cast back once.

    count    how many task vectors the rule takes; None is any number
    space    "weight" or "adapter", for a rule that makes sense in one of them only
    experts  the rule returns Experts
    streams  the rule is a weighted sum and walks through taus once, so a generator will do

    Inputs are never changed. `lam` scales the whole merged task vector: merged(lam) = base + lam
    (merged(1) - base). A rule that only sums carries a NaN into its result, where it is found. A
    rule that compares would lose it, so its inputs are checked before it starts.
    """
    def register(function):
        @functools.wraps(function)
        def checked(base, taus, **keywords):
            vectors = checked_taus(base, taus, finite=not streams)
            if not streams or isinstance(taus, list):
                vectors = list(vectors)
            if count is not None and len(vectors) != count:
                raise BadInput(f"{checked.__name__} takes {count} task vectors, not {len(vectors)}")
            merged = function(widen(base, base), vectors, **keywords)
            if experts:
                return merged._replace(models=[narrow(model, base) for model in merged.models])
            return narrow(merged, base)

        checked.count, checked.space, checked.experts = count, space, experts
        RULES[function.__name__] = checked
        return checked
    return register


def checked_taus(base: Tensors, taus, finite):
    """The task vectors one by one, checked, with at least the precision of the base."""
    t = 0
    for tau in taus:
        differ = [k for k in sorted(base.keys() | tau.keys())
                  if k not in base or k not in tau or base[k].shape != tau[k].shape]
        if differ:
            raise BadInput(f"task vector {t} and the base differ in {len(differ)} keys or shapes: "
                           f"{', '.join(differ[:5])}")
        if finite:
            check_finite(tau, f"task vector {t}")
        yield widen(tau, base)
        t += 1
    if t == 0:
        raise BadInput("nothing to merge: give at least one task vector")


def widen(tensors: Tensors, base: Tensors) -> Tensors:
    """In float32, or as the base where that is better; no copy of what is that already."""
    return {k: tensors[k].to(torch.promote_types(v.dtype, torch.float32)) for k, v in base.items()}


def narrow(tensors: Tensors, base: Tensors) -> Tensors:
    """The merged model in the dtypes of the base."""
    out = {k: tensors[k].to(v.dtype) for k, v in base.items()}
    check_finite(out, "the merged model")
    return out


def check_finite(tensors: Tensors, what):
    """BadInput if a tensor has NaN or infinity; the sum is looked at first, it is one fast pass."""
    bad = [k for k, v in tensors.items() if not v.sum().isfinite() and not v.isfinite().all()]
    if bad:
        raise BadInput(f"{what} has NaN or infinity in {', '.join(sorted(bad)[:5])}")


def options(name) -> dict:
    """{keyword: default} of a rule: what --set may change."""
    parameters = inspect.signature(RULES[name]).parameters.values()
    return {p.name: p.default for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def needs(name) -> list[str]:
    """The keywords of a rule that stand for models and data, and so have no default.

    functions    T callables (params, x) -> logits        batches    T tensors of unlabelled inputs
    features     (params, x) -> features (B, D)           labelled   T pairs of inputs and labels
    activations  (params, x) -> {weight name: its inputs (rows, in)}
    scores       T numbers, how good every model is at its own task
    """
    parameters = inspect.signature(RULES[name]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]


def add(base: Tensors, tau: Tensors, lam=1.0) -> Tensors:
    """base + lam tau."""
    return {k: base[k] + lam * tau[k] for k in base}


def total(taus: list[Tensors]) -> Tensors:
    """sum_t tau_t."""
    return {k: sum(tau[k] for tau in taus) for k in taus[0]}


def flatten(tau: Tensors) -> torch.Tensor:
    """One vector (n,) of all tensors, keys in sorted order."""
    return torch.cat([tau[k].reshape(-1) for k in sorted(tau)])


def unflatten(vector, like: Tensors) -> Tensors:
    """The inverse of flatten: a dict with the keys and shapes of `like`."""
    parts = vector.split([like[k].numel() for k in sorted(like)])
    return {k: part.view(like[k].shape) for k, part in zip(sorted(like), parts, strict=True)}


def layer_of(name):
    """The group of a tensor: block0, block1, ...; a tensor outside the blocks is its own group."""
    block = re.search(r"(?:blocks|layer)\.(\d+)\.", name)
    return f"block{block[1]}" if block else name


def check_share(name, value):
    """BadInput unless 0 < value <= 1."""
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise BadInput(f"{name} {value} is outside (0, 1]")


def check_length(name, values, taus):
    """BadInput unless there is one value per task vector."""
    if not isinstance(values, (list, tuple)) or len(values) != len(taus):
        given = len(values) if isinstance(values, (list, tuple)) else f"{values!r} as"
        raise BadInput(f"{given} {name} for {len(taus)} task vectors: give one for each")


# ---- averaging and task arithmetic ---------------------------------------------------------------


def weighted_sum(base: Tensors, taus: list[Tensors], weights) -> Tensors:
    """base + sum_t c_t tau_t, tensor by tensor, so that every sum stays in the cache."""
    out = {}
    for k, v in base.items():
        out[k] = torch.add(v, taus[0][k], alpha=weights[0])
        for tau, c in zip(taus[1:], weights[1:], strict=True):
            out[k].add_(tau[k], alpha=c)
    return out


@rule(streams=True)
def average(base, taus):
    """Model soup, arXiv:2203.05482.   theta = theta_0 + (1/T) sum_t tau_t

    A generator is averaged as it comes, by the running mean m_t = m_{t-1} + (tau_t - m_{t-1}) / t:
    whatever T is, the memory is that of three models.
    """
    if isinstance(taus, list):
        return weighted_sum(base, taus, [1 / len(taus)] * len(taus))
    mean = {k: torch.zeros_like(v) for k, v in base.items()}
    for t, tau in enumerate(taus, 1):
        for k in mean:
            mean[k].lerp_(tau[k], 1 / t)
    return {k: mean[k].add_(v) for k, v in base.items()}


@rule(streams=True)
def task_arithmetic(base, taus, *, lam=0.3, coefficients=None):
    """Task arithmetic, arXiv:2212.04089.   theta = theta_0 + lam sum_t c_t tau_t

    coefficients   one c_t per task; None is c_t = 1, and -1 forgets a task
    """
    if isinstance(taus, list) or coefficients is not None:
        taus = list(taus)
        c = [1.0] * len(taus) if coefficients is None else coefficients
        check_length("coefficients", c, taus)
        return weighted_sum(base, taus, [lam * float(v) for v in c])
    merged = {k: v.clone() for k, v in base.items()}
    for tau in taus:
        for k in merged:
            merged[k].add_(tau[k], alpha=lam)
    return merged


# ---- TIES: trim, elect, disjoint mean ------------------------------------------------------------


def largest(size, keep):
    """Mask (n,) of the `keep` largest entries of size (n,); of equal ones the first.

    The threshold comes from numpy's partition, a third of the time of torch.kthvalue and a ninth
    of that of sorting for 20 million numbers.
    """
    if keep == 0 or keep >= len(size):
        return torch.full(size.shape, keep > 0, device=size.device)
    numbers = size.cpu().numpy().copy()
    numbers.partition(len(size) - keep)
    threshold = numbers[len(size) - keep].item()
    mask = size > threshold
    mask[(size == threshold).nonzero()[:keep - int(mask.sum()), 0]] = True
    return mask


def trim(tau: Tensors, density) -> Tensors:
    """Keep the round(density n) entries of largest magnitude, n over all tensors; zero the rest."""
    flat = flatten(tau)
    kept = largest(flat.abs(), round(density * len(flat)))
    return unflatten(flat * kept, tau)


def elect(taus: list[Tensors]) -> Tensors:
    """Per entry the sign with the larger total mass, sign(sum_t tau_t): a dict of -1 and +1.

    A sum of zero takes the sign of the majority of all entries, else +1.
    """
    signs = {k: v.sign() for k, v in total(taus).items()}
    majority = 1.0 if sum(sign.sum() for sign in signs.values()) >= 0 else -1.0
    return {k: torch.where(sign == 0, majority, sign) for k, sign in signs.items()}


def agreeing(values, sign):
    """The entries of a tensor that have the elected sign; zero elsewhere."""
    return torch.where(values * sign > 0, values, 0)


def disjoint_mean(values):
    """Mean of T tensors over their non-zero entries; zero where all are zero."""
    return sum(values) / sum(v != 0 for v in values).clamp(min=1)


def extreme(values):
    """The entry of largest magnitude of T tensors."""
    stack = torch.stack(values)
    return stack.gather(0, stack.abs().argmax(0, keepdim=True))[0]


AGGREGATES = {"mean": disjoint_mean, "sum": sum, "max": extreme}


@rule()
def ties(base, taus, *, density=0.2, agg="mean", lam=1.0):
    """TIES, arXiv:2306.01708, algorithm 1.   theta = theta_0 + lam agg{ trimmed tau_t that agree }

    trim     every tau_t keeps its `density` (0, 1] largest entries over the whole model
    elect    per entry, the sign with the larger total mass over the tasks
    agg      disjoint "mean", "sum" or "max" (by magnitude) of the entries with the elected sign;
             a mean with lam near 1 and a sum with lam near .3 are different recipes
    """
    check_share("density", density)
    if agg not in AGGREGATES:
        raise BadInput(f"unknown agg {agg!r}: choose mean, sum or max")
    trimmed = [trim(tau, density) for tau in taus]
    signs, mix = elect(trimmed), AGGREGATES[agg]
    return add(base, {k: mix([agreeing(tau[k], signs[k]) for tau in trimmed]) for k in base}, lam)
