"""SLERP of two task vectors: angles by hand, both ends, the straight line where there is no arc."""

import pytest
import torch

from experiment.scoring import obstacle
from merge import RULES
from support import close, draw, noise, refuses, same


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def slerp(a, b, t=0.5):
    """The rule on one tensor over a base of zeros."""
    return RULES["slerp"]({"w": torch.zeros_like(a)}, [{"w": a}, {"w": b}], t=t)["w"]


@pytest.mark.parametrize("a, b, t, merged", [
    ((3, 0), (0, 4), 1 / 2, (3 / 2 ** 0.5, 4 / 2 ** 0.5)),       # sin 45 / sin 90 = .7071 for both
    ((3, 0), (0, 4), 1 / 3, (3 * 0.75 ** 0.5, 4 * 0.5)),         # sin 60 and sin 30
    ((2, 0), (0, 2), 1 / 2, (2 ** 0.5, 2 ** 0.5)),               # of length 2 still
    ((1, 0), (0.5, 0.75 ** 0.5), 1 / 2, (0.75 ** 0.5, 0.5)),     # from 0 to 60 degrees by 30
    ((1, 0), (-0.5, 0.75 ** 0.5), 1 / 4, (0.75 ** 0.5, 0.5)),    # a quarter of 120
])
def test_slerp_by_hand(a, b, t, merged):
    close(slerp(vector(*a), vector(*b), t), vector(*merged))


def test_slerp_goes_tensor_by_tensor():
    """Two halves at 90 and at 0 degrees; as one vector of four they would be at 60."""
    a, b = {"p": vector(1, 0), "q": vector(1, 0)}, {"p": vector(0, 1), "q": vector(1, 0)}
    zero = {k: torch.zeros_like(v) for k, v in a.items()}
    same(RULES["slerp"](zero, [a, b]), {"p": vector(0.5 ** 0.5, 0.5 ** 0.5), "q": vector(1, 0)})


def test_slerp_ends_and_both_directions():
    base = {"m": draw(4, 3), "b": draw(5, seed=1)}
    a, b = noise(base, 0.1, seed=2), noise(base, 0.3, seed=3)
    at = lambda t, *taus: RULES["slerp"](base, list(taus), t=t)
    assert all(torch.equal(at(0.0, a, b)[k], base[k] + a[k]) for k in base)
    assert all(torch.equal(at(1.0, a, b)[k], base[k] + b[k]) for k in base)
    same(at(0.3, a, b), at(0.7, b, a))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_keeps_the_length_and_turns_evenly(t):
    a, b = draw(50), draw(50, seed=1)
    b *= a.norm() / b.norm()
    cos = lambda u, v: u @ v / (u.norm() * v.norm())
    merged = slerp(a, b, t)
    close(merged.norm(), a.norm())
    close(cos(merged, a).acos(), t * cos(a, b).acos())


@pytest.mark.parametrize("a, b, t, merged", [
    ((0, 0), (2, 4), 0.25, (0.5, 1)),                            # a tensor that one task left alone
    ((1, 2), (1, 2), 0.5, (1, 2)),
    ((1, 2), (3, 6), 0.5, (2, 4)),
    ((1, 2), (-1, -2), 0.5, (0, 0)),                             # opposite ones cancel
    ((1, 2), (-1, -2), 0.25, (0.5, 1)),
])
def test_slerp_is_straight_where_there_is_no_arc(a, b, t, merged):
    close(slerp(vector(*a), vector(*b), t), vector(*merged))


def test_slerp_is_straight_above_9995():
    """The midpoint of the arc has length 1, that of the chord cos(w / 2)."""
    middle = lambda cos: slerp(vector(1, 0), vector(cos, (1 - cos ** 2) ** 0.5)).norm().item()
    assert middle(0.9994) == pytest.approx(1, abs=1e-12)
    assert middle(0.9996) == pytest.approx(0.9998 ** 0.5, abs=1e-12)
    assert middle(-0.9996) == pytest.approx(0.0002 ** 0.5, abs=1e-12)


def test_slerp_takes_two_and_stays_between_them():
    assert obstacle("slerp", "weight", 2) is None
    assert "takes 2 runs and got 3" in obstacle("slerp", "weight", 3)
    for t in (-0.1, 1.1, float("nan")):
        refuses(rf"t {t} is outside \[0, 1\]", slerp, vector(1, 0), vector(0, 1), t)


def test_slerp_as_in_mergekit():
    """mergekit 0.1.5, whose slerp takes any two tensors: here the task vectors."""
    theirs = pytest.importorskip("mergekit.merge_methods.slerp").slerp
    a = draw(300)
    for b in (draw(300, seed=1), a + 0.02 * draw(300, seed=1), a + 0.05 * draw(300, seed=1)):
        for t in (0.2, 0.5):
            close(slerp(a, 3 * b, t), theirs(torch.tensor([t]).double(), a[None], 3 * b[None])[0],
                  atol=1e-6, rtol=0)
