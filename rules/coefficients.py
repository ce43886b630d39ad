"""Coefficients learned by gradient descent: what adamerging.py and fitted.py share.

    theta_k = theta_0,k + sum_t lam_t^g(k) tau_t,k           lam (T, G) · g(k) the group of tensor k

There is no `lam` keyword: the scale is learned too. Groups are "task" (G = 1, one number per task),
"block" (`merge.layer_of`) or "tensor" (every named tensor, what AdaMerging calls a layer).

theta(lam) is not built inside the graph. The merged weights are leaves, one backward pass per task
gives dL/dtheta, and by the chain rule

    dL/dlam_t^g = sum over k with g(k) = g of <dL/dtheta_k, tau_t,k>

is exact. The memory is that of one model and its gradient beside the task vectors, however many
groups there are. Coefficients are float64.
"""

import torch
from tqdm import tqdm

import merge
from errors import BadInput, unknown


def group_index(base, groups):
    """{name: number of its group}; `groups` is "task", "block" or "tensor", else BadInput.

    Groups are numbered from 0 without gaps, in the order of the sorted names.
    """
    group_of = {"task": lambda k: "all", "block": merge.layer_of, "tensor": lambda k: k}
    if groups not in group_of:
        raise unknown("groups", groups, group_of)
    labels = {k: group_of[groups](k) for k in sorted(base)}
    number = {label: i for i, label in enumerate(dict.fromkeys(labels.values()))}
    return {k: number[label] for k, label in labels.items()}


def combine(base, taus, lam, index):
    """theta_k = theta_0,k + sum_t lam[t, index[k]] tau_t,k, new tensors; lam is (T, G)."""
    theta, rows = {k: v.clone() for k, v in base.items()}, lam.tolist()
    for k, v in theta.items():
        for row, tau in zip(rows, taus):
            v.add_(tau[k], alpha=row[index[k]])
    return theta


def coefficient_gradient(g, taus, index):
    """dL/dlam (T, G) in float64 from g {name: dL/dtheta}; a name missing in g counts as zero."""
    out = torch.zeros(len(taus), 1 + max(index.values()), dtype=torch.float64)
    for k in g:
        for t, tau in enumerate(taus):
            out[t, index[k]] += torch.dot(g[k].reshape(-1), tau[k].reshape(-1)).item()
    return out


def weight_gradient(loss, tasks, theta):
    """{name: d sum_t loss(t, theta) / dtheta}, one backward pass per task; no unused names."""
    leaves = {k: v.detach().requires_grad_() for k, v in theta.items()}
    for t in range(tasks):
        with torch.enable_grad():
            value = loss(t, leaves)
        value.backward(inputs=list(leaves.values()))                 # adds up in .grad
    return {k: v.grad for k, v in leaves.items() if v.grad is not None}


def descend(base, taus, loss, lam, index, update, steps):
    """lam (T, G) after `steps` calls of update(dL/dlam), which moves it; L = sum_t loss(t, .)."""
    for _ in tqdm(range(steps), desc="coefficients", leave=False):
        theta = combine(base, taus, lam, index)
        update(coefficient_gradient(weight_gradient(loss, len(taus), theta), taus, index))
    return lam


def check_tasks(taus, functions, name, inputs, rows):
    """Raise BadInput unless every task has a function and some inputs, and rows is at least 1."""
    merge.check_length("functions", functions, taus), merge.check_length(name, inputs, taus)
    if empty := [t for t, x in enumerate(inputs) if len(x) == 0]:
        raise BadInput(f"{name} of task {empty[0]} is empty: give at least one example")
    if rows < 1:
        raise BadInput(f"{rows} examples per task and step are too few: take at least 1")
