"""Merge rules whose coefficients are learned from examples, with or without labels; and PEM.

    theta_k = theta_0,k + sum_t lam_t^g(k) tau_t,k           lam (T, G) · g(k) the group of tensor k

AdaMerging 2310.02575 (entropy of unlabelled inputs) · supervised coefficients (cross entropy)
LoRAHub 2307.13269 (few labels, no gradient) · PEM 2306.14870 (given signs)

There is no `lam` keyword: the scale is learned too. Groups are "task" (G = 1, one number per task),
"block" (`merge.layer_of`) or "tensor" (every named tensor, what AdaMerging calls a layer).

Differs: theta(lam) is not built inside the graph. The merged weights are leaves, one backward pass
per task gives dL/dtheta, and by the chain rule

    dL/dlam_t^g = sum over k with g(k) = g of <dL/dtheta_k, tau_t,k>

is exact. Memory is that of one model and its gradient beside the task vectors, however many groups
there are. Coefficients are float64.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm

import merge
from rules.coefficients import cma_es, project_simplex, shrink
from errors import BadInput, unknown
from merge import add, check_length, check_share, rule


# ---- coefficients --------------------------------------------------------------------------------


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
    check_length("functions", functions, taus), check_length(name, inputs, taus)
    if empty := [t for t, x in enumerate(inputs) if len(x) == 0]:
        raise BadInput(f"{name} of task {empty[0]} is empty: give at least one example")
    if rows < 1:
        raise BadInput(f"{rows} examples per task and step are too few: take at least 1")


# ---- unlabelled examples: entropy ----------------------------------------------------------------


def entropy(logits):
    """H = -sum_c p_c log p_c in nats, (..., C) -> (...), through log_softmax: exact at p = 0."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def adamerge(base, taus, functions, batches, *, groups="task", steps=60, lr=0.02, batch=16,
             init=0.3, seed=0):
    """The coefficients (T, G) of AdaMerging; keywords as in `adamerging_task`, taus a list."""
    check_tasks(taus, functions, "batches", batches, batch)
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

    return descend(base, taus, loss, lam, index, update, steps).detach()


def agreeing(taus, density):
    """AdaMerging++: every tau_t trimmed, without the entries that oppose the elected sign."""
    check_share("density", density)
    trimmed = [merge.trim(tau, density) for tau in taus]
    signs = merge.elect(trimmed)
    return [{k: torch.where(tau[k] * signs[k] > 0, tau[k], 0) for k in tau} for tau in trimmed]


def surest(base, taus, functions, batches, groups, steps, lr, batch, init, seed):
    """The merged model at the coefficients of `adamerge`: what the four rules share."""
    lam = adamerge(base, taus, functions, batches, groups=groups, steps=steps, lr=lr, batch=batch,
                   init=init, seed=seed)
    return combine(base, taus, lam, group_index(base, groups))


@rule
def adamerging_task(base, taus, *, functions=None, batches=None, steps=60, lr=0.02, batch=16,
                    init=0.3, seed=0):
    """Task-wise AdaMerging, arXiv:2310.02575.   min over lam_t of sum_t mean_x H(softmax f_t(x))

    f_t is the merged model theta_0 + sum_t lam_t tau_t with the head of task t, x from batches[t].
    functions  T callables (params, x (B, ...)) -> logits (B, C_t), in evaluation mode
    batches    T tensors (n_t, ...) without labels. Transductive if these are the test inputs, as in
               the paper; inductive if they are others. The caller decides, and names it.
    steps, lr, batch   Adam, `batch` inputs per task and step. The paper: lr 1e-3 and 500 steps;
               ours is shorter at a larger rate, so that it takes a minute on a CPU.
    Starts at init. Differs: lam is projected onto [0, 1] after the step; the paper clamps in the
    forward pass, and a coefficient that strays outside has no gradient to bring it back. Entropy
    sees no label: it is as low where all inputs fall in one class.
    """
    return surest(base, list(taus), functions, batches, "task", steps, lr, batch, init, seed)


