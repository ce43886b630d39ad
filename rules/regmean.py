"""RegMean and RegMean++: least squares layer by layer, without training.

    RegMean    W = (sum_t W_t G_t) (sum_t G_t)^-1,   G_t = X_t^T X_t / rows        2212.09849
               the layer whose outputs are closest to those of all layers on their own inputs
    RegMean++  the same with X_t from the model merged so far                      2508.03121

Shapes   W_t (out, in) · X_t (rows, in) the inputs of that layer · G_t (in, in)
"""

import torch

from errors import BadInput
from merge import add, check_length, check_share, layer_of, rule, total

CHUNK = 64       # examples whose activations are held at a time


def grams(activations, params, x, names):
    """G = X^T X / rows of every named weight, {name: (in, in)} in float64."""
    total, rows = {}, {}
    for part in x.split(CHUNK):
        inputs = activations(params, part)
        for k in names & inputs.keys():
            X = inputs[k].double()
            total[k] = total.get(k, 0) + X.T @ X
            rows[k] = rows.get(k, 0) + len(X)
    return {k: G / rows[k] for k, G in total.items()}


def shrunk(G, shrink):
    """shrink G + (1 - shrink) diag(G), and a ridge of 1e-6 tr(G) / in so that it has an inverse."""
    diagonal = torch.diag(G.diagonal())
    ridge = 1e-6 * G.trace() / len(G)
    return shrink * G + (1 - shrink) * diagonal + ridge * torch.eye(len(G)).to(G)


def solve(weighted, total, like):
    """(sum tau G) (sum G)^-1 in float64; zero where no input has been seen."""
    if not total.any():
        return torch.zeros_like(like)
    return torch.linalg.solve(total, weighted.mT).mT.to(like.dtype)


def layer_by_layer(base, taus, blocks, activations, batches, examples, shrink):
    """The merged model: block after block, each a set of names, RegMean on the inputs that it gets
    where the blocks before are merged already and the others those of task t; else the mean."""
    if examples < 1:
        raise BadInput(f"examples {examples}: take at least 1")
    if shrink:
        check_share("shrink", shrink)
    merged = {k: v / len(taus) for k, v in total(taus).items()}
    done = base.keys() - set().union(*blocks)
    for names in blocks:
        weighted, summed = {}, {}
        for tau, x in zip(taus, batches):
            now = {k: base[k] + (merged[k] if k in done else tau[k]) for k in base}
            for k, G in grams(activations, now, x[:examples], names).items():
                g = shrunk(G, shrink)
                weighted[k] = weighted.get(k, 0) + tau[k].double() @ g
                summed[k] = summed.get(k, 0) + g
        merged |= {k: solve(weighted[k], summed[k], base[k]) for k in summed}
        done |= names
    return add(base, merged)


@rule(space="weight")
def regmean(base, taus, *, activations, batches, examples=256, shrink=0.9):
    """RegMean, arXiv:2212.09849.   W = W0 + (sum_t tau_t G_t) (sum_t G_t)^-1

    examples   inputs per task
    shrink     [0, 1], factor on the off-diagonal entries of G_t; 1 is plain least squares
    Matrices that `activations` does not know, and biases, take the mean. W0 drops out of the normal
    equations, so task vectors are merged and not weights.
    """
    check_length("batches", batches, taus)
    return layer_by_layer(base, taus, [set(base)], activations, batches, examples, shrink)


@rule(space="weight")
def regmean_pp(base, taus, *, activations, batches, examples=64, shrink=0.9):
    """RegMean++, arXiv:2508.03121.   RegMean with X_t from the model merged so far

    Block by block in the order of the forward pass: the blocks before are merged already, so the
    inputs are those the merged block will see: one pass per block and task. Keywords of regmean.
    """
    check_length("batches", batches, taus)
    order = dict.fromkeys(map(layer_of, activations(base, batches[0][:1])))
    blocks = [{k for k in base if layer_of(k) == block} for block in order]
    return layer_by_layer(base, taus, blocks, activations, batches, examples, shrink)
