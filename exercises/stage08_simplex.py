"""Stage 8: coefficients on the simplex, {lam: lam_t >= 0, sum_t lam_t = 1}

    projection   P(v) = the point of the simplex nearest to v = max(v - shift, 0), entry by entry,
                 where one number, the shift, makes the entries sum to 1
    the shift    sort v downwards, u_1 >= u_2 >= ... >= u_T; rho is the largest j with
                 j u_j > u_1 + ... + u_j - 1;   shift = (u_1 + ... + u_rho - 1) / rho
    search       lam = (1/T, ..., 1/T), then in each of `steps` steps
                 lam <- P(lam - lr gradient(lam))

Shapes   v, u, lam (T,)
Trap     clipping at 0 and dividing by the sum also lands on the simplex, at another point.
"""

import torch


def project(v):
    """P(v) (T,), in the dtype of v, which stays as it is."""
    raise NotImplementedError("project: blank")


def search(gradient, tasks, *, lr, steps):
    """lam (T,) in float64 after the last step; gradient (lam (T,)) -> (T,), tasks is T."""
    raise NotImplementedError("search: blank")