@rule
def adamerging_layer(base, taus, *, functions=None, batches=None, groups="tensor", steps=60,
                     lr=0.02, batch=16, init=0.3, seed=0):
    """Layer-wise AdaMerging, arXiv:2310.02575.   theta_k = theta_0,k + sum_t lam_t^g(k) tau_t,k

    groups   "tensor", as in the paper, or "block". The rest is as in `adamerging_task`.
    """
    return surest(base, list(taus), functions, batches, groups, steps, lr, batch, init, seed)


@rule
def adamerging_task_pp(base, taus, *, functions=None, batches=None, density=0.2, steps=60, lr=0.02,
                       batch=16, init=0.3, seed=0):
    """Task-wise AdaMerging++, arXiv:2310.02575.   theta = theta_0 + sum_t lam_t Phi(tau_t)

    Phi   keeps the `density` largest entries of tau_t, then those with the elected sign (TIES, but
          task by task and not summed). The rest is as in `adamerging_task`.
    """
    taus = agreeing(list(taus), density)
    return surest(base, taus, functions, batches, "task", steps, lr, batch, init, seed)


@rule
def adamerging_layer_pp(base, taus, *, functions=None, batches=None, groups="tensor", density=0.2,
                        steps=60, lr=0.02, batch=16, init=0.3, seed=0):
    """Layer-wise AdaMerging++, arXiv:2310.02575.   theta_k = theta_0,k + sum_t lam_t^g Phi(tau_t,k)

    Phi is that of `adamerging_task_pp`, groups those of `adamerging_layer`.
    """
    taus = agreeing(list(taus), density)
    return surest(base, taus, functions, batches, groups, steps, lr, batch, init, seed)


# ---- labelled examples: cross entropy ------------------------------------------------------------


def fit(base, taus, functions, labelled, *, groups="task", steps=60, lr=0.02, batch=16, l2=0.01,
        simplex=False, group_penalty=0.0, seed=0):
    """The coefficients (T, G) of `fitted`; the keywords are the same, taus is a list."""
    check_tasks(taus, functions, "labelled", [x for x, _ in labelled], batch)
    if simplex and group_penalty:
        raise BadInput("on the simplex no group can vanish: choose simplex or group_penalty")
    index, generator = group_index(base, groups), torch.Generator().manual_seed(seed)
    shape = len(taus), 1 + max(index.values())
    lam = torch.full(shape, 1 / len(taus), dtype=torch.float64)
    m, v, t = torch.zeros_like(lam), lam.new_zeros(1, shape[1]), 0

    def loss(t, theta):
        x, y = labelled[t]
        rows = torch.randperm(len(x), generator=generator)[:batch]
        return F.cross_entropy(functions[t](theta, x[rows]), y[rows]) / len(taus)

    def update(gradient):
        nonlocal m, v, t
        g, t = gradient + 2 * l2 * lam, t + 1
        g = g - g.mean(0, keepdim=True) if simplex else g      # a shift projects alike
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g.square().mean(0, keepdim=True)
        rate = lr / ((v / (1 - 0.999 ** t)).sqrt() + 1e-8)                   # (1, G)
        moved = lam - rate * m / (1 - 0.9 ** t)
        lam.copy_(project_simplex(moved) if simplex
                  else shrink(moved.clamp(min=0), rate * group_penalty))

    return descend(base, taus, loss, lam, index, update, steps)


