"""Stage 5: TIES. arXiv:2306.01708, algorithm 1

    trim            every tau_t keeps the round(density n) of its n entries with the largest
                    magnitude, n counted over all its tensors together; the others become 0
    elect           per entry gamma = sign(sum_t trimmed tau_t); where the sum is 0, the sign of
                    the majority: +1 if the signs of all entries add up to 0 or more, else -1
    disjoint mean   per entry the mean of the trimmed entries that have the sign gamma, over as many
                    tasks as have it (an entry of 0 has no sign); 0 where no task has it
    theta = theta_0 + lam (disjoint mean)

Shapes   base, every tau and the signs are dicts name -> tensor with the same keys and shapes; taus
         is a list of T task vectors, density a number in (0, 1]
Rule     change no argument in place
"""

import torch


def trim(tau, density):
    """The trimmed task vector, a dict. No two magnitudes at the threshold are equal."""
    raise NotImplementedError("stage 5: trim is blank")


def elect(taus):
    """gamma of trimmed task vectors, a dict of -1. and +1."""
    raise NotImplementedError("stage 5: elect is blank")


def disjoint_mean(taus, signs):
    """The disjoint mean of trimmed task vectors, a dict, for elected signs."""
    raise NotImplementedError("stage 5: disjoint_mean is blank")


def ties(base, taus, *, density=0.2, lam=1.0):
    """theta, a dict, from task vectors that are not trimmed yet."""
    raise NotImplementedError("stage 5: ties is blank")
