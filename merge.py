"""Merging: several fine-tuned models into one. Weights in, weights out, no training, no data.

    tau_t = theta_t - theta_0                                             the task vector of task t

A rule is a pure function `rule(base, taus, *, ...) -> merged`: `base` (theta_0) and every tau are
dicts name -> tensor with the same keys and shapes, T of them in the order given; `merged` has those
keys too. Inputs are never changed. `taus` may be a generator: rules marked *streams* go through it
once and hold one task vector at a time beside the result. A keyword `lam` always scales the whole
merged task vector: merged(lam) = base + lam (merged(1) - base). Arithmetic is float32 or better,
cast back to the dtype of `base` once. Rules that keep one model per task return `Experts` instead.

What the dict holds is the caller's choice, and not the same thing (`eval.py --space`):
    weight    W0 and the dense delta of every layer: any adapters and ranks merge, and T adapters of
              rank r give a delta of rank up to T r
    adapter   the adapters' own parameters: averaging A and B separately makes cross terms B_i A_j

The course goes on in merge_spectra.py (singular values), merge_data.py (with examples),
merge_learned.py (coefficients) and merge_structured.py (routers, permutations); one registry.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from errors import BadInput

RULES = {}        # name -> rule that returns one model
EXPERTS = {}      # name -> rule that returns one model per task

# Keywords that are filled in by the caller from tasks and data, never by hand:
DATA = {"functions": "T callables (params, x) -> logits",
        "batches": "T tensors of unlabelled inputs",
        "labelled": "T pairs of inputs and labels",
        "activations": "a callable (params, x) -> {weight name: its inputs (rows, in)}",
        "features": "a callable (params, x) -> features (B, D)",
        "scores": "T single-task scores"}


class Experts(NamedTuple):
    """One model per task, and how an input finds its model."""

    models: list                     # T dicts name -> tensor
    route: Callable | None = None    # x (B, ...) -> task index (B,); None: the task must be known


def rule(function=None, *, count=None, space=None, registry=RULES, sums=False):
    """Decorator: register a rule, check its input, compute in at least float32, cast back once.

    count  the number of task vectors it takes, where that is fixed
    space  "weight" or "adapter", where it makes sense in one of them only
    sums   from a list, the rule looks for NaN itself, in its result (`weighted`): it reads less
    """
    if function is None:
        return functools.partial(rule, count=count, space=space, registry=registry, sums=sums)
    name = function.__name__
    parameters = inspect.signature(function).parameters
    needs = [k for k in DATA if k in parameters]

    @functools.wraps(function)
    def checked(base, taus, **keywords):
        if missing := [k for k in needs if keywords.get(k) is None]:
            raise BadInput(f"{name} needs data: " + ", ".join(f"{k} ({DATA[k]})" for k in missing))
        if count is not None and len(taus := list(taus)) != count:
            raise BadInput(f"{name} takes {count} task vectors and got {len(taus)}")
        wide, listed = widen(base), isinstance(taus, list)
        stream = checked_stream(wide, taus, finite=not (sums and listed))
        merged = function(wide, list(stream) if listed else stream, **keywords)
        if isinstance(merged, Experts):
            return merged._replace(models=[narrow(model, base) for model in merged.models])
        return narrow(merged, base)

    checked.count, checked.space, checked.needs = count, space, needs
    registry[name] = checked
    return checked


def widen(tensors):
    """At least float32; no copy where it is that already."""
    return {k: v.to(torch.promote_types(v.dtype, torch.float32)) for k, v in tensors.items()}


def narrow(tensors, base):
    """In the dtypes of `base`; BadInput where a number is too large for them."""
    out = {k: tensors[k].to(base[k].dtype) for k in base}
    cast = {k: v for k, v in out.items() if v.dtype != tensors[k].dtype}
    if bad := not_finite(cast):
        raise BadInput(f"the merged weights do not fit into {base[bad[0]].dtype} in "
                       f"{', '.join(bad[:5])}: merge in float32, or scale them down")
    return out


def not_finite(tensors):
    """Sorted names of the tensors with NaN or infinity; one pass, if all is well."""
    finite = lambda v: torch.isfinite(v.sum()) or torch.isfinite(v).all()    # a sum can overflow
    return [k for k in sorted(tensors) if not finite(tensors[k])]


def checked_stream(base, taus, finite=True):
    """The task vectors one by one, checked and in the dtype of `base`; BadInput if none."""
    taus, t = iter(taus), 0
    while (tau := next(taus, None)) is not None:
        check(base, tau, t)
        if finite and (bad := not_finite(tau)):
            raise BadInput(f"task vector {t} has NaN or infinity in {', '.join(bad[:5])}: "
                           "retrain it")
        tau, t = {k: v.to(base[k].dtype) for k, v in tau.items()}, t + 1
        yield tau
        del tau                                      # let go before the next one is made
    if t == 0:
        raise BadInput("nothing to merge: give at least one task vector")


def check(base, tau, t=0):
    """Raise BadInput unless task vector number t fits the base; names the first five keys."""
    differing = sorted(base.keys() ^ tau.keys())
    if differing:
        raise BadInput(f"task vector {t} and the base differ in {len(differing)} keys: "
                       f"{', '.join(differing[:5])}: merge runs that adapt the same layers")
    shapes = [k for k in sorted(base) if base[k].shape != tau[k].shape]
    if shapes:
        told = ", ".join(f"{k} {tuple(tau[k].shape)} for {tuple(base[k].shape)}"
                         for k in shapes[:5])
        raise BadInput(f"task vector {t} has {len(shapes)} tensors of another shape: {told}")


def options(name):
    """{keyword: default} of a rule, without those that the data fill in."""
    parameters = inspect.signature((RULES | EXPERTS)[name]).parameters.values()
    return {p.name: p.default for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name not in DATA}


def check_share(name, value, low_open=True):
    """Raise BadInput unless 0 < value <= 1 (or 0 <= value < 1)."""
    if not (0 < value <= 1 if low_open else 0 <= value < 1):
        raise BadInput(f"{name} {value} is outside {'(0, 1]' if low_open else '[0, 1)'}")


def check_length(name, values, taus):
    """Raise BadInput unless there is one value per task vector."""
    if len(values) != len(taus):
        raise BadInput(f"{len(values)} {name} for {len(taus)} task vectors: give one for each")


def flatten(tau):
    """One vector (n,) of all tensors, keys in sorted order."""
    return torch.cat([tau[k].reshape(-1) for k in sorted(tau)])


def unflatten(vector, like):
    """Inverse of flatten: a dict with the keys and shapes of `like`."""
    parts = vector.split([like[k].numel() for k in sorted(like)])
    return {k: part.view(like[k].shape) for k, part in zip(sorted(like), parts)}


def add(base, tau, lam=1.0):
    """base + lam tau, tensor by tensor."""
    return {k: base[k] + lam * tau[k] for k in base}


def weighted(base, taus, weights):
    """base + sum_t c_t tau_t of a list of T task vectors and T numbers.

    Tensor by tensor, so that the sum stays in the processor's cache. A NaN in any tau reaches the
    sum and is looked for there, at a T-th of the cost; BadInput says where it came from.
    """
    out, total = {}, torch.zeros(())
    for k, v in base.items():
        out[k] = torch.add(v, taus[0][k], alpha=weights[0])
        for tau, c in zip(taus[1:], weights[1:]):
            out[k].add_(tau[k], alpha=c)
        total = total + out[k].sum()
    if not torch.isfinite(total) and (bad := not_finite(out)):
        list(checked_stream(base, taus))                             # raises if it is in a tau
        if broken := not_finite(base):
            raise BadInput(f"the base has NaN or infinity in {', '.join(broken[:5])}: fetch it "
                           "again")
        raise BadInput(f"the merged weights overflow in {', '.join(bad[:5])}: scale them down")
    return out


def folded(base, taus, step, start=torch.clone):
    """m, where step(m, v, t) takes tensor v of task vector t into m, from m = start(base tensor).

    Every task vector passes once, a generator's too, and no changed copy of a whole one is held.
    """
    out, t = {k: start(v) for k, v in base.items()}, 0
    for tau in taus:                                 # enumerate would hold on to the last one
        for k in out:
            step(out[k], tau[k], t)
        t += 1
        del tau                                      # let go before the next one is made
    return out


def onto(base, own, lam=1.0):
    """base + lam own, written over `own`, a dict that nobody else holds."""
    return {k: own[k].mul_(lam).add_(base[k]) for k in base}


# ---- arithmetic ----------------------------------------------------------------------------------


@rule(sums=True)
def average(base, taus):
    """Model soup, arXiv:2203.05482.   theta = theta_0 + (1/T) sum_t tau_t

    Streams, by the running mean m_k = m_{k-1} + (tau_k - m_{k-1}) / k. The mean of the mean of two
    and a third, ((a + b)/2 + c)/2, is something else.
    """
    if isinstance(taus, list):
        return weighted(base, taus, [1 / len(taus)] * len(taus))
    mean = folded(base, taus, lambda m, v, t: m.lerp_(v, 1 / (t + 1)), torch.zeros_like)
    return onto(base, mean)


@rule(count=2)
def interpolation(base, taus, *, alpha=0.5):
    """WiSE-FT, arXiv:2109.01903.   theta = (1 - alpha) theta_a + alpha theta_b

    With tau_a = 0, the pretrained model itself, it is task arithmetic with lam = alpha.
    """
    a, b = taus
    return {k: base[k] + (1 - alpha) * a[k] + alpha * b[k] for k in base}


@rule(sums=True)
def task_arithmetic(base, taus, *, lam=0.3, coefficients=None):
    """Task arithmetic, arXiv:2212.04089.   theta = theta_0 + lam sum_t c_t tau_t,   c_t = 1

    coefficients   one c_t per task, or None for ones; -1 forgets a task. Streams without them.
    """
    if coefficients is not None:
        check_length("coefficients", coefficients, taus := list(taus))
    if isinstance(taus, list):
        c = [1] * len(taus) if coefficients is None else coefficients
        return weighted(base, taus, [lam * float(v) for v in c])
    return folded(base, taus, lambda m, v, t: m.add_(v, alpha=lam))


@rule
def negation(base, taus, *, lam=1.0):
    """Forgetting, arXiv:2212.04089.   theta = theta_0 - lam sum_t tau_t

    tau_t comes from fine-tuning on what is to be forgotten. Streams.
    """
    return task_arithmetic(base, taus, lam=-lam)


@rule(count=3)
def analogy(base, taus, *, lam=1.0):
    """Task analogy, arXiv:2212.04089.   A is to B as C is to D:  tau_D ~ tau_C + tau_B - tau_A"""
    return task_arithmetic(base, taus, lam=lam, coefficients=(-1, 1, 1))


@rule
def score_weighted(base, taus, *, scores=None, lam=1.0):
    """Weighted average.   theta = theta_0 + lam sum_t (s_t / sum s) tau_t,   s_t >= 0 a score"""
    check_length("scores", scores, taus := list(taus))
    if min(scores) < 0 or sum(scores) <= 0:
        raise BadInput(f"scores {list(scores)} must be at least 0 and not all 0")
    share = [s / sum(scores) for s in scores]
    return task_arithmetic(base, taus, lam=lam, coefficients=share)


def layer_of(name):
    """The group of a tensor: block0, block1, ...; everything outside the blocks is its own."""
    block = re.search(r"(?:blocks|layer)\.(\d+)\.", name)
    return f"block{block[1]}" if block else name


@rule
def layerwise(base, taus, *, coefficients=None, lam=1.0):
    """Given coefficients per layer.   theta^l = theta_0^l + lam sum_t c_t^l tau_t^l

    coefficients   {group: one number per task} with exactly the groups of `layer_of`; None is 1/T
    """
    taus, groups = list(taus), {layer_of(k) for k in base}
    coefficients = coefficients or {g: [1 / len(taus)] * len(taus) for g in groups}
    if odd := sorted(groups ^ set(coefficients)):
        raise BadInput(f"coefficients are missing or unknown for {', '.join(odd[:5])}: the groups "
                       f"are {', '.join(sorted(groups))}")
    for values in coefficients.values():
        check_length("coefficients", values, taus)
    return {k: base[k] + lam * sum(c * tau[k] for c, tau in zip(coefficients[layer_of(k)], taus))
            for k in base}


@rule
def gram_schmidt(base, taus, *, lam=1.0):
    """Orthogonalised sum.   theta = theta_0 + lam sum_t u_t,   u_t = tau_t minus its part along
    u_1 .. u_{t-1}

    Modified Gram-Schmidt, twice over and in float64; a vector with nothing left is skipped. The
    first task keeps all that it shares with the others: the order matters.
    """
    directions, total = [], 0
    for tau in taus:
        u = flatten(tau).double()
        size = u.norm()
        for _ in range(2):
            for v in directions:                                     # unit vectors
                u = u - (u @ v) * v
        if u.norm() > 1e-6 * size:
            directions.append(u / u.norm())
            total = total + u
    if not directions:
        return dict(base)
    return add(base, unflatten(total.to(base[next(iter(base))].dtype), base), lam)


@rule
def symmetric_orthogonal(base, taus, *, lam=1.0):
    """Loewdin's orthogonalised sum.   u = D G^(-1/2) tau,   G_ij = <tau_i, tau_j>,   D restores
    every vector's length;   theta = theta_0 + lam sum_t u_t

    No task comes first. Directions that the others already span (eigenvalue of G below 1e-12 of
    the largest) are left out.
    """
    stack = torch.stack([flatten(tau) for tau in taus])                      # (T, n)
    values, vectors = torch.linalg.eigh(stack.double() @ stack.double().T)
    kept = values > 1e-12 * values[-1]
    root = vectors[:, kept] @ torch.diag(values[kept].rsqrt()) @ vectors[:, kept].T
    sizes = stack.double().norm(dim=1, keepdim=True)
    unit = root.to(stack.dtype) @ stack
    lengths = unit.norm(dim=1, keepdim=True)
    u = torch.where(lengths > 0, sizes.to(stack.dtype) * unit / lengths, 0)
    return add(base, unflatten(u.sum(0), base), lam)


def quantize_rows(tensor):
    """8-bit integers and a scale per row: q = round(x / s), s = max|row| / 127.

    Returns q (like tensor, int8) and s (rows, 1); a tensor of one dimension is one row, and a row
    of zeros has s = 1. |q s - x| <= s / 2.
    """
    rows = tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.reshape(len(tensor), -1)
    scale = rows.abs().amax(1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1, scale)
    q = (rows / scale).round().clamp(-127, 127).to(torch.int8)
    return q.view(tensor.shape), scale


def dequantize_rows(q, scale):
    """q s, in the dtype of the scale."""
    return (q.reshape(len(scale), -1).to(scale.dtype) * scale).view(q.shape)


@rule
def int8(base, taus, *, lam=0.3):
    """Task arithmetic on 8-bit task vectors.   theta = theta_0 + lam sum_t s_t q_t

    A quarter of the memory. A bare cast to int8 would round every entry below 1 to 0. Streams.
    """
    rounded = lambda v: dequantize_rows(*quantize_rows(v))
    return folded(base, taus, lambda m, v, t: m.add_(rounded(v), alpha=lam))


# ---- sparsify and elect --------------------------------------------------------------------------


def largest(size, keep):
    """Mask (n,) of the `keep` largest entries of size (n,); all from n on; ties by position."""
    if keep == 0 or keep >= len(size):
        return torch.full(size.shape, keep > 0, device=size.device)
    threshold = size.kthvalue(len(size) - keep + 1).values
    above, level = size > threshold, size == threshold
    return above | (level & (level.cumsum(0) <= keep - above.sum()))


def trim(tau, density):
    """Keep the round(density n) entries of largest magnitude, zero the rest; ties by position.

    n counts the entries of the whole dict; positions go through the keys in sorted order.
    """
    n = sum(v.numel() for v in tau.values())
    keep = round(density * n)
    if keep == 0:
        return {k: torch.zeros_like(v) for k, v in tau.items()}
    sizes, at = torch.empty(n, dtype=tau[next(iter(tau))].dtype), 0
    for v in tau.values():
        sizes[at:at + v.numel()] = v.reshape(-1)
        at += v.numel()
    sizes.abs_().numpy().partition(n - keep)          # in place, where kthvalue takes three copies
    threshold = sizes[n - keep].item()
    room, out = keep - (sizes[n - keep:] > threshold).sum().item(), {}
    del sizes
    for k in sorted(tau):
        size = tau[k].reshape(-1).abs()
        level = size == threshold
        kept = (size > threshold) | (level & (level.cumsum(0) <= room))
        room = max(0, room - level.sum().item())
        out[k] = tau[k] * kept.view_as(tau[k])
    return out


def elect(taus):
    """Per entry, the sign with the larger total mass: sign(sum_t tau_t), dict of -1 and +1.

    A sum of zero takes the majority sign over all entries, else +1.
    """
    signs = {k: sum(tau[k] for tau in taus).sign() for k in taus[0]}
    majority = 1.0 if sum(sign.sum() for sign in signs.values()) >= 0 else -1.0
    for sign in signs.values():
        sign[sign == 0] = majority
    return signs


@rule
def ties(base, taus, *, density=0.2, agg="mean", lam=1.0):
    """TIES, arXiv:2306.01708, algorithm 1.   theta = theta_0 + lam agg{ trimmed tau_t that agree }

    trim   every tau keeps its `density` (0, 1] largest entries over the whole model
    elect  per entry, the sign with the larger total mass over the tasks
    agg    "mean", "sum" or "max" (by magnitude) of the non-zero entries with the elected sign.
           mean with lam near 1 and sum with lam near .3 are different recipes.
    Holds T + 2 task vectors: the trimmed ones, the signs and the result.
    """
    check_share("density", density)
    if agg not in ("mean", "sum", "max"):
        raise BadInput(f"unknown agg {agg!r}: choose mean, sum or max")
    trimmed = list(map(functools.partial(trim, density=density), taus))
    signs, merged = elect(trimmed), {}
    for k in base:
        sign = signs.pop(k)
        total, count = torch.zeros_like(sign), torch.zeros_like(sign)
        for tau in trimmed:
            agreeing = torch.where(tau[k] * sign > 0, tau[k], 0)
            if agg == "max":
                total = torch.where(agreeing.abs() > total.abs(), agreeing, total)
            else:
                total, count = total + agreeing, count + (agreeing != 0)
        merged[k] = base[k] + lam * (total / count.clamp(min=1) if agg == "mean" else total)
    return merged


@rule
def dare(base, taus, *, drop=0.5, lam=0.3, seed=0):
    """DARE, arXiv:2311.03099.   theta = theta_0 + lam sum_t m_t tau_t / (1 - p),   P(m = 1) = 1 - p

    drop   p in [0, 1), the share of entries dropped at random; the rest is scaled up, so that the
           expectation is tau_t. Large tau from full fine-tuning does not survive p = 0.9. Streams.
    """
    check_share("drop", drop, low_open=False)
    generator = torch.Generator().manual_seed(seed)

    def thinned(m, v, t):
        kept = torch.rand(v.shape, generator=generator) >= drop
        m.add_(v * kept.to(v.device), alpha=lam / (1 - drop))

    return folded(base, taus, thinned)


@rule
def breadcrumbs(base, taus, *, density=0.9, gamma=0.01, lam=0.3):
    """Model Breadcrumbs, arXiv:2312.06795.   theta = theta_0 + lam sum_t m_t tau_t

    In every tensor m_t drops the round(gamma n) largest entries and, of what is left, keeps the
    round(density n) largest: outliers go, and so does the noise. Streams.
    """
    check_share("density", density), check_share("gamma", gamma, low_open=False)

    def middle(m, v, t):
        size, top = v.reshape(-1).abs(), round(gamma * v.numel())
        kept = largest(size, top + round(density * v.numel())) & ~largest(size, top)
        m.add_(v * kept.view_as(v), alpha=lam)

    return folded(base, taus, middle)


@rule
def magmax(base, taus, *, lam=0.5):
    """MagMax, arXiv:2407.06322.   theta = theta_0 + lam tau*,   tau*_j = the tau_tj of largest |.|

    The later task wins a tie. Streams.
    """
    larger = lambda m, v, t: m.copy_(torch.where(v.abs() >= m.abs(), v, m))
    return onto(base, folded(base, taus, larger, torch.zeros_like), lam)


@rule(registry=EXPERTS)
def emr(base, taus):
    """EMR-Merging, arXiv:2405.17461.   theta_t = theta_0 + r_t M_t tau_uni

    Elect      tau_uni = g max_t |tau_t| over the tasks that agree with g = sign(sum_t tau_t)
    Mask       M_t = 1[tau_t tau_uni > 0]
    Rescale    r_t = sum |tau_t| / sum |M_t tau_uni|, over the whole model
    No tuning and no data; the task must be known. One vector and T masks of one bit are stored.
    """
    taus, uni = list(taus), {}
    for k in base:
        sign = sum(tau[k] for tau in taus).sign()
        agreeing = [torch.where(tau[k] * sign > 0, tau[k].abs(), 0) for tau in taus]
        uni[k] = sign * torch.stack(agreeing).amax(0)
    models = []
    for tau in taus:
        masked = {k: torch.where(tau[k] * uni[k] > 0, uni[k], 0) for k in base}
        kept = sum(v.abs().sum() for v in masked.values())
        size = sum(v.abs().sum() for v in tau.values())
        models.append(add(base, masked, size / kept if kept > 0 else 0.0))
    return Experts(models)


def tall_masks(taus, threshold):
    """m_t = 1[|tau_t| > threshold |tau_MT - tau_t|] with tau_MT = sum_t tau_t; also tau_MT."""
    total = {k: sum(tau[k] for tau in taus) for k in taus[0]}
    return [{k: tau[k].abs() > threshold * (total[k] - tau[k]).abs() for k in total}
            for tau in taus], total


@rule(registry=EXPERTS)
def tall(base, taus, *, threshold=0.4):
    """TALL-masks, arXiv:2405.07813.   theta_t = theta_0 + m_t tau_MT,   tau_MT = sum_t tau_t

    threshold   m_t = 1[|tau_t| > threshold |tau_MT - tau_t|]: where task t weighs enough in the
                sum. The paper chooses it in .2 to .6. The task must be known; T bits an entry.
    """
    masks, total = tall_masks(list(taus), threshold)
    return Experts([{k: base[k] + mask[k] * total[k] for k in base} for mask in masks])


@rule
def consensus(base, taus, *, threshold=0.4, agree=2, lam=0.3):
    """Consensus merging, arXiv:2405.07813.   theta = theta_0 + lam 1[sum_t m_t >= agree] tau_MT

    Keeps the entries that matter to at least `agree` tasks; the m_t are those of `tall`.
    """
    masks, total = tall_masks(list(taus), threshold)
    kept = {k: sum(mask[k].int() for mask in masks) >= agree for k in base}
    return add(base, {k: kept[k] * total[k] for k in base}, lam)


# The rest of the course registers itself here.
import rules.spectra, rules.fisher, rules.adamerging, rules.pleas  # noqa: E402, F401, E401