@rule
def fitted(base, taus, *, functions=None, labelled=None, groups="task", steps=60, lr=0.02,
           batch=16, l2=0.01, simplex=False, group_penalty=0.0, seed=0):
    """Supervised coefficients.   min over lam >= 0 of (1/T) sum_t CE_t + l2 ||lam||^2

    functions      T callables (params, x (B, ...)) -> logits (B, C_t), in evaluation mode
    labelled       T pairs x (n_t, ...), y (n_t,), none of them a test example
    groups         "task", "block" or "tensor"; starts at 1/T
    simplex        also sum_t lam_t^g = 1 in every group. A mean, and near-orthogonal task vectors
                   want more: eight at 0.3 sum to 2.4
    group_penalty  + group_penalty sum_g ||lam^g||_2, by its proximal step: groups go to zero whole
    Adam with one second moment per group. With one per coefficient, as usual, gradients of one sign
    are equal steps, and projecting onto the simplex undoes them: it would not move.
    """
    taus = list(taus)
    lam = fit(base, taus, functions, labelled, groups=groups, steps=steps, lr=lr, batch=batch,
              l2=l2, simplex=simplex, group_penalty=group_penalty, seed=seed)
    return combine(base, taus, lam, group_index(base, groups))


# ---- few labelled examples, no gradient ----------------------------------------------------------


def few_shot(base, taus, functions, labelled, *, budget=40, l1=0.05, bound=1.5, shots=16, seed=0):
    """The weights w (T,) of `lorahub` and their objective; the keywords are the same."""
    check_tasks(taus, functions, "labelled", [x for x, _ in labelled], shots)
    index, T = group_index(base, "task"), len(taus)

    @torch.no_grad()
    def loss(w):
        theta = combine(base, taus, w[:, None], index)
        each = [F.cross_entropy(f(theta, x[:shots]), y[:shots])
                for f, (x, y) in zip(functions, labelled)]
        return torch.stack(each).mean().double() + l1 * w.abs().mean()

    return cma_es(loss, T, budget=budget, low=-bound, high=bound, seed=seed, start=[0.0] * T,
                  inject=([1 / T] * T, [0.3] * T))


@rule
def lorahub(base, taus, *, functions=None, labelled=None, budget=40, l1=0.05, bound=1.5, shots=16,
            seed=0):
    """LoRAHub, arXiv:2307.13269.   min over w in [-bound, bound]^T of (1/T) sum CE_t + l1 mean |w|

    theta = theta_0 + sum_t w_t tau_t, CE_t on the first `shots` pairs of labelled[t] (shuffled
    ones: sorted by class they would be one class), functions as in `fitted`.
    budget   evaluations of the loss by `cma_es`, those of w = 0, 1/T and 0.3 among them
    Differs: always over task vectors, in adapter space A0 + sum w (A_t - A0) and sum w B_t; the
    paper composes factors, and composing whole networks that way starts at an all-zero network.
    """
    taus = list(taus)
    w, _ = few_shot(base, taus, functions, labelled, budget=budget, l1=l1, bound=bound, shots=shots,
                    seed=seed)
    return combine(base, taus, w[:, None], group_index(base, "task"))


# ---- given signs ---------------------------------------------------------------------------------


def pem_negate(tau):
    """-tau_B and +tau_A: one factor changes its sign, so B A does; keys without .B are kept."""
    return {k: -v if k.endswith(".B") else v for k, v in tau.items()}


@rule(space="adapter")
def pem(base, taus, *, signs=None, lam=1.0):
    """PEM, arXiv:2306.14870.   A = A0 + lam sum_t (A_t - A0),   B = B0 + lam sum_t s_t (B_t - B0)

    signs   one s_t of +1 or -1 per task, None for all +1; -1 unlearns task t. Only B is flipped:
            (-B)(-A) = B A, both factors negated are the adapter itself. Meant for B0 = 0.
    """
    taus = list(taus)
    signs = [1] * len(taus) if signs is None else list(signs)
    check_length("signs", signs, taus)
    if any(s not in (1, -1) for s in signs):
        raise BadInput(f"signs {signs} must be +1 or -1; lam scales")
    if not any(k.endswith(".B") for k in base):
        raise BadInput("pem flips the factor B and no name ends in .B: merge LoRA adapters")
    signed = [tau if s == 1 else pem_negate(tau) for s, tau in zip(signs, taus)]
    return add(base, {k: sum(tau[k] for tau in signed) for k in base}, lam)
