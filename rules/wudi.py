"""WUDI-Merging: Whoever Started the Interference Should End It. arXiv:2503.08099

    min over M of sum_t ||(M - tau_t) tau_t^T||^2 / ||tau_t||^2         M, tau_t (out, in)
    M = (sum_t tau_t G_t) (sum_t G_t)^+,   G_t = tau_t^T tau_t / ||tau_t||^2        G_t (in, in)

The rows of tau_t stand in for the inputs of task t: RegMean without data.
Differs  the paper takes 300 steps of Adam from M = sum tau_t. The problem is linear least squares,
         so directions that some tau_t uses take their exact minimum, in float64, and the others
         keep that start: M + (B - M S) S^+
"""

import torch

from merge import rule
from rules.spectra import TOLERANCE, per_matrix


@rule(space="weight")
def wudi(base, taus, *, lam=1.0):
    """WUDI, arXiv:2503.08099.   min over M of sum_t ||(M - tau_t) tau_t^T||^2 / ||tau_t||^2"""
    def combine(stack):
        stack = stack.double()
        M = stack.sum(0)
        gram = stack.mT @ stack / stack.square().sum((1, 2)).clamp(min=1e-300)[:, None, None]
        S, B = gram.sum(0), (stack @ gram).sum(0)
        inverse = torch.linalg.pinv(S, rtol=TOLERANCE ** 2, hermitian=True)
        return M + (B - M @ S) @ inverse

    return per_matrix(base, taus, combine, lam)
