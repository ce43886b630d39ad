"""Model Stock: its t by hand, from the construction it is derived from, and beside mergekit."""

import pytest
import torch

from merge import RULES
from support import close, draw, noise, same


def stock(*taus):
    """The rule on one tensor over a base of zeros."""
    taus = [torch.as_tensor(tau, dtype=torch.float64) for tau in taus]
    return RULES["model_stock"]({"w": torch.zeros_like(taus[0])}, [{"w": tau} for tau in taus])["w"]


ROOT = 0.75 ** 0.5


@pytest.mark.parametrize("taus, t", [
    ([(2, 2, 0), (2, 0, 2)], 2 / 3),                             # cos = .5: 2 * .5 / 1.5
    ([(1, 1, 0), (1, 0, 1), (0, 1, 1)], 3 / 4),                  # three of cos = .5: 1.5 / 2
    ([(5, 0), (1, 0), (0.5, ROOT)], 6 / 7),                      # 1, .5, .5: mean 2/3, 2 / (7/3)
    ([(1, 2), (3, 6), (2, 4)], 1),
    ([(1, 0, 0), (0, 2, 0), (0, 0, 3)], 0),
    ([(1, 0), (-1, 0.5)], 0),                                    # below 0 the cosine counts as 0
    ([(1, 0), (-0.5, ROOT), (-0.5, -ROOT)], 0),                  # at the pole, cos = -1 / 2
    ([(1, 2), (0, 0)], 0),
    ([(1, 2), (1, 2), (0, 0)], 3 / 5),                           # 1, 0, 0: mean 1/3, 1 / (5/3)
    ([(1, 2)], 1),
])
def test_model_stock_by_hand(taus, t):
    mean = torch.tensor(taus, dtype=torch.float64).mean(0)
    close(stock(*taus), t * mean, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tasks", [2, 5])
def test_model_stock_is_the_point_of_its_line_nearest_to_the_centre(tasks):
    """tau_t = mu + n_t, all n_t orthogonal to mu and to each other: then it is a projection."""
    Q = torch.linalg.qr(draw(20, 20)).Q
    mu, mean = 3 * Q[0], 3 * Q[0] + 4 * Q[1:tasks + 1].mean(0)
    close(stock(*(mu + 4 * Q[t + 1] for t in range(tasks))), (mean @ mu) / (mean @ mean) * mean)


def test_model_stock_looks_at_angles_only():
    """Longer vectors move the mean, and leave t as it is."""
    a, b = draw(30), draw(30) + draw(30, seed=1)
    cos = a @ b / (a.norm() * b.norm())
    t = 2 * cos / (1 + cos)
    assert 0.3 < t < 0.95
    for p, q in ((1, 1), (1e-3, 1e-3), (1, 7)):
        close(stock(p * a, q * b), t * (p * a + q * b) / 2)


def test_model_stock_has_one_t_per_tensor():
    a = {"p": torch.tensor([1.0, 0]), "q": torch.tensor([1.0, 0])}
    b = {"p": torch.tensor([1.0, 0]), "q": torch.tensor([0.0, 1])}
    merged = RULES["model_stock"]({k: torch.zeros(2) for k in a}, [a, b])
    assert merged["p"].tolist() == [1, 0] and merged["q"].tolist() == [0, 0]


def test_model_stock_as_in_mergekit():
    """mergekit 0.1.5, where all cosines are above 0: only ours is clamped there."""
    theirs = pytest.importorskip("mergekit.merge_methods.model_stock").model_stock_merge_method
    group = pytest.importorskip("mergekit.merge_methods.base").TensorGroup
    base, mu = {"m": draw(6, 5), "b": draw(9, seed=1)}, {"m": draw(6, 5, seed=2), "b": draw(9)}
    for tasks in (2, 4):
        taus = [{k: mu[k] + n for k, n in noise(base, 0.8, seed=t).items()} for t in range(tasks)]
        merged = {k: theirs.implementation(group.from_tensors(
            [v, *(v + tau[k] for tau in taus)], base_index=0)) for k, v in base.items()}
        same(RULES["model_stock"](base, taus), merged, atol=1e-6, rtol=0)
