"""Merge rules that look at singular values, one weight matrix at a time.

    tau_t = U_t S_t V_t^T               tau_t (out, in) · U_t (out, n) · S_t (n,) · V_t (in, n)

TSV-Merge 2412.00081 · Iso-C and Iso-CTS 2502.04959 · KnOTS 2410.19735 · WUDI 2503.08099

Element-wise rules treat a matrix as a bag of numbers; here interference is an overlap of singular
directions. Only matrices have those: biases and everything else take the plain mean.

Differs  directions whose singular value is below 1e-6 of the largest are noise of the arithmetic
         and are left out: the task vector of a LoRA run has rank r, and whitening or flattening the
         other directions would invent an update where there is none.
"""

import torch

from merge import add, check_share, rule, ties

TOLERANCE = 1e-6


def per_matrix(base, taus, combine, lam):
    """theta_0 + lam combine(stack (T, out, in)) for every matrix, lam mean(stack) elsewhere."""
    taus, merged = list(taus), {}
    for k, v in base.items():
        stack = torch.stack([tau[k] for tau in taus])
        merged[k] = combine(stack) if v.ndim == 2 and stack.any() else stack.mean(0)
    return add(base, merged, lam)


def spectrum(matrix):
    """The singular triplets above the noise: U (out, n), S (n,) falling, V (in, n)."""
    U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    n = int((S > TOLERANCE * S[0]).sum())
    return U[:, :n], S[:n], Vt[:n].T


def polar(M):
    """The orthonormal factor P Q^T of M = P D Q^T: the closest matrix with D = I.

    Columns of M that repeat each other share one direction; nothing is invented for the rest.
    """
    P, _, Q = spectrum(M)
    return P @ Q.T


@rule(space="weight")
def tsv(base, taus, *, lam=1.0):
    """TSV-Merge, arXiv:2412.00081.   tau = polar([U_1 .. U_T]) diag(S) polar([V_1 .. V_T])^T

    Every task keeps its min(out, in) / T largest triplets; the stacked directions of all tasks are
    made orthonormal, so that no task writes into another's.
    """
    def combine(stack):
        rank = max(1, min(stack.shape[1:]) // len(stack))
        triplets = [spectrum(tau) for tau in stack]
        U, S, V = (torch.cat([part[..., :rank] for part in parts], -1) for parts in zip(*triplets))
        return polar(U) * S @ polar(V).T

    return per_matrix(base, taus, combine, lam)


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
            own = spectrum(tau - U[0] @ (U[0].T @ tau))
            for parts, part in zip((U, S, V), own):
                parts.append(part[..., :each])
        S = torch.cat(S)
        return S.sum() / max(1, len(S)) * polar(torch.cat(U, 1)) @ polar(torch.cat(V, 1)).T

    return per_matrix(base, taus, combine, lam)


def align(stack):
    """[tau_1 .. tau_T] = U S [V_1 .. V_T]^T: one basis U S (out, n) for all, V_t^T (n, in) each."""
    T, _, width = stack.shape
    U, S, V = spectrum(torch.cat(list(stack), 1))                            # (out, T in)
    return U * S, V.T.unflatten(1, (T, width)).transpose(0, 1)               # (T, n, in)


@rule(space="weight")
def knots(base, taus, *, density=0.2, agg="mean", lam=1.0):
    """KnOTS-TIES, arXiv:2410.19735.   tau = U S TIES(V_1^T, .., V_T^T) in the basis of `align`

    Element-wise rules compare entries, and in a common basis the entries of two LoRA updates mean
    the same thing. Summing the V_t gives back sum tau: without a non-linear rule nothing changes.
    """
    taus = list(taus)
    matrices = {k for k in base if base[k].ndim == 2 and any(tau[k].any() for tau in taus)}
    merged = {k: sum(tau[k] for tau in taus) / len(taus) for k in base.keys() - matrices}
    if matrices:
        aligned = {k: align(torch.stack([tau[k] for tau in taus])) for k in matrices}
        parts = [{k: V[t] for k, (_, V) in aligned.items()} for t in range(len(taus))]
        zero = {k: torch.zeros_like(v) for k, v in parts[0].items()}
        elected = ties(zero, parts, density=density, agg=agg)
        merged |= {k: US @ elected[k] for k, (US, _) in aligned.items()}
    return add(base, merged, lam)


@rule(space="weight")
def wudi(base, taus, *, lam=1.0):
    """WUDI, arXiv:2503.08099.   min over M of sum_t ||(M - tau_t) tau_t^T||^2 / ||tau_t||^2

    The rows of tau_t stand in for the inputs of task t. A linear least-squares problem, so
    M = (sum tau_t G_t)(sum G_t)^+ with G_t = tau_t^T tau_t / ||tau_t||^2: RegMean without data.
    Differs: the paper takes 300 steps of Adam from M = sum tau_t; here directions that no tau_t
    uses keep that start, M + (B - M S) S^+, and the others their exact minimum, in float64.
    """
    def combine(stack):
        stack = stack.double()
        total = stack.sum(0)
        gram = stack.mT @ stack / stack.square().sum((1, 2)).clamp(min=1e-300)[:, None, None]
        S, B = gram.sum(0), (stack @ gram).sum(0)
        inverse = torch.linalg.pinv(S, rtol=TOLERANCE ** 2, hermitian=True)
        return total + (B - total @ S) @ inverse

    return per_matrix(base, taus, combine, lam)
