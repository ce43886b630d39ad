"""What the rules that look at singular values share, one weight matrix at a time.

    tau_t = U_t S_t V_t^T               tau_t (out, in) · U_t (out, n) · S_t (n,) · V_t (in, n)

Element-wise rules treat a matrix as a bag of numbers; here interference is an overlap of singular
directions. Only matrices have those: biases and everything else take the plain mean.

Differs  directions whose singular value is below 1e-6 of the largest are noise of the arithmetic
         and are left out: the task vector of a LoRA run has rank r, and whitening or flattening the
         other directions would invent an update where there is none.
"""

import torch

from merge import add

TOLERANCE = 1e-6


def per_matrix(base, taus, combine, lam):
    """theta_0 + lam combine(stack (T, out, in)) for every matrix, lam mean(stack) elsewhere."""
    merged = {}
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
