"""The analyses against examples worked by hand, other routes to the same number, and extremes."""

import math

import pytest
import torch

from analysis import measures
from experiment import scoring
from merge import flatten
from support import close, refuses

KEYS = {"blocks.0.w": (3, 5), "a": (7,)}


def vectors(tasks=4, seed=0, dtype=torch.float64):
    """Random task vectors with two tensors of odd shapes."""
    g = torch.Generator().manual_seed(seed)
    return [{k: torch.randn(s, generator=g, dtype=torch.float64).to(dtype)
             for k, s in KEYS.items()} for _ in range(tasks)]


def zeros():
    return {k: torch.zeros(s, dtype=torch.float64) for k, s in KEYS.items()}


def linear(params, x):
    """Logits x W^T of the classes 0 and 1: (B, 2) -> (B, 2)."""
    return x @ params["W"].T


# ---- scores --------------------------------------------------------------------------------------

def test_normalised_by_hand():
    assert scoring.normalised({"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.6}) == pytest.approx(
        {"a": 0.5, "b": 1.5})
    assert scoring.normalised({"a": 0.0, "b": 0.3}, {"a": 0.0, "b": 0.0}) == {"a": 1, "b": 1}


def test_forgetting_keeps_the_control():
    """0.95 x 0.8 = 0.76: the lowest target has lost the control, the next just keeps it."""
    curve = [(0.0, 0.9, 0.8), (0.4, 0.5, 0.76), (0.6, 0.5, 0.77), (1.0, 0.2, 0.75)]
    assert measures.forgetting(0.9, 0.8, curve[:2] + curve[3:]) == (0.4, 0.5, 0.76)
    assert measures.forgetting(0.9, 0.8, curve) == (0.6, 0.5, 0.77)
    assert measures.forgetting(0.9, 0.8, curve, keep=0.5) == (1.0, 0.2, 0.75)
    assert measures.forgetting(0.9, 0.8, curve[3:]) is None
    assert measures.forgetting(0.9, 0.8, curve[:1]) == (0.0, 0.9, 0.8)
    assert measures.forgetting(0.7, 0.8, curve[:3]) == (0.6, 0.5, 0.77)
    assert measures.forgetting(0.4, 0.8, curve[:3]) is None           # all know more than before


# ---- geometry ------------------------------------------------------------------------------------

def test_energy_of_singular_directions_by_hand():
    """diag(3, 4, 0) turned: 16/25 in the first direction; beside it a matrix of rank 1 holds all in
    the first. Vectors and zeros do not count."""
    turn = torch.linalg.qr(torch.arange(9.0, dtype=torch.float64).reshape(3, 3).cos())[0]
    tau = {"a": turn @ torch.diag(torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)),
           "b": torch.ones(5, 2), "bias": torch.ones(4), "still": torch.zeros(6, 6)}
    close(measures.energy({"a": tau["a"]}), torch.tensor([0.64, 1, 1], dtype=torch.float64))
    close(measures.energy(tau), torch.tensor([0.82, 1, 1], dtype=torch.float64))
    assert measures.energy({"bias": torch.ones(4), "still": torch.zeros(6, 6)}).shape == (0,)


def test_three_four_five():
    a, b = zeros(), zeros()
    a["a"][0], b["blocks.0.w"][1, 2] = 3.0, 4.0
    assert measures.distances([a, b]).tolist() == [[0, 5], [5, 0]]
    b["blocks.0.w"][0, 0] = 3.0
    assert measures.norms_by_layer(b) == {"block0": 5.0, "a": 0.0}
    b["a"][0] = 5.0
    assert measures.cosines([a, b])[0, 1].item() == pytest.approx(math.sqrt(0.5))


def test_cosines_are_those_of_the_flattened_vectors():
    taus = vectors()
    c = measures.cosines(taus)
    stack = torch.stack([flatten(tau) for tau in taus])
    unit = stack / stack.norm(dim=1, keepdim=True)
    close(c, unit @ unit.T)
    assert c.equal(c.T) and c.diag().sub(1).abs().max() < 1e-12
    scaled = [{k: s * v for k, v in taus[0].items()} for s in (1.0, -0.3, 0.7, 1e-3)]
    parallel = measures.cosines(scaled)
    assert parallel[0].tolist() == pytest.approx([1, -1, 1, 1])
    assert parallel.abs().max() <= 1                                  # safe for arccos


