"""Task vectors made orthogonal before they are added.

    theta = theta_0 + lam sum_t u_t,   <u_i, u_j> = 0 for i != j        u_t in place of tau_t (n,)

Gram-Schmidt takes the tasks in order; Loewdin's symmetric orthogonalisation prefers none of them.
"""

import torch

from merge import add, flatten, rule, unflatten


@rule()
def gram_schmidt(base, taus, *, lam=1.0):
    """Orthogonalised sum.   theta = theta_0 + lam sum_t u_t,   u_t orthogonal to u_1 .. u_{t-1}

    u_t is tau_t minus its part along the earlier ones, by modified Gram-Schmidt, twice over and in
    float64; a vector with nothing left is skipped. The first task keeps all that it shares with the
    others: the order matters.
    """
    directions, summed = [], 0
    for tau in taus:
        u = flatten(tau).double()
        size = u.norm()
        for _ in range(2):
            for v in directions:                                     # unit vectors
                u = u - (u @ v) * v
        if u.norm() > 1e-6 * size:
            directions.append(u / u.norm())
            summed = summed + u
    if not directions:
        return dict(base)
    return add(base, unflatten(summed.to(base[next(iter(base))].dtype), base), lam)


@rule()
def symmetric_orthogonal(base, taus, *, lam=1.0):
    """Loewdin's orthogonalised sum.   theta = theta_0 + lam sum_t u_t,   u = D G^(-1/2) tau

    G_ij = <tau_i, tau_j>, and D restores every length: no task comes first. Directions that
    the others already span (eigenvalue of G below 1e-12 of the largest) are left out.
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
