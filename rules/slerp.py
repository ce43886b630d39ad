"""SLERP: Animating Rotation with Quaternion Curves. Shoemake 1985, doi:10.1145/325165.325242

    tau = sin((1 - t) w) / sin(w) tau_a + sin(t w) / sin(w) tau_b           w the angle between them

Tensor by tensor, each taken as one vector. Vectors of equal length keep it on the way: at t = 1/2
orthogonal ones are sqrt(2) times longer than their average, so compare the two at their own lam.

Differs  the paper turns unit quaternions; vectors of other lengths get the same two coefficients.
         mergekit turns the weights. Two fine-tuned models, each 1 % away from the same base, are so
         nearly parallel that this is linear interpolation; their task vectors have an angle.
"""

import torch

from errors import BadInput
from merge import add, rule


def arc(a, b, t):
    """The point t of the way from tensor a to tensor b on an arc of a circle.

    There is no one arc where a or b is 0, or |cos w| > .9995: then it is (1 - t) a + t b. For
    opposite ones of equal length this is 0 at t = 1/2.
    """
    lengths = a.norm() * b.norm()
    cos = (a * b).sum() / lengths
    if lengths == 0 or cos.abs() > 0.9995:
        return (1 - t) * a + t * b
    w = cos.acos()
    return torch.sin((1 - t) * w) / w.sin() * a + torch.sin(t * w) / w.sin() * b


@rule(count=2)
def slerp(base, taus, *, t=0.5, lam=1.0):
    """SLERP, Shoemake 1985.   tau = sin((1 - t) w) / sin(w) tau_a + sin(t w) / sin(w) tau_b

    t   0 is the first model, 1 the second
    """
    if not 0 <= t <= 1:
        raise BadInput(f"t {t} is outside [0, 1]")
    a, b = taus
    return add(base, {k: arc(a[k], b[k], t) for k in base}, lam)
