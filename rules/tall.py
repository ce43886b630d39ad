"""Localizing Task Information for Improved Model Merging and Compression. arXiv:2405.07813

    m_t = 1[ |tau_t| > threshold |tau_MT - tau_t| ],   tau_MT = sum_t tau_t

TALL-masks  theta_t = theta_0 + m_t tau_MT                       one model per task
Consensus   theta   = theta_0 + lam 1[sum_t m_t >= agree] tau_MT             one model
"""

from merge import Experts, add, rule, total


def masks(taus, threshold):
    """m_t of every task: where its own entry weighs enough in the sum tau_MT; and tau_MT."""
    summed = total(taus)
    return [{k: tau[k].abs() > threshold * (summed[k] - tau[k]).abs() for k in summed}
            for tau in taus], summed


@rule(experts=True)
def tall(base, taus, *, threshold=0.4):
    """TALL-masks, arXiv:2405.07813.   theta_t = theta_0 + m_t tau_MT,   tau_MT = sum_t tau_t

    threshold   of m_t; the paper chooses it in .2 to .6. The task must be known; T bits an entry.
    """
    kept, summed = masks(taus, threshold)
    return Experts([{k: base[k] + m[k] * summed[k] for k in base} for m in kept])


@rule()
def consensus(base, taus, *, threshold=0.4, agree=2, lam=0.3):
    """Consensus merging, arXiv:2405.07813.   theta = theta_0 + lam 1[sum_t m_t >= agree] tau_MT

    Keeps the entries that matter to at least `agree` tasks; the m_t are those of `tall`.
    """
    kept, summed = masks(taus, threshold)
    return add(base, {k: (sum(m[k].int() for m in kept) >= agree) * summed[k] for k in base}, lam)
