"""MagMax: Leveraging Model Merging for Seamless Continual Learning. arXiv:2407.06322

    theta = theta_0 + lam tau*,   tau*_j = the tau_tj of largest magnitude over the tasks t
"""

import torch

from merge import add, rule


@rule()
def magmax(base, taus, *, lam=0.5):
    """MagMax, arXiv:2407.06322.   theta = theta_0 + lam tau*,   tau*_j = the tau_tj of largest |.|

    The later task wins a tie.
    """
    strongest = dict(taus[0])
    for tau in taus[1:]:
        strongest = {k: torch.where(tau[k].abs() >= v.abs(), tau[k], v)
                     for k, v in strongest.items()}
    return add(base, strongest, lam)
