"""PLeaS: Merging Models with Permutations and Least Squares. arXiv:2407.02447, algorithm 1

    b -> b with its units in the order of a's                   by their activations, matching.py
    W = argmin ||Z W^T - Y||^2 + ridge ||W - W_mean||^2,  Z = (X_a + X_b)/2,  Y = (Y_a + Y_b)/2

Shapes   X, Z (rows, in) and Y (rows, out) of one linear layer · W (out, in)
Differs  a float64 solve per layer replaces 400 steps of Adam; the ridge pulls to the mean weight,
         not to zero. Every layer keeps its width; the paper may leave some units unmerged.
"""

import torch
import torch.nn.functional as F

from errors import BadInput
from merge import add, rule
from rules.matching import match_blocks


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


@torch.no_grad()
def rows_of(activations, params, parts):
    """{weight name: its inputs (rows, in)} of one model, the rows of all parts together."""
    each = [activations(params, x) for x in parts]
    return {k: torch.cat([inputs[k] for inputs in each]) for k in each[0]}


@rule(count=2, space="weight")
def pleas(base, taus, *, activations, batches, heads=None, ridge=1e-6):
    """PLeaS at the width of the base, arXiv:2407.02447.   match b to a, then refit every layer

    heads   number of attention heads, to match them as well; None leaves them in place
    ridge   of least_squares, > 0; what is no linear layer takes the mean

    Both models see all batches, and `activations` must give the same rows for both. Against the
    mean weight (X_a - X_b) (W_a - W_b)^T / 4 is left to fit: nothing in the first layer.
    """
    if heads is not None and (not isinstance(heads, (int, float)) or heads % 1):
        raise BadInput(f"heads {heads!r}: give the model's own number of heads")
    a, b = (add(base, tau) for tau in taus)
    parts = [part for x in batches for part in x.split(64)]   # the texts of two tasks differ in T

    seen = [rows_of(activations, params, parts) for params in (a, b)]
    b = match_blocks(a, b, seen, heads and int(heads))
    seen[1] = rows_of(activations, b, parts)                      # in the order of a by now
    merged = {k: (a[k] + b[k]) / 2 for k in base}
    for k in sorted(seen[0].keys() & base.keys()):
        Z = [inputs[k] for inputs in seen]
        Y = (output(a, k, Z[0]) + output(b, k, Z[1])) / 2
        merged |= refit(merged, k, (Z[0] + Z[1]) / 2, Y, ridge)
    return merged