def test_a_zero_vector_has_no_direction():
    """No NaN anywhere: its cosines are 0, its own included, and equal vectors have no spread."""
    taus = [*vectors(2), zeros()]
    c = measures.cosines(taus)
    assert c[2].tolist() == c[:, 2].tolist() == [0, 0, 0] and c[0, 0] > 0.99
    scores, share = measures.pca([taus[0]] * 3)
    assert not scores.any() and not share.any()
    scores, share = measures.pca([zeros(), zeros()])
    assert not scores.any() and not share.any()
    assert measures.norms_by_layer(zeros()) == {"block0": 0.0, "a": 0.0}


def test_close_models_keep_their_distance_in_float64():
    """From the norms, 1e4^2 + (1e4 + 1e-6)^2 - 2 x .., nothing of 1e-6 would be left."""
    near = {"a": torch.tensor([1e4], dtype=torch.float64)}
    far = {"a": near["a"] + 1e-6}
    assert measures.distances([near, far])[0, 1].item() == pytest.approx(1e-6, rel=1e-5)
    half = measures.cosines(vectors(dtype=torch.float16))
    assert half.dtype == torch.float64
    assert half.diag().sub(1).abs().max() < 1e-12


def test_pca_is_the_svd_of_the_centred_stack():
    taus = vectors(5)
    scores, share = measures.pca(taus, components=4)
    stack = torch.stack([flatten(tau) for tau in taus]) + 3.0         # a shift changes nothing
    U, S, _ = torch.linalg.svd(stack - stack.mean(0), full_matrices=False)
    close(scores.abs(), (U * S).abs()[:, :4])
    close(share, (S ** 2 / (S ** 2).sum())[:4])
    assert share.sum().item() == pytest.approx(1)                     # T - 1 components hold it all
    assert (scores.gather(0, scores.abs().argmax(0, keepdim=True)) > 0).all()


def test_pca_by_hand():
    """0, 6 and 3 on a line: centred -3, 3, 0. Of two equal magnitudes the first is positive."""
    line = [{"a": torch.tensor([v, 1.0])} for v in (0.0, 6.0, 3.0)]
    scores, share = measures.pca(line)
    close(scores, torch.tensor([[3.0, 0], [-3, 0], [0, 0]]).double())
    assert share.tolist() == pytest.approx([1, 0])
    scores, share = measures.pca([{k: s * v for k, v in vectors(1)[0].items()}
                                  for s in (0.3, 1.1, 0.7)], components=3)
    assert scores[:, 0].all() and not scores[:, 1:].any() and not share[1:].any()
    assert all(measures.pca(vectors(2, seed), components=1)[0][0] > 0 for seed in range(20))


# ---- interference --------------------------------------------------------------------------------

def on(*inputs):
    """For each of the inputs a function params -> its logits."""
    return [lambda params, x=x: linear(params, x) for x in inputs]


def interference():
    """Base logits (1, 0) for x = (1, 0) and (0, 1) for x = (0, 1); tau_a moves only the first."""
    W = torch.eye(2, dtype=torch.float64)
    first, second = torch.zeros(2, 2).double(), torch.zeros(2, 2).double()
    first[1, 0], second[0, 1] = 1.0, 1.0
    return {"W": W}, {"W": first}, {"W": second}, W[:1], W[1:]


def test_xi_is_zero_for_disjoint_supports():
    """Task a lives on the first input, task b on the second: each logit sees one vector only."""
    base, tau_a, tau_b, x_a, x_b = interference()
    xi = measures.disentanglement(base, tau_a, tau_b, on(x_a, x_b), [-2, 0, 0.5, 2])
    assert xi.shape == (4, 4) and not xi.any()


