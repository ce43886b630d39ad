"""Fisher and RegMean: analytic cases and identities, in float64."""

import math

import pytest
import torch

from merge import RULES
from rules import fisher
from rules.regmean import grams, shrunk
from support import close

f64 = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=f64)


# ---- Fisher --------------------------------------------------------------------------------------

def test_fisher_of_a_logistic_model():
    """Logits (0, w x) at w = 0, x = 2: F = p (1 - p) x^2 = 1."""
    f = lambda p, x: torch.cat([0 * x, x * p["w"]], 1)
    F = fisher.diagonal_fisher(f, {"w": tensor([0.0])}, tensor([[2.0], [2.0], [0.0]]))
    close(F["w"], tensor([2 / 3]))


def test_fisher_of_a_linear_softmax():
    """F_cj = mean_x p_c (1 - p_c) x_j^2."""
    g = torch.Generator().manual_seed(0)
    W, x = torch.randn(3, 4, generator=g, dtype=f64), torch.randn(7, 4, generator=g, dtype=f64)
    F = fisher.diagonal_fisher(lambda p, x: x @ p["W"].T, {"W": W}, x, chunk=3)["W"]
    p = (x @ W.T).softmax(1)
    close(F, torch.einsum("nc,nj->cj", p * (1 - p), x.square()) / len(x))


def test_log_traces_of_a_linear_softmax():
    """|d log p_y / dW|^2 = |e_y - p|^2 |x|^2; over y ~ p its mean is (1 - |p|^2) |x|^2."""
    g = torch.Generator().manual_seed(0)
    W, x = torch.randn(3, 4, generator=g, dtype=f64), torch.randn(7, 4, generator=g, dtype=f64)
    y = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    p, size = (x @ W.T).softmax(1), x.square().sum(1)
    true = ((1 - p.square().sum(1)) * size).mean().log().item()
    given = ((torch.eye(3, dtype=f64)[y] - p).square().sum(1) * size).mean().log().item()
    f = lambda params, x: x @ params["W"].T
    assert fisher.log_traces(f, {"W": W}, x, y, chunk=3) == pytest.approx((true, given), abs=1e-12)
    F = fisher.diagonal_fisher(f, {"W": W}, x)
    assert true == pytest.approx(F["W"].sum().log().item(), abs=1e-12)
    by_hand = fisher.log_traces(lambda p, x: torch.cat([0 * x, x * p["w"]], 1),
                                {"w": tensor([0.0])}, tensor([[4.0]]), torch.tensor([1]))
    assert by_hand == pytest.approx([math.log(4)] * 2)                # p (1 - p) x^2, (1 - p)^2 x^2


def merged_fisher(monkeypatch, fishers, **keywords):
    """theta = 1 and 3 with the given Fisher values."""
    given = iter([{"w": tensor(f)} for f in fishers])
    monkeypatch.setattr(fisher, "diagonal_fisher", lambda *arguments: next(given))
    taus = [{"w": torch.full((len(f),), v, dtype=f64)} for f, v in zip(fishers, (1.0, 3.0))]
    zero = {"w": torch.zeros(len(fishers[0]), dtype=f64)}
    return RULES["fisher"](zero, taus, functions=[None] * 2, batches=[zero["w"]] * 2,
                           **keywords)["w"]


def test_fisher_weighs_by_hand(monkeypatch):
    assert merged_fisher(monkeypatch, [[3.0], [1.0]], normalize=False).tolist() == [1.5]


def test_fisher_floor_and_scale(monkeypatch):
    """Where neither model has seen a gradient: the mean. A common scale does not matter."""
    merged = merged_fisher(monkeypatch, [[3.0, 0.0], [1.0, 0.0]], normalize=False)
    close(merged, tensor([1.5, 1 + 2 / 4]))   # floors are 1.5e-6 and .5e-6
    scaled = merged_fisher(monkeypatch, [[300.0, 0.0], [100.0, 0.0]], normalize=False)
    close(scaled, merged)
    zero = merged_fisher(monkeypatch, [[0.0], [0.0]])
    close(zero, tensor([2.0]))


def test_normalised_fisher_ignores_the_scale_of_one_model(monkeypatch):
    one = merged_fisher(monkeypatch, [[3.0, 1.0], [1.0, 3.0]])
    other = merged_fisher(monkeypatch, [[300.0, 100.0], [1.0, 3.0]])
    close(one, tensor([1.5, 2.5]))
    close(one, other)


@pytest.mark.parametrize("fishers, keywords, w, v", [
    # means 3 and 2, floors 1.5 and 1: (8 1 + 2 3) / 10 and (1.5 1 + 2 3) / 3.5
    ([([8.0, 0], [1.0]), ([2.0, 2], [2.0])], dict(floor=0.5, normalize=False), [1.4, 15 / 7],
     [15 / 7]),
    # lengths 5 and 3: weights (.6, 0, .8) and (2/3, 1/3, 2/3)
    ([([3.0, 0], [4.0]), ([2.0, 1], [2.0])], dict(floor=0.0), [2.6 / (0.6 + 2 / 3), 3.0],
     [2.8 / (0.8 + 2 / 3)])])
