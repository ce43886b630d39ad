"""Supervised coefficients: cross entropy on a few labelled examples. No paper, AdaMerging's twin.

    min over lam >= 0 of (1/T) sum_t CE_t(theta(lam)) + l2 ||lam||^2
    simplex        also sum_t lam_t^g = 1 in every group
    group_penalty  + group_penalty sum_g ||lam^g||_2: whole groups go to zero

Shapes   lam (T, G) and theta(lam) as in coefficients.py

Adam has one second moment per group here, not one per coefficient. With one each, gradients of one
sign become equal steps, and the projection onto the simplex undoes those: lam would not move.
"""

import torch
import torch.nn.functional as F

from errors import BadInput
from merge import rule
from rules.coefficients import check_tasks, combine, descend, group_index


def project_simplex(v):
    """Nearest point with entries >= 0 and sum 1, column by column; v is (T,) or (T, G).

    max(v - s, 0), s = (sum of the rho largest - 1) / rho, rho = max{j: j u_j > u_1 + .. + u_j - 1}
    for u = v sorted downwards. Clipping at 0 and dividing by the sum gives another point.
    """
    u = v.sort(0, descending=True).values
    j = torch.arange(1, len(v) + 1).view(-1, *[1] * (v.ndim - 1)).to(v)
    excess = u.cumsum(0) - 1
    rho = (j * u > excess).sum(0, keepdim=True)
    return (v - excess.gather(0, rho - 1) / rho).clamp(min=0)


def shrink(v, size):
    """Prox of size ||.||_2 on the columns of v (T, G), size (1, G): shorter by size, or zero."""
    length = v.norm(dim=0, keepdim=True).clamp(min=1e-300)
    return v * (1 - size / length).clamp(min=0)


@rule()
def fitted(base, taus, *, functions, labelled, groups="task", steps=60, lr=0.02, batch=16, l2=0.01,
           simplex=False, group_penalty=0.0, seed=0):
    """Supervised coefficients.   min over lam >= 0 of (1/T) sum_t CE_t + l2 ||lam||^2

    functions      T callables (params, x (B, ...)) -> logits (B, C_t), in evaluation mode
    labelled       T pairs x (n_t, ...), y (n_t,), none of them a test example
    groups         "task", "block" or "tensor"; starts at 1/T
    simplex        also sum_t lam_t^g = 1 in every group. A mean, and near-orthogonal task vectors
                   want more: eight at 0.3 sum to 2.4
    group_penalty  + group_penalty sum_g ||lam^g||_2, by its proximal step
    """
    check_tasks(taus, functions, "labelled", [x for x, _ in labelled], batch)
    if simplex and group_penalty:
        raise BadInput("on the simplex no group can vanish: choose simplex or group_penalty")
    index, generator = group_index(base, groups), torch.Generator().manual_seed(seed)
    shape = len(taus), 1 + max(index.values())
    lam = torch.full(shape, 1 / len(taus), dtype=torch.float64)
    m, v, t = torch.zeros_like(lam), lam.new_zeros(1, shape[1]), 0

    def loss(t, theta):
        x, y = labelled[t]
        rows = torch.randperm(len(x), generator=generator)[:batch]
        return F.cross_entropy(functions[t](theta, x[rows]), y[rows]) / len(taus)

    def update(gradient):
        nonlocal m, v, t
        g, t = gradient + 2 * l2 * lam, t + 1
        g = g - g.mean(0, keepdim=True) if simplex else g      # a shift projects alike
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g.square().mean(0, keepdim=True)
        rate = lr / ((v / (1 - 0.999 ** t)).sqrt() + 1e-8)                   # (1, G)
        moved = lam - rate * m / (1 - 0.9 ** t)
        lam.copy_(project_simplex(moved) if simplex
                  else shrink(moved.clamp(min=0), rate * group_penalty))

    descend(base, taus, loss, lam, index, update, steps)
    return combine(base, taus, lam, index)
