"""DARE: Language Models are Super Mario. arXiv:2311.03099

    tau'_t = m_t tau_t / (1 - p)                   m_t of 0 and 1 like tau_t, P(m_t = 1) = 1 - p

dare       theta = theta_0 + lam sum_t tau'_t
dare_ties  theta = theta_0 + lam TIES(tau'_1, .., tau'_T)

Dropping entries at random and scaling up the rest leaves the expectation at tau_t. An election
after it does not: a task may win a sign only because its rival was dropped.
"""

import torch

from errors import BadInput
from merge import rule, ties


def source(drop, seed):
    """What the masks are drawn from, one after the other: every task has its own."""
    if not 0 <= drop < 1:
        raise BadInput(f"drop {drop} is outside [0, 1)")
    return torch.Generator().manual_seed(seed)


def kept(v, drop, generator):
    """m like v, true with probability 1 - drop."""
    return (torch.rand(v.shape, generator=generator) >= drop).to(v.device)


@rule()
def dare(base, taus, *, drop=0.5, lam=0.3, seed=0):
    """DARE, arXiv:2311.03099.   theta = theta_0 + lam sum_t m_t tau_t / (1 - p),   P(m = 1) = 1 - p

    drop   p in [0, 1), the share of entries that are dropped at random. A large tau, from full
           fine-tuning, does not survive p = 0.9.
    """
    generator = source(drop, seed)
    merged = {k: v.clone() for k, v in base.items()}
    for tau in taus:
        for k, v in tau.items():
            merged[k].add_(kept(v, drop, generator) * v, alpha=lam / (1 - drop))
    return merged


@rule()
def dare_ties(base, taus, *, drop=0.5, density=1.0, agg="mean", lam=1.0, seed=0):
    """DARE, then TIES, arXiv:2311.03099.   theta = theta_0 + lam TIES of the m_t tau_t / (1 - p)

    density, agg   of `ties`; 1 elects and fuses without a trim by magnitude
    """
    generator = source(drop, seed)
    thinned = [{k: kept(v, drop, generator) * v / (1 - drop) for k, v in tau.items()}
               for tau in taus]
    return ties(base, thinned, density=density, agg=agg, lam=lam)
