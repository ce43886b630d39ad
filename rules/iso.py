"""No Task Left Behind: Isotropic Model Merging. arXiv:2502.04959

    sum_t tau_t = U S V^T  ->  tau = mean(S) U V^T          Iso-C: all directions count alike

Shapes   per matrix: tau (out, in) · U (out, n) · S (n,) · V (in, n)
Iso-CTS  gives the weakest directions of the sum to the single tasks before it flattens S
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

    common   share (0, 1] of the rank of sum tau that is kept as it is; the rest of the rank goes in
             equal parts to the top directions of tau_t - U_c U_c^T tau_t, U_c the common ones
    """
    check_share("common", common)

    def combine(stack):
        U, S, V = spectrum(stack.sum(0))
        k = round(common * len(S))
        each = (len(S) - k) // len(stack)
        U, S, V = [U[:, :k]], [S[:k]], [V[:, :k]]
        for tau in stack:
            rest = spectrum(tau - U[0] @ (U[0].T @ tau))
            for parts, part in zip((U, S, V), rest, strict=True):
                parts.append(part[..., :each])
        S = torch.cat(S)
        return S.sum() / max(1, len(S)) * polar(torch.cat(U, 1)) @ polar(torch.cat(V, 1)).T

    return per_matrix(base, taus, combine, lam)
