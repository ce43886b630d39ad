"""Model Stock: All We Need Is Just a Few Fine-Tuned Models. arXiv:2403.19522

    theta = theta_0 + t (1/T) sum_t tau_t                                      tensor by tensor
    t     = T cos / (1 + (T - 1) cos)                    cos the cosine of two task vectors

If tau_t = mu + n_t, the n_t of one length and orthogonal to mu and to each other, this is the point
nearest to mu on the line from the base to the average. Models of one task from several seeds are
like that. Task vectors of different tasks are nearly orthogonal: t is near 0, theta near theta_0.

Differs  the paper has one angle; here cos is the mean over all pairs, clamped to [0, 1]. Below 0 it
         would lead away from the average, and the formula has a pole at -1 / (T - 1).
"""

import torch

from merge import rule


@rule(streams=True)
def model_stock(base, taus, *, lam=1.0):
    """Model Stock, arXiv:2403.19522.   tau = t (1/T) sum_t tau_t,   t = T cos / (1 + (T - 1) cos)

    One pass: with unit vectors u_t the cosines of all pairs add up to (|sum u_t|^2 - T) / 2. A zero
    vector has cosine 0 with all others; a single model comes back as it is.
    """
    summed, units = ({k: torch.zeros_like(v) for k, v in base.items()} for _ in range(2))
    T, nonzero = 0, dict.fromkeys(base, 0)
    for tau in taus:
        T += 1
        for k, v in tau.items():
            summed[k] += v
            if (size := v.norm()) != 0:
                units[k] += v / size
                nonzero[k] += 1
    merged = {}
    for k, v in base.items():
        pairs = units[k].square().sum() - nonzero[k]
        cos = (pairs / (T * (T - 1))).clamp(0, 1) if T > 1 else 1.0
        merged[k] = v + lam * cos / (1 + (T - 1) * cos) * summed[k]
    return merged
