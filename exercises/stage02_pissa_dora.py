"""Stage 2: another start and another form. PiSSA, arXiv:2404.02948 · DoRA, arXiv:2402.09353, eq. 5

PiSSA    W0 = U diag(S) V^T with S falling; U_r, S_r, V_r are its r largest singular triples
             B0 = U_r diag(sqrt(S_r / s)),   A0 = diag(sqrt(S_r / s)) V_r^T
             delta = W_eff - W0 = s (B A - B0 A0)
         A and B start at A0 and B0, so the first delta is zero; s B0 A0 is the principal part of W0
DoRA     W_eff = diag(m / n) V,   V = W0 + s B A,   n_i = ||V_i||, the length of row i of V
         m starts at the lengths of the rows of W0. n is computed afresh from V, and to the gradient
         it is a constant (section 4.3): detach n

Shapes   W0, V, W_eff, delta (out, in) · A, A0 (r, in) · B, B0 (out, r) · m, n (out,)
Given    s is a number, the scale itself
"""

import torch


def pissa_start(W0, rank, s):
    """The pair (A0, B0). torch.linalg.svd(W0, full_matrices=False) returns U, S and V^T."""
    raise NotImplementedError("pissa_start: blank")


def pissa_delta(A, B, A0, B0, s):
    """delta (out, in)."""
    raise NotImplementedError("pissa_delta: blank")


def dora_start(W0):
    """m (out,) at the start."""
    raise NotImplementedError("dora_start: blank")


def dora_weight(W0, m, A, B, s):
    """W_eff (out, in), differentiable in m, A and B."""
    raise NotImplementedError("dora_weight: blank")
