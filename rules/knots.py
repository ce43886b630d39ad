"""KnOTS: Model Merging with SVD to Tie the Knots. arXiv:2410.19735

    [tau_1 .. tau_T] = U S [V_1 .. V_T]^T,   tau = U S TIES(V_1^T, .., V_T^T)

Shapes   per matrix: tau_t (out, in) · U S (out, n), one basis for all · V_t^T (n, in)
Differs  the released code trims S V_t^T; here V_t^T, as the equation has it
"""

import torch

from merge import add, rule, ties
from rules.spectra import spectrum


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
    matrices = {k for k in base if base[k].ndim == 2 and any(tau[k].any() for tau in taus)}
    merged = {k: sum(tau[k] for tau in taus) / len(taus) for k in base.keys() - matrices}
    if matrices:
        aligned = {k: align(torch.stack([tau[k] for tau in taus])) for k in matrices}
        parts = [{k: V[t] for k, (_, V) in aligned.items()} for t in range(len(taus))]
        zero = {k: torch.zeros_like(v) for k, v in parts[0].items()}
        elected = ties(zero, parts, density=density, agg=agg)
        merged |= {k: US @ elected[k] for k, (US, _) in aligned.items()}
    return add(base, merged, lam)
