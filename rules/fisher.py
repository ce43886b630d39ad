"""Fisher merging: Merging Models with Fisher-Weighted Averaging. arXiv:2111.09832

    theta = sum_t F_t theta_t / sum_t F_t                                   F_t like theta_t
    F_t = mean_x sum_y p(y|x) (d log p(y|x) / d theta)^2                    at theta_t

Trap     squaring the gradient of a batch mean, or of an average over classes, is not the Fisher:
         the second is zero to the last bit. It is per example and per class, then averaged.
"""

import torch
from torch.func import jacrev, vmap

from errors import BadInput
from merge import add, rule


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
