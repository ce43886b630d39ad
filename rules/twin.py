"""Twin-Merging: Dynamic Integration of Modular Expertise. arXiv:2406.15479, eq. 3-5

    theta(x) = theta_s + sum_t p_t(x) v_t
    theta_s = theta_0 + lam sum_t tau_t              what the tasks share
    v_t = U_k S_k V_k^T of theta_t - theta_s         what is left to task t, k = keep min(out, in)
    p   = softmax(router(features(theta_s, x)))      x (B, ...) -> p (B, T)

Differs  an input takes the v_t of the arg max of p, not the mixture, so that a batch falls into T
         groups and every expert is built once. The router is fitted to the examples given and never
         chosen on test accuracy. Heads stay the caller's: one per task.
"""

import torch
import torch.nn.functional as F
from torch import nn

from merge import Experts, add, check_length, check_share, rule, total


def low_rank(v, keep):
    """The round(keep min(out, in)) >= 1 largest singular triplets of v (out, in), multiplied out.

    More dimensions are flattened into `in`; a tensor of one dimension comes back as it is.
    """
    if v.ndim < 2:
        return v
    U, S, Vh = torch.linalg.svd(v.reshape(len(v), -1), full_matrices=False)
    k = max(1, round(keep * len(S)))
    return ((U[:, :k] * S[:k]) @ Vh[:k]).view(v.shape)


@torch.enable_grad()
def fit_router(examples, steps, hidden, lr, seed):
    """An MLP D -> hidden -> T that tells tasks apart; returns features (B, D) -> logits (B, T).

    examples   T tensors (n_t, D), standardised by their mean and deviation; every task has the same
               total weight in the cross-entropy, and every step of Adam sees them all
    """
    x, sizes = torch.cat(examples), [len(e) for e in examples]
    task = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(x.device)
    weight = 1 / torch.tensor(sizes).to(x)
    mean, deviation = x.mean(0), x.std(0, correction=0) + 1e-6
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.GELU(), nn.Linear(hidden, len(sizes)))
    net, x = net.to(x), (x - mean) / deviation
    optimizer = torch.optim.Adam(net.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), task, weight).backward()
        optimizer.step()
    return lambda f: net((f - mean) / deviation)


@rule(experts=True)
def twin(base, taus, *, features, labelled, keep=0.1, lam=0.3, steps=200, hidden=64,
         lr=1e-2, seed=0):
    """Twin-Merging, arXiv:2406.15479.   theta_t = theta_s + v_t,   v_t of rank keep min(out, in)

    keep    share (0, 1] of the singular values of every matrix of v_t; 1 gives theta_t back
    lam     coefficient of the shared part; 1/T is the mean of the tasks
    steps, hidden, lr, seed   of the router, on features of the shared model; labels are not used
    """
    check_share("keep", keep)
    check_length("labelled", labelled, taus)
    common = {k: lam * v for k, v in total(taus).items()}
    shared = add(base, common)
    exclusive = [{k: low_rank(tau[k] - common[k], keep) for k in base} for tau in taus]

    @torch.no_grad()
    def look(x):
        return torch.cat([features(shared, part) for part in x.split(256)])

    router = fit_router([look(x) for x, _ in labelled], steps, hidden, lr, seed)
    return Experts([add(shared, v) for v in exclusive], lambda x: router(look(x)).argmax(1))
