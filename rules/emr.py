"""EMR-Merging: Tuning-Free High-Performance Model Merging. arXiv:2405.17461

    theta_t = theta_0 + r_t M_t tau_uni         one model per task: a vector, a mask, a number

Elect      tau_uni = g max_t |tau_t| over the tasks that agree with g = sign(sum_t tau_t)
Mask       M_t = 1[tau_t tau_uni > 0]
Rescale    r_t = sum |tau_t| / sum |M_t tau_uni|, over the whole model
Differs    the released code sums the means of the tensors in r_t; here every entry counts alike
"""

import torch

from merge import Experts, add, agreeing, rule


@rule(experts=True)
def emr(base, taus):
    """EMR-Merging, arXiv:2405.17461.   theta_t = theta_0 + r_t M_t tau_uni

    No tuning and no data; the task must be known. It stores one vector and T masks of one bit.
    """
    unified = {}
    for k in base:
        sign = sum(tau[k] for tau in taus).sign()
        unified[k] = sign * torch.stack([agreeing(tau[k], sign).abs() for tau in taus]).amax(0)
    size = lambda tau: sum(v.abs().sum() for v in tau.values())
    models = []
    for tau in taus:
        masked = {k: torch.where(tau[k] * unified[k] > 0, unified[k], 0) for k in base}
        models.append(add(base, masked, size(tau) / size(masked) if size(masked) > 0 else 0.0))
    return Experts(models)
