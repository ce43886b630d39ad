"""DARE: Language Models are Super Mario. arXiv:2311.03099

    theta = theta_0 + lam sum_t m_t tau_t / (1 - p)         m_t like tau_t, P(m_t = 1) = 1 - p

Dropping entries at random and scaling up the rest leaves the expectation at tau_t.
"""

import torch

from errors import BadInput
from merge import rule


@rule()
def dare(base, taus, *, drop=0.5, lam=0.3, seed=0):
    """DARE, arXiv:2311.03099.   theta = theta_0 + lam sum_t m_t tau_t / (1 - p),   P(m = 1) = 1 - p

    drop   p in [0, 1), the share of entries that are dropped at random. A large tau, from full
           fine-tuning, does not survive p = 0.9.
    """
    if not 0 <= drop < 1:
        raise BadInput(f"drop {drop} is outside [0, 1)")
    generator = torch.Generator().manual_seed(seed)
    merged = {k: v.clone() for k, v in base.items()}
    for tau in taus:
        for k, v in tau.items():
            kept = (torch.rand(v.shape, generator=generator) >= drop).to(v.device)
            merged[k].add_(kept * v, alpha=lam / (1 - drop))
    return merged
