"""AdaMerging: Adaptive Model Merging for Multi-Task Learning. arXiv:2310.02575

    theta_k = theta_0,k + sum_t lam_t^g(k) tau_t,k
    lam     = argmin sum_t mean_x H(softmax f_t(x; theta(lam)))

Shapes   k names a tensor, g(k) its group; lam (T, G). Groups: "task" has one, "block" one a block,
         "tensor" one a tensor, which is the paper's layer-wise form (coefficients.py)
++       Phi(tau_t) in place of tau_t: trimmed, without the entries that oppose the elected sign
Why      entropy needs no labels, so it cannot tell right from wrong: it is just as low when every
         input gets the same class.
Differs  lam is projected onto [0, 1] after the step. The released code clamps in the forward pass,
         and a coefficient that strays outside has no gradient to bring it back. The paper: learning
         rate 1e-3 and 500 steps; ours is shorter at a larger rate.
"""

from functools import partial

import torch

from merge import agreeing, check_share, elect, rule, trim
from rules.coefficients import check_tasks, combine, descend, group_index


def entropy(logits):
    """H = -sum_c p_c log p_c in nats, (..., C) -> (...), through log_softmax: exact at p = 0."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def without_conflict(taus, density):
    """Phi of AdaMerging++: the `density` largest entries of every tau_t that have the elected sign,
    as in TIES, but task by task and not summed."""
    check_share("density", density)
    trimmed = [trim(tau, density) for tau in taus]
    signs = elect(trimmed)
    return [{k: agreeing(tau[k], signs[k]) for k in tau} for tau in trimmed]


def adamerging(base, taus, *, functions, batches, groups, density=None, steps=150, lr=5e-3,
               batch=16, init=0.3, seed=0):
    """The merged model at the coefficients of least entropy.

    functions  T callables (params, x (B, ...)) -> logits (B, C_t), in evaluation mode
    batches    T tensors (n_t, ...) without labels. Transductive if these are the test inputs, as in
               the paper; inductive if they are others. The caller decides, and names it.
    groups     "task", "block" or "tensor"
    density    None, or the share of entries that AdaMerging++ keeps
    steps, lr, batch   of Adam; `batch` inputs per task and step.   init   the first lam
    """
    check_tasks(taus, functions, "batches", batches, batch)
    taus = taus if density is None else without_conflict(taus, density)
    index, generator = group_index(base, groups), torch.Generator().manual_seed(seed)
    lam = torch.full((len(taus), 1 + max(index.values())), init, dtype=torch.float64)
    optimizer = torch.optim.Adam([lam], lr=lr)

    def loss(t, theta):
        rows = torch.randperm(len(batches[t]), generator=generator)[:batch]
        return entropy(functions[t](theta, batches[t][rows])).mean()

    def update(gradient):
        lam.grad = gradient
        optimizer.step()
        lam.clamp_(0, 1)

    descend(base, taus, loss, lam, index, update, steps)
    return combine(base, taus, lam, index)


def variant(name, doc, **defaults):
    """`adamerging` as a rule of its own name, with the defaults that make it this variant."""
    function = partial(adamerging, **defaults)
    function.__name__, function.__doc__ = name, doc
    return rule()(function)


adamerging_task = variant(
    "adamerging_task", "Task-wise AdaMerging, arXiv:2310.02575.   "
    "min over lam_t of sum_t mean_x H(softmax f_t(x))", groups="task")
adamerging_layer = variant(
    "adamerging_layer", "Layer-wise AdaMerging, arXiv:2310.02575.   "
    "theta_k = theta_0,k + sum_t lam_t^g(k) tau_t,k", groups="tensor")
adamerging_task_pp = variant(
    "adamerging_task_pp", "Task-wise AdaMerging++, arXiv:2310.02575.   "
    "theta = theta_0 + sum_t lam_t Phi(tau_t)", groups="task", density=0.2)
adamerging_layer_pp = variant(
    "adamerging_layer_pp", "Layer-wise AdaMerging++, arXiv:2310.02575.   "
    "theta_k = theta_0,k + sum_t lam_t^g Phi(tau_t,k)", groups="tensor", density=0.2)
