"""PCB-Merging: worked examples, what one task and equal tasks give, where nothing stands out."""

import pytest
import torch

from merge import RULES
from support import close, draw, refuses

A, B = torch.tensor([4.0, -3, 2, 1]), torch.tensor([-1.0, -5, 3, 6])


def pcb(*taus, lam=1.0, **keywords):
    """The rule on one tensor over a base of zeros, at lam = 1."""
    return RULES["pcb"]({"w": torch.zeros_like(taus[0])}, [{"w": v} for v in taus], lam=lam,
                        **keywords)["w"]


@pytest.mark.parametrize("density, merged", [(0.75, [4, -4.2812, 0, 6]), (0.5, [4, 0, 0, 6])])
def test_pcb_by_hand(density, merged):
    """minmax of the sizes: (1, .667, .333, 0) and (0, .8, .4, 1), so S = (1, -1.467, .733, 1).
    tau_a S = (4, 4.4, 1.467, 1), of which tanh leaves nearly 1; e^(2 s^2) = (7.39, 2.43, 1.25, 1)
    decides. At density .75 the weights are (1, .2091, 0, 0) and (0, .3727, 0, 1)."""
    close(pcb(A, B, density=density, clip=0.0), torch.tensor(merged).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("density, kept", [(1.0, 9), (0.8, 7), (0.3, 2), (0.1, 0), (0.01, 0)])
def test_pcb_of_one_task_is_trimmed_with_nothing_for_the_entry_at_the_threshold(density, kept):
    tau = draw(10)
    merged = pcb(tau, density=density, clip=0.0)
    largest = tau.abs().argsort(descending=True)[:kept]
    expected = torch.zeros_like(tau).index_copy(0, largest, tau[largest])
    close(merged, expected)


def test_pcb_counts_in_whole_entries():
    """5 (1 - .8) is .9999..: still one entry below the threshold, and one at it."""
    assert (pcb(draw(5), density=0.8, clip=0.0) != 0).sum() == 3


def test_pcb_of_equal_tasks_is_that_of_one():
    tau = draw(50)
    close(pcb(tau, tau, tau, density=0.4), pcb(tau, density=0.4))


def test_pcb_clips_both_tails():
    """Of 1 .. 10 one at each end: 1 counts as 2, and 10 as 9. Half stay, but for the threshold.
    Where all compete, the two smallest have size 0 and no say."""
    tau = torch.tensor([3.0, -10, 1, 7, -9, 5, 2, 8, -6, 4])
    merged = pcb(tau, density=0.5, clip=0.1)
    assert merged.tolist() == [0, -9, 0, 7, -9, 0, 0, 8, 0, 0]
    assert pcb(tau, density=1.0, clip=0.1).tolist() == [3, -9, 0, 7, -9, 5, 0, 8, -6, 4]
    assert pcb(tau, density=0.5, clip=0.09)[1] == -10                  # less than one entry: none


def test_pcb_stays_within_the_tasks_and_leaves_the_rest():
    """A weighted mean is no larger than the largest; without any weight the base stays."""
    taus = [draw(200, seed=t) for t in range(4)]
    merged, all_of_them = pcb(*taus, density=0.1), torch.stack([*taus, torch.zeros(200)])
    assert (merged <= all_of_them.amax(0)).all() and (merged >= all_of_them.amin(0)).all()
    assert 0.08 < (merged == 0).double().mean() < 0.95
    close(pcb(*taus, density=0.1, lam=0.3), 0.3 * merged)


def test_pcb_drops_an_entry_against_the_others_first():
    """Entry 0 is the largest of the last task, and the other two outweigh it."""
    against = torch.tensor([-4.0, 1, 2, 3])
    taus = [torch.tensor([4.0, 1, 2, 3]), torch.tensor([4.0, 1, 3, 2]), against]
    assert pcb(*taus, density=1.0, clip=0.0)[0] == 4


def test_pcb_where_nothing_stands_out():
    flat, zero = torch.tensor([1.0, -1, 1]), torch.zeros(3)
    assert pcb(flat).tolist() == pcb(zero, zero).tolist() == [0, 0, 0]
    assert pcb(torch.ones(1)).tolist() == [0]


def test_pcb_of_many_tasks_does_not_overflow():
    assert pcb(*(draw(30, seed=t).float() for t in range(120)), density=0.5).isfinite().all()


def test_pcb_goes_over_the_whole_model():
    """The large tensor takes all the weight."""
    base = {"a": torch.zeros(3), "b": torch.zeros(3)}
    merged = RULES["pcb"](base, [{"a": torch.tensor([9.0, 8, 7]), "b": torch.tensor([1.0, 2, 3])}],
                          density=0.5, clip=0.0, lam=1.0)
    assert merged["a"].tolist() == [9, 8, 0] and not merged["b"].any()


@pytest.mark.parametrize("keywords, told", [
    (dict(density=0.0), r"density 0.0 is outside \(0, 1\]"),
    (dict(density=1.1), r"density 1.1 is outside \(0, 1\]"),
    (dict(clip=0.5), r"clip 0.5 is outside \[0, 0.5\)"),
    (dict(clip=-0.1), r"clip -0.1 is outside \[0, 0.5\)"),
])
def test_pcb_refuses(keywords, told):
    refuses(told, pcb, A, B, **keywords)
