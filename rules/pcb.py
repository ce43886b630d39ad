"""PCB-Merging: Parameter Competition Balancing for Model Merging. arXiv:2410.02396

    theta = theta_0 + lam sum_t w_t c_t / sum_t w_t                 w_t in [0, 1], c_t like tau_t

Clip     c_t is tau_t with |tau_t| clipped at both tails
Intra    a_t = exp(T s_t^2),   s_t = minmax |c_t|, scaled to [0, 1] over the whole model
Inter    b_t = tanh(tau_t S),   S = sum_t sign(c_t) s_t
Weight   w_t = minmax of a_t b_t, clipped from below so that only the largest share is above 0

An entry against the sign of S has a_t b_t < 0, and is the first to go.

Differs  this is the authors' script for vision models. The paper has softmax in place of exp and
         tanh, and a mask in place of the clip from below: in the script the entry at the threshold
         weighs nothing, the next ones little.
"""

from errors import BadInput
from merge import add, check_share, flatten, rule, unflatten


def minmax(x):
    """x (n,) scaled to [0, 1]; a constant x gives zeros: nothing stands out."""
    span = x.max() - x.min()
    return (x - x.min()) / span if span > 0 else x.new_zeros(x.shape)


def clip_tails(v, share):
    """v (n,) with the int(share n) smallest and largest magnitudes set to the next one."""
    size, cut = v.abs(), int(share * len(v))
    low, high = (size.kthvalue(i).values for i in (1 + cut, len(v) - cut))
    return v.sign() * size.clamp(low, high)


@rule()
def pcb(base, taus, *, density=0.05, clip=0.01, lam=1.2):
    """PCB-Merging, arXiv:2410.02396.   theta = theta_0 + lam sum_t w_t c_t / sum_t w_t

    density   share (0, 1] of the entries of each task that weigh more than 0, but for the last
    clip      share [0, .5) of |tau_t| that is clipped, at each end
    """
    check_share("density", density)
    if not 0 <= clip < 0.5:
        raise BadInput(f"clip {clip} is outside [0, 0.5)")
    vectors = [flatten(tau) for tau in taus]
    clipped = [clip_tails(v, clip) for v in vectors]
    sizes = [minmax(c.abs()) for c in clipped]
    S = sum(c.sign() * s for c, s in zip(clipped, sizes))
    weighted, weights = 0, 0
    for v, c, s in zip(vectors, clipped, sizes):
        competition = (len(taus) * (s.square() - 1)).exp() * (v * S).tanh()      # e^-T cancels in w
        position = min(1 + round((1 - density) * len(v)), len(v))
        w = minmax(competition.clamp(min=competition.kthvalue(position).values))
        weighted, weights = weighted + w * c, weights + w
    return add(base, unflatten(weighted / weights.clamp(min=1e-12), base), lam)
