"""Matching units: which unit of one network does what unit i of another does. arXiv:2209.04836

    P = argmax_P sum_i similarity(unit i of a, unit P_i of b)        P a permutation of n units
    b stays the same function with W1, b1 -> rows P, W2 -> columns P    W1 (n, in) · W2 (out, n)

What pleas.py and analysis/match.py share. For encoders of different origin `permute_stream` comes
first.
"""

import re

import numpy as np
import torch
import torch.nn.functional as F

from errors import BadInput

# The dimension that moves with the hidden units of a block, its heads, and the residual stream
UNITS = {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}
HEADS = {f"{name}.{kind}": 0 for name in "qkv" for kind in ("weight", "bias")} | {"out.weight": 1}
STREAM = {r"(patch|(pre_)?norm\d?|out|fc2)\.(weight|bias)$|ls\d$": 0, r"(q|k|v|fc1)\.weight$": 1,
          r"cls_token$|position$|(word|position|segment)\.weight$": -1, r"(q|k|v|fc1)\.bias$": None}


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


def match_mlp(block, seen):
    """units (n,): hidden unit units[i] of b does what unit i of a does, by the activations.

    seen   pair of dicts {weight name: its inputs (rows, in)} of a and b on the same examples
    """
    return assignment(correlation(*(inputs[f"{block}.fc2.weight"] for inputs in seen)))


def match_heads(a, b, block, heads, seen):
    """Permutation (heads,) of whole heads by what they write: sum_i ||O_i M_i - O'_Pi M'_Pi||^2.

    O (D, d) are a head's columns of out.weight, M (d, rows) its inputs to `out`. The product is the
    same in any basis within the head.
    """
    D = a[f"{block}.out.weight"].shape[1]
    if heads < 1 or D % heads:
        raise BadInput(f"heads {heads} does not divide the width {D} of {block}: "
                       "give the model's own number of heads")
    split = lambda x: x.double().reshape(len(x), heads, -1)                      # (rows, h, d)
    cross = lambda x, y: torch.einsum("rhd,rge->hgde", split(x), split(y))       # (h, h, d, d)
    read = (inputs[f"{block}.out.weight"] for inputs in seen)                    # (rows, D)
    write = (p[f"{block}.out.weight"] for p in (a, b))
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
            b = permute(b, block, match_mlp(block, seen))
        if heads and movable(block, "out", HEADS):
            b = permute(b, block, heads=match_heads(a, b, block, heads, seen))
    return b
