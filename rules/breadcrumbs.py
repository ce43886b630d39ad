"""Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks. arXiv:2312.06795

    theta = theta_0 + lam sum_t m_t tau_t                   m_t of 0 and 1 like tau_t

The mask drops both ends in every tensor: the few largest entries are outliers, the smallest noise.
"""

from errors import BadInput
from merge import add, check_share, largest, rule


@rule()
def breadcrumbs(base, taus, *, density=0.9, gamma=0.01, lam=0.3):
    """Model Breadcrumbs, arXiv:2312.06795.   theta = theta_0 + lam sum_t m_t tau_t

    In every tensor m_t drops the round(gamma n) largest entries and, of what is left, keeps the
    round(density n) largest.
    """
    check_share("density", density)
    if not 0 <= gamma < 1:
        raise BadInput(f"gamma {gamma} is outside [0, 1)")

    def masked(v):
        size, top = v.reshape(-1).abs(), round(gamma * v.numel())
        kept = largest(size, top + round(density * v.numel())) & ~largest(size, top)
        return v * kept.view_as(v)

    return add(base, {k: sum(masked(tau[k]) for tau in taus) for k in base}, lam)
