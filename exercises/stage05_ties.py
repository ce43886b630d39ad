"""Stage 5: TIES. arXiv:2306.01708, algorithm 1

    trim            every tau_t keeps the round(density n) of its n entries (Python's round()) with
                    the largest magnitude, n over all its tensors together; the others become 0
    elect           per entry gamma = sign(sum_t trimmed tau_t); where that is 0, gamma is +1 if
                    sign(sum_t trimmed tau_t), added up over every entry of every tensor, is 0 or
                    more, else -1
    disjoint mean   per entry the mean of the trimmed entries that have the sign gamma, over as many
                    tasks as have it (an entry of 0 has no sign); 0 where no task has it
    theta = theta_0 + lam (disjoint mean)

Shapes   base, every tau and the signs are dicts name -> tensor with the same keys and shapes; taus
         is a list of T task vectors, density a number in (0, 1]
Rule     modify no argument in place
"""

import torch


def trim(tau, density):
    """The trimmed task vector, a dict. No two magnitudes at the threshold are equal."""
    raise NotImplementedError("trim: blank")


def elect(taus):
    """gamma of trimmed task vectors, a dict of -1. and +1."""
    raise NotImplementedError("elect: blank")


def disjoint_mean(taus, signs):
    """The disjoint mean of trimmed task vectors, a dict, for elected signs."""
    raise NotImplementedError("disjoint_mean: blank")


def ties(base, taus, *, density=0.2, lam=1.0):
    """theta, a dict, from task vectors that are not trimmed yet."""
    raise NotImplementedError("ties: blank")