def test_xi_by_hand():
    """Both tasks see x = (1, 0), logits (1, lam_a - lam_b): class 1 where lam_a - lam_b > 1.

    Alone: where lam_a > 1, and where -lam_b > 1. Three more inputs of task a never move.
    """
    base, tau_a, _, x, still = interference()
    tau_b, inputs = {"W": -tau_a["W"]}, torch.cat([x, still, still, still])
    lams = [-1.5, 0.0, 1.5]
    xi = measures.disentanglement(base, tau_a, tau_b, on(inputs, x), lams)
    assert xi.tolist() == [[1, 0, 0], [0.25, 0, 0], [0, 1, 0.25]] and xi.dtype == torch.float64


def test_xi_on_the_axes_leaves_one_term():
    """lam_b = 0: the model is the one of task a alone, its term is 0; likewise lam_a = 0."""
    g = torch.Generator().manual_seed(2)
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    base, tau_a, tau_b = ({"W": draw(3, 4)} for _ in range(3))
    x, zero = draw(40, 4), torch.zeros(1, 4).double()
    lams = [-1.0, 0.0, 2.0]
    of = lambda *inputs: measures.disentanglement(base, tau_a, tau_b, on(*inputs), lams)
    term_a, term_b = of(x, zero), of(zero, x)                         # x = 0: always class 0
    assert not term_a[:, 1].any() and not term_b[1].any()
    assert term_a[2, 2] > 0 and term_a[1, 2] > 0 and term_b[2, 2] > 0
    close(of(x, x), term_a + term_b)


def test_the_single_predictions_are_made_once():
    base, tau_a, tau_b, x_a, x_b = interference()
    calls = []
    counted = [lambda params, f=f: calls.append(1) or f(params) for f in on(x_a, x_b)]
    measures.disentanglement(base, tau_a, tau_b, counted, [0, 1, 2])
    assert len(calls) == 2 * 3 + 2 * 3 ** 2


def test_landscape_by_hand():
    """Losses a^2 and b at base (1, 2), directions (1, 0) and (0, 10): (1 + la)^2 + 2 + 10 lb."""
    base, tau_a, tau_b = ({"p": torch.tensor(v)} for v in ([1.0, 2.0], [1.0, 0.0], [0.0, 10.0]))
    losses = [lambda params: params["p"][0] ** 2, lambda params: params["p"][1].item()]
    out = measures.landscape(base, tau_a, tau_b, losses, [-0.5, 0, 1])
    assert out.tolist() == [[-2.75, 2.25, 12.25], [-2, 3, 13], [1, 6, 16]]
    assert base["p"].tolist() == [1, 2]


# ---- rank correlation ----------------------------------------------------------------------------

def test_spearman_by_hand():
    """Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 x 5) = sqrt(.9)."""
    x, y = torch.tensor([1.0, 2, 2, 4]), torch.tensor([10, 30, 20, 40])
    assert measures.ranks(x).tolist() == [1, 2.5, 2.5, 4]
    assert measures.ranks(torch.tensor([5, 5, 1, 5])).tolist() == [3, 3, 1, 3]
    assert measures.spearman(x, y) == pytest.approx(0.9 ** 0.5)
    assert measures.spearman(y, x) == pytest.approx(0.9 ** 0.5)
    assert measures.spearman(y, -y.exp()) == pytest.approx(-1)
    assert measures.spearman(x[:2], y[:2]) == pytest.approx(1)
    assert measures.spearman(x, torch.ones(4)) == 0.0
    refuses("NaN", measures.spearman, x, torch.tensor([1.0, 2, float("nan"), 4]))


def test_entropy_and_loss_of_right_and_wrong_labels():
    """Larger lam, surer logits (0, lam): less entropy and, where labels are right, less loss."""
    base, tau = {"W": torch.zeros(2, 2)}, {"W": torch.tensor([[0.0, 0.0], [0.5, 0.0]])}
    x, right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([1]), torch.tensor([0])
    H, L, rho = measures.entropy_and_loss(base, [tau, tau], on(x, x), [right, wrong], [0, 1, 3])
    assert rho.tolist() == pytest.approx([1, -1])
    softplus = lambda v: math.log1p(math.exp(v))
    close(L, torch.tensor([[softplus(-v), softplus(v)] for v in (0, 1, 3)]).double())
    p = 1 / (1 + math.exp(-3))
    assert H.shape == (3, 2) and H.dtype == torch.float64
    assert H[2, 0].item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
