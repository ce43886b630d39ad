"""DELLA-Merging: Reducing Interference through Magnitude-Based Sampling. arXiv:2406.11617

    theta = theta_0 + lam mean{ m_t tau_t / (1 - q_t) that agree }         P(m_t = 1) = 1 - q_t
    q_t = p + epsilon (1 - 2 i / (n - 1))          i = 0 .. n - 1 the rank of |tau_t| in its row

Drop     at random as in DARE, but a row's smallest entry at p + epsilon, its largest at p - epsilon
Elect    per entry, the sign with the larger total mass of what is left
Fuse     the mean of what is left and has that sign
Differs  mergekit scales what is left of a tensor to its old L1 norm; here every entry is divided by
         its own 1 - q_t, as in the authors' code, so that the expectation of a drop is tau_t
"""

import torch

from errors import BadInput
from merge import rule, ties


def drop_rates(v, drop, epsilon):
    """q like v, by the rank in every row; a tensor of one dimension is one row.

    The mean over a row is `drop`; a row of one entry has no other. Of equal entries the earlier one
    ranks lower.
    """
    rows = torch.atleast_2d(v.abs()).flatten(1)
    rank = rows.argsort(dim=1, stable=True).argsort(1)
    n = rows.shape[1]
    return (drop + epsilon * (n - 1 - 2 * rank).to(v) / max(n - 1, 1)).view(v.shape)


@rule()
def della(base, taus, *, drop=0.5, epsilon=0.1, lam=1.0, seed=0):
    """DELLA, arXiv:2406.11617.   theta = theta_0 + lam mean{ m_t tau_t / (1 - q_t) that agree }

    drop, epsilon   drop rates run from drop + epsilon to drop - epsilon, the window of the paper is
                    2 epsilon; epsilon = 0 is `dare_ties`
    """
    if not 0 <= epsilon <= drop < 1 - epsilon:
        raise BadInput(f"drop {drop} with epsilon {epsilon}: the drop rates go from drop - epsilon "
                       "to drop + epsilon, and [0, 1) must hold them all")
    generator = torch.Generator().manual_seed(seed)

    def pruned(v):
        q = drop_rates(v, drop, epsilon)
        return (torch.rand(v.shape, generator=generator).to(v.device) >= q) * v / (1 - q)

    thinned = ({k: pruned(v) for k, v in tau.items()} for tau in taus)
    return ties(base, thinned, density=1.0, lam=lam)
