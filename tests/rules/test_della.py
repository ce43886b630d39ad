"""DELLA and DARE followed by TIES: drop rates, every mask in turn, what an election does to it."""

import itertools

import pytest
import torch

from merge import RULES
from rules.della import drop_rates
from support import close, draw, noise, refuses, same

A, B = torch.tensor([4.0, -3, 2, 1]), torch.tensor([-1.0, -5, 3, 6])


@pytest.fixture
def masked(monkeypatch):
    """(name, taus, masks, keywords): a rule on one tensor with masks of 0 and 1 of our choice."""
    def run(name, taus, masks, **keywords):
        draws = iter(0.999 * torch.tensor(masks))
        monkeypatch.setattr(torch, "rand", lambda shape, generator: next(draws))
        return RULES[name]({"w": torch.zeros_like(taus[0])}, [{"w": v} for v in taus],
                           **keywords)["w"]
    return run


def entries(tau):
    return torch.tensor(tau, dtype=torch.float64)


# ---- DELLA ---------------------------------------------------------------------------------------


def test_della_by_hand(masked):
    """Ranks 1 4 2 3 of 4: rates .7, .3, .5667, .4333; kept -4 / .7 and 3 / .5667."""
    row = entries([1, -4, 2, 3])
    close(drop_rates(row, 0.5, 0.2), entries([0.7, 0.3, 17 / 30, 13 / 30]))
    close(masked("della", [row], [[0.0, 1, 0, 1]], drop=0.5, epsilon=0.2),
          entries([0, -40 / 7, 0, 90 / 17]))


def test_della_elects_and_takes_the_mean_of_what_agrees(masked):
    """All kept: (1, 3) and (2, -3.6) over (.4, .6) are (2.5, 5) and (5, -6)."""
    taus = [entries([[1, 3]]), entries([[2, -3.6]])]
    merged = masked("della", taus, [[[1.0, 1]]] * 2, drop=0.5, epsilon=0.1, lam=2.0)
    close(merged, entries([[2 * 3.75, 2 * -6]]))


def test_della_ranks_row_by_row():
    """Every row of a matrix; one row of a vector; a row of one entry knows no order."""
    flat = drop_rates(entries([[9, 8, 7], [-1, 0, 2]]), 0.5, 0.1)
    close(flat, entries([[0.4, 0.5, 0.6], [0.5, 0.6, 0.4]]))
    close(drop_rates(entries([[3], [1], [2]]), 0.3, 0.1), entries([[0.3], [0.3], [0.3]]))
    close(drop_rates(entries([3, 1, 2]), 0.3, 0.1), entries([0.2, 0.4, 0.3]))
    close(drop_rates(entries(5), 0.3, 0.1), entries(0.3))
    kernel = drop_rates(draw(4, 2, 3), 0.3, 0.1)
    assert kernel.shape == (4, 2, 3)
    close(kernel.flatten(1).mean(1), torch.full((4,), 0.3, dtype=torch.float64))
    close(drop_rates(entries([2, -2, 2]), 0.5, 0.1), entries([0.6, 0.5, 0.4]))      # by position


def test_della_leaves_the_expectation_at_tau(masked):
    """The sum over all masks of their probability times what they give."""
    tau, expected = entries([1, -4, 2]), 0
    q = drop_rates(tau, 0.5, 0.3)
    for mask in itertools.product([0.0, 1], repeat=3):
        kept = entries(mask)
        probability = (kept * (1 - q) + (1 - kept) * q).prod()
        expected += probability * masked("della", [tau], [mask], drop=0.5, epsilon=0.3)
    close(expected, tau)


def test_della_draws_at_these_rates():
    """4000 rows of 3: one rate is off by .008 in one of three draws."""
    tau = {"w": entries([1, -4, 2]).repeat(4000, 1)}
    merged = RULES["della"]({"w": torch.zeros_like(tau["w"])}, [tau], drop=0.5, epsilon=0.3)["w"]
    close((merged == 0).double().mean(0), entries([0.8, 0.2, 0.5]), atol=0.03, rtol=0)


def test_della_without_a_window_is_dare_and_an_election():
    base = {"m": draw(6, 5), "b": draw(7, seed=1)}
    taus = [noise(base, 0.1, seed=t) for t in (2, 3, 4)]
    same(RULES["della"](base, taus, drop=0.3, epsilon=0.0, lam=0.7, seed=5),
         RULES["dare_ties"](base, taus, drop=0.3, density=1.0, agg="mean", lam=0.7, seed=5))
    same(RULES["della"](base, taus[:1], drop=0.3, epsilon=0.0, seed=5),
         RULES["dare"](base, taus[:1], drop=0.3, lam=1.0, seed=5))


