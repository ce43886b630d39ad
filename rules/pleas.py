"""Merge rules that use the structure of the network: experts behind a router, units with a name.

Twin-Merging, arXiv:2406.15479, eq. 3-5.   theta(x) = theta_s + sum_t p_t(x) v_t
    theta_s = theta_0 + lam sum_t tau_t              what the tasks share
    v_t = U_k S_k V_k^T of theta_t - theta_s         what is left to task t, k = keep min(out, in)
    p   = softmax(router(features(theta_s, x)))      x (B, ...) -> p (B, T)

PLeaS, arXiv:2407.02447, algorithm 1, after weight matching, arXiv:2209.04836. Models a and b:
    P = argmax_P sum_i similarity(unit i of a, unit P_i of b)        P a permutation of n units
    b stays the same function with W1, b1 -> rows P, W2 -> columns P    W1 (n, in) · W2 (out, n)
    W = argmin ||Z W^T - Y||^2 + ridge ||W - W_mean||^2,  Z = (X_a + X_b)/2,  Y = (Y_a + Y_b)/2

Shapes   tau_t, v_t dicts like the model · X, Z (rows, in) and Y (rows, out) of one linear layer
Differs  Twin: an input takes the arg max of p, not the mixture, so that a batch falls into T groups
         and every expert is built once; `mixture` is the equation. The router is fitted to the
         examples given and never chosen on test accuracy. Heads stay the caller's: one per task.
         PLeaS: a float64 solve per layer replaces 400 steps of Adam; the ridge pulls to the mean
         weight, not to zero. For encoders of different origin `permute_stream` comes first.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput
from merge import EXPERTS, Experts, add, check_length, check_share, rule

# The dimension that moves with the hidden units of a block, its heads, and the residual stream
UNITS = {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}
HEADS = {f"{name}.{kind}": 0 for name in "qkv" for kind in ("weight", "bias")} | {"out.weight": 1}
STREAM = {r"(patch|(pre_)?norm\d?|out|fc2)\.(weight|bias)$|ls\d$": 0, r"(q|k|v|fc1)\.weight$": 1,
          r"cls_token$|position$|(word|position|segment)\.weight$": -1, r"(q|k|v|fc1)\.bias$": None}


# ---- Twin-Merging --------------------------------------------------------------------------------


def low_rank(v, keep):
    """The round(keep min(out, in)) >= 1 largest singular triplets of v (out, in), multiplied out.

    More dimensions are flattened into `in`; a tensor of one dimension comes back as it is.
    """
    if v.ndim < 2:
        return v
    U, S, Vh = torch.linalg.svd(v.reshape(len(v), -1), full_matrices=False)
    k = max(1, round(keep * len(S)))
    return ((U[:, :k] * S[:k]) @ Vh[:k]).view(v.shape)


def mixture(shared, exclusive, weights):
    """theta_s + sum_t p_t v_t, the model of one input; T dicts `exclusive`, T numbers `weights`."""
    check_length("weights", weights, exclusive)
    return {k: v + sum(p * e[k] for p, e in zip(weights, exclusive)) for k, v in shared.items()}


@torch.enable_grad()
def fit_router(examples, steps, hidden, lr, seed):
    """An MLP D -> hidden -> T that tells tasks apart; returns features (B, D) -> logits (B, T).

    examples   T tensors (n_t, D), standardised by their mean and deviation; every task has the same
               total weight in the cross-entropy, and every step of Adam sees them all
    """
    x, sizes = torch.cat(examples), [len(e) for e in examples]
    task = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(x.device)
    weight = 1 / torch.tensor(sizes).to(x)
    mean, deviation = x.mean(0), x.std(0, correction=0) + 1e-6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.GELU(), nn.Linear(hidden, len(sizes)))
    net, x = net.to(x), (x - mean) / deviation
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), task, weight).backward()
        optimizer.step()
    return lambda f: net((f - mean) / deviation)


@rule(registry=EXPERTS)
def twin(base, taus, *, features=None, labelled=None, keep=0.1, lam=0.3, steps=200, hidden=64,
         lr=1e-2, seed=0):
    """Twin-Merging, arXiv:2406.15479.   theta_t = theta_s + v_t,   v_t of rank keep min(out, in)

    keep    share (0, 1] of the singular values of every matrix of v_t; 1 gives theta_t back
    lam     coefficient of the shared part; 1/T is the mean of the tasks
    steps, hidden, lr, seed   of the router, on features of the shared model; labels are not used
    """
    check_share("keep", keep)
    check_length("labelled", labelled, taus := list(taus))
    total = {k: lam * sum(tau[k] for tau in taus) for k in base}
    shared = add(base, total)
    exclusive = [{k: low_rank(tau[k] - total[k], keep) for k in base} for tau in taus]

    @torch.no_grad()
    def seen(x):
        return torch.cat([features(shared, part) for part in x.split(256)])

    router = fit_router([seen(x) for x, _ in labelled], steps, hidden, lr, seed)
    return Experts([mixture(shared, [v], [1.0]) for v in exclusive],
                   lambda x: router(seen(x)).argmax(1))


# ---- PLeaS: permute, then fit --------------------------------------------------------------------


def assignment(similarity):
    """The permutation P (n,) of largest sum_i similarity[i, P_i]; similarity (n, n), finite.

    Hungarian method, O(n^3): rows enter one at a time along the shortest augmenting path under the
    reduced costs c_ij - u_i - v_j >= 0, which are 0 on matched pairs; the loop over j is numpy.
    Ties, within 1e-9 of the largest entry, go to the identity.
    """
    cost = -torch.as_tensor(similarity).detach().double().cpu().numpy()
    if cost.ndim != 2 or len(cost) != cost.shape[1] or not np.isfinite(cost).all():
        raise BadInput(f"similarity {cost.shape} cannot be matched: give a square, finite matrix")
    n = len(cost)
    cost = cost - 1e-9 * np.abs(cost).max() * np.eye(n)
    u, v, row_of = np.zeros(n), np.zeros(n), np.full(n, -1)       # row_of[j] = -1: column j is free
    for row in range(n):
        distance, before, done = np.full(n, np.inf), np.full(n, -1), np.zeros(n, bool)
        i, j, reach = row, -1, 0.0
        while i >= 0:                                             # Dijkstra until a free column
            step = cost[i] - v + (reach - u[i])
            closer = (step < distance) & ~done
            distance[closer], before[closer] = step[closer], j
            j = np.where(done, np.inf, distance).argmin()
            i, reach, done[j] = row_of[j], distance[j], True
        done[j] = False                                           # the free column has no row yet
        v[done] += distance[done] - reach
        u[row_of[done]] += reach - distance[done]
        u[row] += reach
        while j >= 0:                                             # shift the rows along the path
            row_of[j] = row if before[j] < 0 else row_of[before[j]]
            j = before[j]
    return torch.from_numpy(row_of.argsort())


def correlation(one, two):
    """(n, n) correlations of the columns of two (rows, n); 0 for a constant column."""
    unit = lambda x: F.normalize(x.double() - x.double().mean(0), dim=0)
    return unit(one).T @ unit(two)


def match_mlp(a, b, block, seen=None):
    """units (n,): hidden unit units[i] of b does what unit i of a does; and how well, (n,) <= 1.

    seen   pair of dicts {weight name: its inputs (rows, in)} of a and b on the same examples:
           similarity is the correlation of the activations. None: the cosine of the weights
    """
    if seen is not None:
        similarity = correlation(*(inputs[f"{block}.fc2.weight"] for inputs in seen))
    else:
        one, two = (torch.cat([p[f"{block}.fc1.weight"], p[f"{block}.fc1.bias"][:, None],
                               p[f"{block}.fc2.weight"].T], 1).double() for p in (a, b))
        similarity = F.normalize(one, dim=1) @ F.normalize(two, dim=1).T
    units = assignment(similarity).to(similarity.device)
    return units, similarity.gather(1, units[:, None]).flatten()


def match_heads(a, b, block, heads, seen=None):
    """Permutation (heads,) of whole heads by what they write: sum_i ||O_i M_i - O'_Pi M'_Pi||^2.

    O (D, d) are a head's columns of out.weight; M (d, rows) its inputs to `out`, or without `seen`
    its rows of v.weight. The product is the same in any basis within the head.
    """
    D = a[f"{block}.out.weight"].shape[1]
    if heads < 1 or D % heads:
        raise BadInput(f"heads {heads} does not divide the width {D} of {block}: "
                       "give the model's own number of heads")
    split = lambda x: x.double().reshape(len(x), heads, -1)                      # (rows, h, d)
    cross = lambda x, y: torch.einsum("rhd,rge->hgde", split(x), split(y))       # (h, h, d, d)
    read = ([p[f"{block}.v.weight"].T for p in (a, b)] if seen is None else      # (in, D)
            [inputs[f"{block}.out.weight"] for inputs in seen])                  # (rows, D)
    write = [p[f"{block}.out.weight"] for p in (a, b)]
    return assignment((cross(*write) * cross(*read)).sum((2, 3)))


def permute(params, block, units=None, heads=None):
    """The same function with hidden unit units[i] and head heads[i] of a block in place i.

    units (n,) and heads (number of heads,) are permutations or None. BadInput if `params` lacks a
    weight or bias that has to move along.
    """
    out = dict(params)
    for perm, names in ((units, UNITS), (heads, HEADS)):
        for name, dim in names.items() if perm is not None else ():
            if (k := f"{block}.{name}") not in params:
                raise BadInput(f"{k} is missing: it has to move along with {', '.join(names)}")
            index = torch.arange(params[k].shape[dim]).view(len(perm), -1)[perm.cpu()].flatten()
            out[k] = params[k].index_select(dim, index.to(params[k].device))
    return out


def permute_stream(params, stream):
    """All weights of an encoder with coordinate stream[i] (D,) of the residual stream in place i.

    Its features are those of `params` in the order of `stream`, which is found as
    assignment(correlation(z_a, z_b)) from residual activations z (rows, D).
    """
    def moved(k, v):
        dims = [dim for name, dim in STREAM.items() if re.search(rf"(^|\.)({name})", k)]
        if not dims:
            raise BadInput(f"{k} is no weight of an encoder: give permute_stream the encoder only")
        return v if dims[0] is None else v.index_select(dims[0], stream.to(v.device))

    return {k: moved(k, v) for k, v in params.items()}


def least_squares(Z, Y, start, ridge=1e-6):
    """argmin_W ||Z W^T - Y||^2 + ridge g ||W - start||^2,   g the mean of diag(Z^T Z)

    Z (rows, in) · Y (rows, out) · start, W (out, in); float64 within, the dtype of start without.
    """
    if not ridge > 0:
        raise BadInput(f"ridge {ridge} must be above 0: it decides what no input shows")
    Z, W = Z.double(), start.double()
    gram = Z.T @ Z
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp(min=1e-30))
    return (W + torch.linalg.solve(gram, Z.T @ (Y.double() - Z @ W.T)).T).to(start.dtype)


def output(params, k, x):
    """x W^T + b of the layer whose weight is k, in float64; without b where `params` has none."""
    bias = params.get(k.removesuffix("weight") + "bias")
    return x.double() @ params[k].double().T + (0 if bias is None else bias.double())


def refit(params, k, Z, Y, ridge):
    """{name: tensor} of least_squares from weight k, with a column of ones if it has its bias."""
    names = [name for name in (k, k.removesuffix("weight") + "bias") if name in params]
    start = torch.cat([params[name].view(Y.shape[1], -1) for name in names], 1)
    W = least_squares(F.pad(Z, (0, len(names) - 1), value=1.0), Y, start, ridge)
    return dict(zip(names, (W[:, :Z.shape[1]], W[:, -1])))


def partial_mlp(a, b, block, ratio, seen=None, ridge=1e-6):
    """fc1 and fc2 of a block with m = round(ratio n) of n pairs unmerged: the width is n + m.

    The m worst-matching pairs keep both units, at half their output weight: ratio 1 is the mean of
    the two MLPs' outputs, ratio 0 has the shape of a. With `seen` (see match_mlp) both layers
    are refitted. Returns the weights and biases of fc1 (n + m, in) and fc2 (out, n + m).
    """
    if not 0 <= ratio <= 1:
        raise BadInput(f"ratio {ratio} is outside [0, 1]")
    units, likeness = match_mlp(a, b, block, seen)
    m, order = round(ratio * len(units)), likeness.argsort(stable=True)          # the worst first
    apart, pairs = order[:m].sort().values, order[m:].sort().values

    def join(one, two, dim, share=1.0):
        at = lambda x, index: x.index_select(dim, index)
        two = at(two, units)
        return torch.cat([(at(one, pairs) + at(two, pairs)) / 2,
                          share * at(one, apart), share * at(two, apart)], dim)

    w1, b1, w2, b2 = (f"{block}.{name}" for name in (*UNITS, "fc2.bias"))
    merged = {w1: join(a[w1], b[w1], 0), b1: join(a[b1], b[b1], 0),
              w2: join(a[w2], b[w2], 1, share=0.5), b2: (a[b2] + b[b2]) / 2}
    if seen is None:
        return merged
    (x, h), (y, g) = ((inputs[w1], inputs[w2]) for inputs in seen)
    hidden = join(output(a, w1, x), output(b, w1, y), 1)
    return (refit(merged, w1, (x + y) / 2, hidden, ridge)
            | refit(merged, w2, join(h, g, 1), (output(a, w2, h) + output(b, w2, g)) / 2, ridge))


@torch.no_grad()
def rows_of(activations, params, parts):
    """{weight name: its inputs (rows, in)} of one model, the rows of all parts together."""
    each = [activations(params, x) for x in parts]
    return {k: torch.cat([inputs[k] for inputs in each]) for k in each[0]}


def match_blocks(a, b, seen, heads=None):
    """b, the same function, with the units and heads of every block in the order of a's.

    seen    pair of dicts {weight name: its inputs (rows, in)} of a and b on the same examples
    heads   number of attention heads; None leaves them in place

    In place, too, stays what has a weight or bias moving along that is not among the keys.
    """
    def movable(block, layer, names):
        return f"{block}.{layer}.weight" in seen[0] and all(f"{block}.{k}" in b for k in names)

    for block in sorted({k.rsplit(".", 2)[0] for k in b}):
        if movable(block, "fc2", UNITS):
            b = permute(b, block, match_mlp(a, b, block, seen)[0])
        if heads and movable(block, "out", HEADS):
            b = permute(b, block, heads=match_heads(a, b, block, heads, seen))
    return b


@rule(count=2, space="weight")
def pleas(base, taus, *, activations=None, batches=None, heads=None, ridge=1e-6):
    """PLeaS at the width of the base, arXiv:2407.02447: match b to a, then refit every layer.

    heads   number of attention heads, to match them as well; None leaves them in place
    ridge   of least_squares, > 0; what is no linear layer takes the mean

    Both models see all batches and `activations` must give the same rows for both. Units and heads
    are matched by `match_blocks`. Against the mean weight (X_a - X_b) (W_a - W_b)^T / 4 is left to fit: nothing
    in the first layer.
    """
    a, b = (add(base, tau) for tau in taus)
    parts = [part for x in batches for part in x.split(64)]   # the texts of two tasks differ in T

    seen = [rows_of(activations, params, parts) for params in (a, b)]
    b = match_blocks(a, b, seen, heads)
    seen[1] = rows_of(activations, b, parts)                      # in the order of a by now
    merged = {k: (a[k] + b[k]) / 2 for k in base}
    for k in sorted(seen[0].keys() & base.keys()):
        Z = [inputs[k] for inputs in seen]
        Y = (output(a, k, Z[0]) + output(b, k, Z[1])) / 2
        merged |= refit(merged, k, (Z[0] + Z[1]) / 2, Y, ridge)
    return merged
