"""TSV-Merge: Task Singular Vectors, Reducing Task Interference in Model Merging. arXiv:2412.00081

    tau = polar([U_1 .. U_T]) diag([S_1 .. S_T]) polar([V_1 .. V_T])^T

Shapes   of every matrix tau_t (out, in) the k = min(out, in) / T largest triplets: U_t (out, k),
         S_t (k,), V_t (in, k); polar makes stacked directions orthonormal (spectra.py)
"""

import torch

from merge import rule
from rules.spectra import per_matrix, polar, spectrum


@rule(space="weight")
def tsv(base, taus, *, lam=1.0):
    """TSV-Merge, arXiv:2412.00081.   tau = polar([U_1 .. U_T]) diag(S) polar([V_1 .. V_T])^T

    Every task keeps its min(out, in) / T largest triplets; the stacked directions of all tasks are
    made orthonormal, so that no task writes into another's.
    """
    def combine(stack):
        rank = max(1, min(stack.shape[1:]) // len(stack))
        triplets = [spectrum(tau) for tau in stack]
        U, S, V = (torch.cat([part[..., :rank] for part in parts], -1)
                   for parts in zip(*triplets, strict=True))
        return polar(U) * S @ polar(V).T

    return per_matrix(base, taus, combine, lam)
