"""Stage 7: AdaMerging, its gradient by the chain rule. arXiv:2310.02575, task-wise

    theta(lam) = theta_0 + sum_t lam_t tau_t
    H          = - sum_c p_c log p_c,   p = softmax(logits)       what is minimised, without labels
    dL/dlam_t  = <dL/dtheta, tau_t>                               at theta = theta(lam)

The merged weights are the leaves of the graph and lam is not in it: one backward pass gives
dL/dtheta, T inner products over all tensors give dL/dlam. So the memory is that of one model.

    a step     lam <- lam - lr dL/dlam, then every lam_t is clipped to [0, 1]

Shapes   base and every tau are dicts name -> tensor with the same keys; taus is a list of T
         lam (T,) · loss (dict of weights) -> a scalar tensor · logits (..., C)
Rule     modify no argument in place; merged, gradient and descend return tensors
         without a graph, even if lam has one; entropy stays differentiable
"""

import torch


def entropy(logits):
    """H (...) in nats: finite for finite logits, even where p_c underflows to 0 (log_softmax)."""
    raise NotImplementedError("entropy: blank")


def merged(base, taus, lam):
    """theta(lam), a dict."""
    raise NotImplementedError("merged: blank")


def gradient(loss, base, taus, lam):
    """dL/dlam (T,), in the dtype of lam, for L = loss(theta(lam))."""
    raise NotImplementedError("gradient: blank")


def descend(loss, base, taus, lam, *, lr, steps):
    """lam (T,) after `steps` steps."""
    raise NotImplementedError("descend: blank")
