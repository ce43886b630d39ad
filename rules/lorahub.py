"""LoRAHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition. arXiv:2307.13269

    theta = theta_0 + sum_t w_t tau_t,   w (T,) = argmin of (1/T) sum_t CE_t + l1 mean |w|

A few labelled examples and no gradient: the weights come from CMA-ES, arXiv:1604.00772,

    x ~ N(m, sigma^2 C)                           m (n,) · sigma a number · C (n, n)

The mean moves to the better half of each population; the covariance learns which steps were good,
the step size how long they should be.
Differs  LoRAHub: always over task vectors, in adapter space A0 + sum w (A_t - A0) and sum w B_t;
         the paper composes factors, and composing whole networks that way starts at an all-zero
         network. CMA-ES: samples are clipped to a box, and what is learned is the clipped step;
         there are no negative weights. All float64.
"""

import math

import torch
import torch.nn.functional as F

from errors import BadInput
from merge import rule
from rules.coefficients import check_tasks, combine, group_index


def judged(loss, points):
    """The losses (n,) of the rows of points, NaN as infinity."""
    values = torch.tensor([float(loss(x)) for x in points], dtype=torch.float64)
    return torch.where(values.isnan(), math.inf, values)


def rates(n):
    """Population, weights (mu,) and the learning rates of CMA-ES, arXiv:1604.00772."""
    size = 4 + int(3 * math.log(n))
    w = math.log((size + 1) / 2) - torch.arange(1, size // 2 + 1, dtype=torch.float64).log()
    w = w / w.sum()
    mu = 1 / w.square().sum().item()
    c_s = (mu + 2) / (n + mu + 5)
    d_s = 1 + 2 * max(0, math.sqrt((mu - 1) / (n + 1)) - 1) + c_s
    c_c = (4 + mu / n) / (n + 4 + 2 * mu / n)
    c_1 = 2 / ((n + 1.3) ** 2 + mu)
    c_mu = min(1 - c_1, 2 * (mu - 2 + 1 / mu) / ((n + 2) ** 2 + mu))
    return size, w, mu, c_s, d_s, c_c, c_1, c_mu


def cma_es(loss, n, *, budget, sigma=0.5, low, high, seed=0, inject=()):
    """Least loss(x) over the box [low, high]^n by CMA-ES, arXiv:1604.00772: (x (n,), value).

    sample       x_i = clip(m + sigma y_i, low, high), y_i ~ N(0, C); then y_i = (x_i - m) / sigma
    mean         m += sigma y_w,   y_w = sum_i w_i y_i over the best half
    step size    p_s = (1 - c_s) p_s + sqrt(c_s (2 - c_s) mu_w) C^(-1/2) y_w
                 sigma *= exp((c_s / d_s) (|p_s| / E|N(0, I)| - 1))
    covariance   p_c = (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_w) y_w,   h = 0 while |p_s| is long
                 C = (1 - c_1 - c_mu) C + c_1 (p_c p_c^T + (1 - h) c_c (2 - c_c) C)
                     + c_mu sum_i w_i y_i y_i^T
    loss is called at most `budget` times: on the middle of the box, on the points of `inject`, then
    on samples; the search begins at the best of the former. All float64.
    """
    if budget < 1:
        raise BadInput(f"budget {budget} allows no evaluation: take at least 1")
    size, w, mu, c_s, d_s, c_c, c_1, c_mu = rates(n)
    chi = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))                # E|N(0, I)|
    generator = torch.Generator().manual_seed(seed)
    first = [[(low + high) / 2] * n, *inject][:budget]
    x = torch.tensor(first, dtype=torch.float64).clamp(low, high)
    values, spent, g = judged(loss, x), len(x), 0
    least, best = values.min(), x[values.argmin()]
    m, C, p_s, p_c = best, torch.eye(n).double(), best.new_zeros(n), best.new_zeros(n)
    while spent < budget and sigma > 1e-12:
        squares, axes = torch.linalg.eigh(C)
        d = squares.clamp(min=1e-20).sqrt()
        z = torch.randn(size, n, generator=generator, dtype=torch.float64)
        x = (m + sigma * (z * d) @ axes.T).clamp(low, high)[:budget - spent]
        values, spent, g = judged(loss, x), spent + len(x), g + 1
        if values.min() < least:
            least, best = values.min(), x[values.argmin()]
        if len(x) < size:
            break
        y = (x[values.argsort(stable=True)[:len(w)]] - m) / sigma            # (half, n)
        y_w = w @ y
        m = m + sigma * y_w
        p_s = (1 - c_s) * p_s + math.sqrt(c_s * (2 - c_s) * mu) * axes @ (axes.T @ y_w / d)
        length = p_s.norm().item() / chi
        h = length < (1.4 + 2 / (n + 1)) * math.sqrt(1 - (1 - c_s) ** (2 * g))
        p_c = (1 - c_c) * p_c + h * math.sqrt(c_c * (2 - c_c) * mu) * y_w
        C = ((1 - c_1 - c_mu + c_1 * (1 - h) * c_c * (2 - c_c)) * C + c_1 * p_c.outer(p_c)
             + c_mu * (y.T * w) @ y)
        sigma *= math.exp(c_s / d_s * (length - 1))
    return best, least.item()


@rule()
def lorahub(base, taus, *, functions, labelled, budget=40, l1=0.05, bound=1.5, shots=16, seed=0):
    """LoRAHub, arXiv:2307.13269.   min over w in [-bound, bound]^T of (1/T) sum CE_t + l1 mean |w|

    theta = theta_0 + sum_t w_t tau_t, CE_t on the first `shots` pairs of labelled[t] (shuffled
    ones: sorted by class they would be one class), functions as in `fitted`.
    budget   evaluations of the loss by `cma_es`, those of w = 0, 1/T and 0.3 among them
    """
    check_tasks(taus, functions, "labelled", [x for x, _ in labelled], shots)
    index, T = group_index(base, "task"), len(taus)

    @torch.no_grad()
    def loss(w):
        theta = combine(base, taus, w[:, None], index)
        each = [F.cross_entropy(f(theta, x[:shots]), y[:shots])
                for f, (x, y) in zip(functions, labelled, strict=True)]
        return torch.stack(each).mean().double() + l1 * w.abs().mean()

    w, _ = cma_es(loss, T, budget=budget, low=-bound, high=bound, seed=seed,
                  inject=([1 / T] * T, [0.3] * T))
    return combine(base, taus, w[:, None], index)