def test_floor_and_length_are_over_the_whole_model(monkeypatch, fishers, keywords, w, v):
    """theta = 1 and 3 in two tensors of different sizes."""
    given = iter([{"w": tensor(a), "v": tensor(b)} for a, b in fishers])
    monkeypatch.setattr(fisher, "diagonal_fisher", lambda *arguments: next(given))
    zero = {"w": tensor([0.0, 0]), "v": tensor([0.0])}
    taus = [{k: t + size for k, t in zero.items()} for size in (1.0, 3.0)]
    merged = RULES["fisher"](zero, taus, functions=[None] * 2, batches=[zero["w"]] * 2, **keywords)
    close(merged["w"], tensor(w))
    close(merged["v"], tensor(v))


# ---- RegMean -------------------------------------------------------------------------------------

def rows(*gram):
    """X with X^T X / rows = gram."""
    L = torch.linalg.cholesky(tensor(gram))
    return L.T * len(gram) ** 0.5


def regmean(weights, inputs, name="regmean", **keywords):
    """The merged weight (out, in) of one layer."""
    zero = {"w": torch.zeros_like(weights[0])}
    return RULES[name](zero, [{"w": w} for w in weights], batches=inputs,
                       activations=lambda params, x: {"w": x}, **keywords)["w"]


@pytest.mark.parametrize("name", ["regmean", "regmean_pp"])
def test_regmean_by_hand(name):
    merged = regmean([tensor([[2.0, 4]]), tensor([[6.0, 0]])],
                     [rows([1.0, 0], [0, 3.0]), rows([3.0, 0], [0, 1.0])], name, shrink=1.0)
    close(merged, tensor([[5.0, 3.0]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shrink, expected", [(1.0, [0.5, 0.5]), (0.0, [2 / 3, 1 / 3])])
def test_regmean_shrinks_the_off_diagonal(shrink, expected):
    merged = regmean([tensor([[1.0, 0]]), tensor([[0.0, 1]])],
                     [rows([2.0, 1], [1, 2.0]), rows([1.0, 0], [0, 1.0])], shrink=shrink)
    close(merged, tensor([expected]), atol=1e-5, rtol=0)


def test_regmean_is_least_squares_on_the_stacked_examples():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=f64)
    W, X = [draw(3, 4), draw(3, 4)], [draw(150, 4), draw(150, 4)]       # chunks of 64 rows
    fit = torch.linalg.lstsq(torch.cat(X), torch.cat([x @ w.T for x, w in zip(X, W)])).solution.T
    close(regmean(W, X, shrink=1.0), fit, atol=1e-5, rtol=0)
    close(regmean([W[0], W[0]], X), W[0], atol=1e-5, rtol=0)
    close(regmean(W, [X[0], X[0]]), sum(W) / 2, atol=1e-5, rtol=0)


def test_gram_is_the_mean_square_over_all_chunks():
    """99 rows of (1, 0) and one of (0, 2), in chunks of 64 and 36."""
    X = tensor([[1.0, 0]] * 99 + [[0.0, 2]])
    G = grams(lambda params, x: {"w": x, "other": x}, {}, X, {"w"})
    assert G.keys() == {"w"} and G["w"].dtype == f64
    close(G["w"], tensor([[0.99, 0], [0, 0.04]]))


def test_regmean_uses_only_the_first_examples():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=f64)
    W, X = [draw(3, 4), draw(3, 4)], [draw(20, 4), draw(20, 4)]
    same = regmean(W, [x[:8] for x in X])
    assert torch.equal(regmean(W, X, examples=8), same)


def two_blocks(params, x):
    """Inputs of two layers in a row, with a cube between them."""
    return {"blocks.0.w": x, "blocks.1.w": (x @ params["blocks.0.w"].T) ** 3}


def test_regmean_pp_takes_the_inputs_from_the_merged_model():
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=f64)
    base = {"blocks.0.w": torch.zeros(3, 4, dtype=f64), "blocks.1.w": torch.zeros(2, 3, dtype=f64)}
    taus = [{k: draw(*v.shape) for k, v in base.items()} for _ in range(2)]
    X = [draw(30, 4), draw(30, 4)]
    keywords = dict(batches=X, activations=two_blocks, shrink=1.0)
    plain = RULES["regmean"](base, taus, **keywords)
    plus = RULES["regmean_pp"](base, taus, **keywords)
    close(plain["blocks.0.w"], plus["blocks.0.w"], atol=1e-9, rtol=0)
    Z = [(x @ plus["blocks.0.w"].T) ** 3 for x in X]
    fit = torch.linalg.lstsq(torch.cat(Z), torch.cat([z @ tau["blocks.1.w"].T
                                                      for z, tau in zip(Z, taus)])).solution.T
    close(plus["blocks.1.w"], fit, atol=1e-3, rtol=1e-4)
    assert (plain["blocks.1.w"] - fit).abs().max() > 0.01


def test_the_ridge_is_a_millionth_of_the_mean_of_the_diagonal():
    G = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)) + 0.5
    off = shrunk(G, 0.9)
    assert off[0, 1].item() == pytest.approx(0.45, abs=1e-12)
    assert (off.diagonal() - G.diagonal()).tolist() == pytest.approx([2.5e-6, 2.5e-6], rel=1e-6)
