"""No Task Left Behind: Isotropic Model Merging. arXiv:2502.04959

    sum_t tau_t = U S V^T  ->  tau = mean(S) U V^T          Iso-C: all directions count alike

Shapes   per matrix: tau (out, in) · U (out, n) · S (n,) · V (in, n)
Iso-CTS  gives the weakest directions of the sum to the single tasks before it flattens S
Differs  n is the number of directions above the noise (spectra.py); the released code takes
         min(out, in), which for low-rank task vectors counts directions that nobody has
"""

import torch

from merge import check_share, rule
from rules.spectra import per_matrix, polar, spectrum


@rule(space="weight")
def iso_c(base, taus, *, lam=1.0):
    """Iso-C, arXiv:2502.04959.   sum_t tau_t = U S V^T  ->  tau = mean(S) U V^T

    All directions of the sum count alike; its nuclear norm, sum S, stays.
    """
    def combine(stack):
        U, S, V = spectrum(stack.sum(0))
        return S.sum() / max(1, len(S)) * U @ V.T

    return per_matrix(base, taus, combine, lam)


@rule(space="weight")
def iso_cts(base, taus, *, common=0.8, lam=1.0):
    """Iso-CTS, arXiv:2502.04959.   Iso-C on the common directions and on what each task has besides

    common   share (0, 1] of the n directions of sum tau that stay; every task gets an equal part of
             the others, k = round((n - int(n common)) / T), for the top directions of
             tau_t - U_c U_c^T tau_t, and the n - T k strongest of the sum are the common ones U_c
    """
    check_share("common", common)

    def combine(stack):
        U, S, V = spectrum(stack.sum(0))
        n, T = len(S), len(stack)
        each = round((n - int(n * common)) / T)
        kept = max(0, n - T * each)
        U, S, V = [U[:, :kept]], [S[:kept]], [V[:, :kept]]
        for tau in stack:
            rest = spectrum(tau - U[0] @ (U[0].T @ tau))
            for parts, part in zip((U, S, V), rest, strict=True):
                parts.append(part[..., :each])
        S = torch.cat(S)
        if not len(S):
            return torch.zeros_like(stack[0])
        return S.mean() * polar(torch.cat(U, 1)) @ polar(torch.cat(V, 1)).T

    return per_matrix(base, taus, combine, lam)
