"""Optimising a handful of numbers: constraints and penalties after a step, and CMA-ES 1604.00772.

    x ~ N(m, sigma^2 C)                           m (n,) · sigma a number · C (n, n)

CMA-ES needs no gradient. The mean moves to the better half of each population; the covariance
learns which steps were good, the step size how long they should be. Differs: samples are clipped to
a box, and what is learned is the clipped step; there are no negative weights. All float64.
"""

import math

import torch

from errors import BadInput


def project_simplex(v):
    """Nearest point with entries >= 0 and sum 1, column by column; v is (T,) or (T, G).

    max(v - s, 0), s = (sum of the rho largest - 1) / rho, rho = max{j: j u_j > u_1 + .. + u_j - 1}
    for u = v sorted downwards. Clipping at 0 and dividing by the sum is something else.
    """
    u = v.sort(0, descending=True).values
    j = torch.arange(1, len(v) + 1).view(-1, *[1] * (v.ndim - 1)).to(v)
    excess = u.cumsum(0) - 1
    rho = (j * u > excess).sum(0, keepdim=True)
    return (v - excess.gather(0, rho - 1) / rho).clamp(min=0)


def shrink(v, size):
    """Prox of size ||.||_2 on the columns of v (T, G), size (1, G): shorter by size, or zero."""
    length = v.norm(dim=0, keepdim=True).clamp(min=1e-300)
    return v * (1 - size / length).clamp(min=0)


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


def cma_es(loss, n, *, budget, sigma=0.5, low, high, seed=0, start=None, inject=()):
    """Least loss(x) over the box [low, high]^n by CMA-ES, arXiv:1604.00772: (x (n,), value).

    sample       x_i = clip(m + sigma y_i, low, high), y_i ~ N(0, C); then y_i = (x_i - m) / sigma
    mean         m += sigma y_w,   y_w = sum_i w_i y_i over the best half
    step size    p_s = (1 - c_s) p_s + sqrt(c_s (2 - c_s) mu_w) C^(-1/2) y_w
                 sigma *= exp((c_s / d_s) (|p_s| / E|N(0, I)| - 1))
    covariance   p_c = (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_w) y_w,   h = 0 while |p_s| is long
                 C = (1 - c_1 - c_mu) C + c_1 (p_c p_c^T + (1 - h) c_c (2 - c_c) C)
                     + c_mu sum_i w_i y_i y_i^T
    loss is called at most `budget` times: on `start` (None: the middle of the box), on the points
    of `inject`, then on samples; the search begins at the best of the former. All float64.
    """
    if budget < 1:
        raise BadInput(f"budget {budget} allows no evaluation: take at least 1")
    size, w, mu, c_s, d_s, c_c, c_1, c_mu = rates(n)
    chi = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))                # E|N(0, I)|
    generator = torch.Generator().manual_seed(seed)
    first = [torch.full((n,), (low + high) / 2) if start is None else start, *inject][:budget]
    x = torch.stack([torch.as_tensor(p, dtype=torch.float64) for p in first]).clamp(low, high)
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