@pytest.mark.parametrize("drop, epsilon", [(0.5, 0.5), (0.9, 0.1), (0.05, 0.1), (0.5, -0.1),
                                           (1.0, 0.0), (-0.1, 0.0), (float("nan"), 0.1)])
def test_della_refuses_rates_outside_0_and_1(drop, epsilon):
    refuses(rf"drop {drop} with epsilon {epsilon}: the drop rates", RULES["della"],
            {"w": A}, [{"w": B}], drop=drop, epsilon=epsilon)


def test_della_may_always_keep_the_largest():
    tau = {"w": torch.tensor([[3.0, 1]]).repeat(100, 1)}
    merged = RULES["della"]({"w": torch.zeros(100, 2)}, [tau], drop=0.2, epsilon=0.2)["w"]
    assert (merged[:, 0] == 3).all() and 20 < (merged[:, 1] == 0).sum() < 60


def test_della_rates_as_in_mergekit(monkeypatch):
    """mergekit 0.1.5; only the rates, for it scales what is left in another way."""
    theirs, seen = pytest.importorskip("mergekit.sparsify").della_magprune, []
    monkeypatch.setattr(torch, "bernoulli", lambda p: seen.append(p) or torch.ones_like(p))
    for v in (draw(6, 11), draw(11)):
        theirs(v, density=0.6, epsilon=0.2)
        close(1 - drop_rates(v, 0.4, 0.2), seen.pop().reshape(v.shape).double(), atol=1e-6, rtol=0)


# ---- DARE, then TIES -----------------------------------------------------------------------------


@pytest.mark.parametrize("keywords, merged", [
    (dict(agg="sum"), [8, -10, 10, 12]),
    (dict(agg="mean"), [8, -10, 5, 12]),
    (dict(agg="mean", lam=0.5), [4, -5, 2.5, 6]),
    (dict(agg="sum", density=0.5), [8, -10, 4, 12]),             # b trimmed to (0, -10, 0, 12)
])
def test_dare_ties_by_hand(masked, keywords, merged):
    """a' = (8, 0, 4, 0) and b' = (0, -10, 6, 12)."""
    assert masked("dare_ties", [A, B], [[1.0, 0, 1, 0], [0.0, 1, 1, 1]], drop=0.5,
                  **keywords).tolist() == merged


def test_an_election_after_dare_is_biased(masked):
    """Over the four masks of two entries: 4 against -1 give 8, 8, -2, 0, mean 3.5 and not 4. Of one
    sign, -3 and -5, the sum stays -8; the mean goes from -4 to -6, the others being fewer."""
    def expected(agg):
        runs = [masked("dare_ties", [A, B], [[first] * 4, [second] * 4], drop=0.5, agg=agg)
                for first, second in itertools.product([0.0, 1], repeat=2)]
        return (sum(runs) / 4)[:2].tolist()

    assert expected("sum") == [3.5, -8] and expected("mean") == [3.5, -6]
    plain = RULES["ties"]({"w": 0 * A}, [{"w": A}, {"w": B}], density=1.0)["w"]
    assert plain[:2].tolist() == [4, -4]


def test_dare_ties_without_a_drop_is_ties():
    base = {"m": draw(6, 5), "b": draw(7, seed=1)}
    taus = [noise(base, 0.1, seed=t) for t in (2, 3, 4)]
    for keywords in (dict(density=0.3, agg="max"), dict(density=1.0, agg="sum")):
        same(RULES["dare_ties"](base, taus, drop=0.0, lam=0.4, **keywords),
             RULES["ties"](base, taus, lam=0.4, **keywords))


@pytest.mark.parametrize("name", ["dare", "dare_ties", "della"])
def test_every_task_has_a_mask_of_its_own_and_a_seed_fixes_them(name):
    """Two equal tasks: with one mask for both, an entry would be zero in half of all places."""
    tau = {"w": torch.ones(400, 3)}
    at = lambda seed: RULES[name]({"w": torch.zeros(400, 3)}, [tau, tau], drop=0.5, seed=seed)["w"]
    assert 0.2 < (at(0) == 0).double().mean() < 0.3
    assert torch.equal(at(1), at(1)) and not torch.equal(at(0), at(1))


@pytest.mark.parametrize("drop", [1.0, -0.1, float("nan")])
def test_dare_ties_refuses(drop):
    call = lambda **keywords: RULES["dare_ties"]({"w": A}, [{"w": B}], **keywords)
    refuses(rf"drop {drop} is outside \[0, 1\)", call, drop=drop)
    refuses("unknown agg 'median'", call, agg="median")
