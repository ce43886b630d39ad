"""Merge rules that weigh the task vectors by examples: no labels, no training.

    Fisher    theta = sum_t F_t theta_t / sum_t F_t                                2111.09832
              F_t = mean_x sum_y p(y|x) (d log p(y|x) / d theta)^2                 at theta_t
    RegMean   W = (sum_t W_t G_t) (sum_t G_t)^-1,   G_t = X_t^T X_t / rows         2212.09849
              the least-squares fit of one layer to all layers on their own inputs
    RegMean++ the same with X_t from the model merged so far                       2508.03121

Shapes   F_t like theta_t · W_t (out, in) · X_t (rows, in) the inputs of that layer · G_t (in, in)
Data     `functions`, T callables (params, x) -> logits; `batches`, T tensors of inputs;
         `activations`, (params, x) -> {weight name: X}
Traps    squaring the gradient of a batch mean, or of an average over classes, is not the Fisher:
         the second is zero to the last bit. It is per example and per class, then averaged.
"""

import torch
from torch.func import jacrev, vmap

from merge import add, check_length, check_share, layer_of, rule

CHUNK = 64       # examples whose activations are held at a time


@torch.no_grad()                    # jacrev has its own graph; frozen parts must not record another
def diagonal_fisher(function, params, x, chunk=4):
    """F, dict like params: mean over x (n, ...) and expectation over the model's own labels.

    chunk   examples whose C gradients each are held at a time
    """
    def log_probabilities(p, example):
        logp = function(p, example[None])[0].log_softmax(-1)                 # (C,)
        return logp, logp

    jacobian = vmap(jacrev(log_probabilities, has_aux=True), in_dims=(None, 0))
    total = {k: torch.zeros_like(v) for k, v in params.items()}
    for part in x.split(chunk):
        J, logp = jacobian(params, part)                                     # (b, C, ...), (b, C)
        for k in total:
            total[k] += torch.einsum("bc,bc...->...", logp.exp(), J[k].square())
    return {k: v / len(x) for k, v in total.items()}


@rule
def fisher(base, taus, *, functions=None, batches=None, examples=32, normalize=True, floor=1e-6):
    """Fisher merging, arXiv:2111.09832.   theta = sum_t F_t theta_t / sum_t F_t

    examples   inputs per task
    normalize  divide every F_t by its length: a confident model has a small F and would not count
    floor      F is at least this share of its mean; where it is all floor the result is the mean
    Streams: two sums like the model, and the gradients of a few examples.
    """
    weighted = {k: torch.zeros_like(v) for k, v in base.items()}
    weights = {k: torch.zeros_like(v) for k, v in base.items()}
    for tau, function, x in zip(taus, functions, batches, strict=True):
        F = diagonal_fisher(function, add(base, tau), x[:examples])
        mean = sum(v.sum() for v in F.values()) / sum(v.numel() for v in F.values())
        size = sum(v.square().sum() for v in F.values()).sqrt() if normalize else torch.ones(())
        for k in base:
            f = F[k].clamp(min=max(floor * mean, 1e-30)) / size.clamp(min=1e-30)
            weighted[k] += f * tau[k]
            weights[k] += f
    return {k: base[k] + weighted[k] / weights[k] for k in base}


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


@rule(space="weight")
def regmean(base, taus, *, activations=None, batches=None, examples=256, shrink=0.9):
    """RegMean, arXiv:2212.09849.   W = W0 + (sum_t tau_t G_t) (sum_t G_t)^-1

    examples   inputs per task
    shrink     [0, 1], factor on the off-diagonal entries of G_t; 1 is plain least squares
    Matrices that `activations` does not know, and biases, take the mean. W0 drops out of the normal
    equations, so task vectors are merged and not weights. Streams.
    """
    if shrink:
        check_share("shrink", shrink)
    weighted, total, mean, count = {}, {}, {k: torch.zeros_like(v) for k, v in base.items()}, 0
    for tau, x in zip(taus, batches, strict=True):
        count += 1
        G = grams(activations, add(base, tau), x[:examples], base.keys())
        for k in base:
            mean[k] += tau[k]
            if k in G:
                g = shrunk(G[k], shrink)
                weighted[k] = weighted.get(k, 0) + tau[k].double() @ g
                total[k] = total.get(k, 0) + g
    return {k: base[k] + (solve(weighted[k], total[k], base[k]) if k in total else mean[k] / count)
            for k in base}


@rule(space="weight")
def regmean_pp(base, taus, *, activations=None, batches=None, examples=64, shrink=0.9):
    """RegMean++, arXiv:2508.03121.   RegMean with X_t from the model merged so far

    Block by block in the order of the forward pass: the blocks before are merged already, so the
    inputs are those the merged block will see: one pass per block and task. Keywords of regmean.
    """
    if shrink:
        check_share("shrink", shrink)
    taus = list(taus)
    check_length("batches", batches, taus)
    merged = {k: sum(tau[k] for tau in taus) / len(taus) for k in base}
    order = list(dict.fromkeys(map(layer_of, activations(base, batches[0][:1]))))
    done = {k for k in base if layer_of(k) not in order}
    for block in order:
        names = {k for k in base if layer_of(k) == block}
        weighted, total = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        for tau, x in zip(taus, batches):
            now = {k: base[k] + (merged[k] if k in done else tau[k]) for k in base}
            for k, G in grams(activations, now, x[:examples], names).items():
                g = shrunk(G, shrink)
                weighted[k], total[k] = weighted[k] + tau[k].double() @ g, total[k] + g
        for k in names:
            if isinstance(total[k], torch.Tensor):
                merged[k] = solve(weighted[k], total[k], base[k])
        done |= names
    return add(base, merged)
