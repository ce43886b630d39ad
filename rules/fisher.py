"""Fisher merging: Merging Models with Fisher-Weighted Averaging. arXiv:2111.09832

    theta = sum_t F_t theta_t / sum_t F_t                                   F_t like theta_t
    F_t = mean_x sum_y p(y|x) (d log p(y|x) / d theta)^2                    at theta_t

    tr F = mean_x sum_y p(y|x) |d log p(y|x) / d theta|^2                   labels of the model
    empirical: mean over pairs (x, y) of |d log p(y|x) / d theta|^2         labels of the data

Trap     squaring the gradient of a batch mean, or of an average over classes, is not the Fisher:
         the second is zero to the last bit. It is per example and per class, then averaged.
"""

import torch
from torch.func import jacrev, vmap

from errors import BadInput
from merge import add, rule


@torch.no_grad()                    # jacrev has its own graph; frozen parts must not record another
def gradients(function, params, x, chunk):
    """Yields, for `chunk` examples of x (n, ...) at a time, the gradients of log p(y|x) for all C
    labels, a dict of (b, C, ...) like params, and p(y|x) (b, C)."""
    def log_probabilities(p, example):
        logp = function(p, example[None])[0].log_softmax(-1)                 # (C,)
        return logp, logp

    jacobian = vmap(jacrev(log_probabilities, has_aux=True), in_dims=(None, 0))
    for part in x.split(chunk):
        J, logp = jacobian(params, part)
        yield J, logp.exp()


def diagonal_fisher(function, params, x, chunk=4):
    """F, dict like params: mean over x (n, ...) and expectation over the model's own labels.

    chunk   examples whose C gradients each are held at a time
    """
    total = {k: torch.zeros_like(v) for k, v in params.items()}
    for J, p in gradients(function, params, x, chunk):
        for k in total:
            total[k] += torch.einsum("bc,bc...->...", p, J[k].square())
    return {k: v / len(x) for k, v in total.items()}


def log_traces(function, params, x, labels, chunk=2):
    """(log tr F, log of the empirical trace), natural logarithms, on x (n, ...), labels (n,)."""
    true = empirical = 0.0
    for (J, p), given in zip(gradients(function, params, x, chunk), labels.split(chunk)):
        norms = sum(v.flatten(2).square().sum(-1) for v in J.values())       # (b, C)
        true += (p * norms).sum().item()
        empirical += norms.gather(1, given[:, None].to(norms.device)).sum().item()
    means = torch.tensor([true, empirical], dtype=torch.float64) / len(x)
    return tuple(means.log().tolist())                                       # -inf of 0


@rule()
def fisher(base, taus, *, functions, batches, examples=32, normalize=True, floor=1e-6):
    """Fisher merging, arXiv:2111.09832.   theta = sum_t F_t theta_t / sum_t F_t

    examples   inputs per task
    normalize  divide every F_t by its length: a confident model has a small F and would not count
    floor      F is at least this share of its mean
    """
    if examples < 1:
        raise BadInput(f"examples {examples}: take at least 1")
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
