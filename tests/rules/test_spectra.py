"""Rules on singular values: worked examples and identities, in float64."""

import pytest
import torch

from merge import RULES
from rules import spectra
from rules.knots import align


def diagonal(*entries):
    return torch.diag(torch.tensor(entries, dtype=torch.float64))


def merged(name, *taus, **keywords):
    """The merged task vector of one matrix each."""
    zero = {"w": torch.zeros_like(taus[0])}
    return RULES[name](zero, [{"w": tau} for tau in taus], **keywords)["w"]


def low_rank(rank, seed, shape=(6, 9)):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)
    return draw(shape[0], rank) @ draw(rank, shape[1])


def close(a, b, tolerance=1e-9):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["tsv", "knots", "wudi"])
def test_tasks_on_orthogonal_axes_are_added(name):
    a, b = diagonal(3, 0, 0, 0), diagonal(0, 2, 0, 0)
    close(merged(name, a, b, **({"density": 1.0} if name == "knots" else {})), a + b)


def test_other_keys_take_the_mean():
    base = {"w": torch.zeros(2, 2), "b": torch.zeros(2)}
    taus = [{"w": torch.eye(2), "b": torch.tensor([1.0, 3])},
            {"w": torch.eye(2), "b": torch.tensor([3.0, 1])}]
    for name in ("tsv", "iso_c", "iso_cts", "knots", "wudi"):
        assert RULES[name](base, taus)["b"].tolist() == [2, 2], name


def test_tsv_of_the_same_rank_one_task_twice_invents_nothing():
    """The stacked directions repeat each other; a full polar factor would add e2 e2^T."""
    close(merged("tsv", diagonal(2, 0), diagonal(2, 0)), diagonal(2, 0))


def test_tsv_keeps_the_share_of_the_rank():
    """Two tasks on 4 x 4 keep two triplets each: the small one of the first is cut."""
    close(merged("tsv", diagonal(5, 4, 1, 0), diagonal(0, 0, 0, 7)), diagonal(5, 4, 0, 7))


def test_tsv_shares_out_the_shorter_side():
    """Two tasks on 2 x 5, one triplet each: the 1 of the first makes room for the 3."""
    a, b = (torch.nn.functional.pad(diagonal(*d), (0, 3)) for d in ((5, 1), (0, 3)))
    close(merged("tsv", a, b), torch.nn.functional.pad(diagonal(5, 3), (0, 3)))
    close(merged("tsv", a.T, b.T), torch.nn.functional.pad(diagonal(5, 3), (0, 3)).T)


def test_tsv_directions_become_orthonormal():
    """u1 = e1 and u2 at 60 degrees: the polar factor turns each by 15 degrees, like Loewdin's."""
    u = torch.tensor([[1.0, 0.5], [0.0, 0.75 ** 0.5]], dtype=torch.float64)
    P = spectra.polar(u)
    close(P.T @ P, torch.eye(2, dtype=torch.float64))
    close((P * u).sum(0), torch.full((2,), torch.pi / 12, dtype=torch.float64).cos())


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_noise_is_measured_against_the_largest_singular_value(scale):
    """1 and 2e-6 are directions, 5e-7 is none, whatever the unit."""
    U, S, V = spectra.spectrum(scale * diagonal(1, 2e-6, 5e-7))
    assert U.shape == V.shape == (3, 2)
    close(S / scale, torch.tensor([1, 2e-6], dtype=torch.float64))


def test_iso_c_by_hand_and_its_nuclear_norm():
    close(merged("iso_c", diagonal(3, 0), diagonal(0, 1)), diagonal(2, 2))
    a, b = low_rank(6, 0), low_rank(6, 1)
    nuclear = lambda m: torch.linalg.svdvals(m).sum()
    close(nuclear(merged("iso_c", a, b)), nuclear(a + b))


def test_iso_c_leaves_directions_alone_that_no_task_has():
    assert torch.linalg.matrix_rank(merged("iso_c", low_rank(1, 0), low_rank(2, 1))) == 3


def test_iso_cts_with_everything_common_is_iso_c():
    a, b = low_rank(6, 0), low_rank(6, 1)
    close(merged("iso_cts", a, b, common=1.0), merged("iso_c", a, b))


def test_iso_cts_by_hand():
    """Rank 4, half common: e1, e2 of the sum; then the top of what each task has besides."""
    a, b = diagonal(6, 0, 1, 0), diagonal(0, 4, 0, 1)
    close(merged("iso_cts", a, b, common=0.5), diagonal(3, 3, 3, 3))


def test_knots_common_basis_reproduces_every_task():
    stack = torch.stack([low_rank(2, seed) for seed in range(3)])
    basis, parts = align(stack)
    close(basis @ parts, stack)
    assert basis.shape == (6, 6)
    summed = merged("knots", *stack, density=1.0, agg="sum")
    assert (summed - stack.sum(0)).abs().max() > 1e-3                   # election does change it


def test_knots_of_the_same_task_twice_is_the_task():
    a = low_rank(3, 0)
    close(merged("knots", a, a, density=1.0), a)


def test_wudi_is_the_limit_of_its_iteration():
    """Gradient descent from sum tau on sum ||(M - tau) tau^T||^2 / ||tau||^2."""
    taus = [low_rank(2, seed, (4, 6)) for seed in range(2)]             # leaves two inputs unused
    M = sum(taus)
    grams = [tau.T @ tau / tau.square().sum() for tau in taus]
    step = 0.9 / torch.linalg.matrix_norm(sum(grams), 2)
    for _ in range(20_000):
        M = M - step * sum((M - tau) @ G for tau, G in zip(taus, grams))
    close(merged("wudi", *taus), M, 1e-7)


def test_wudi_loss_is_below_that_of_the_sum():
    taus = [low_rank(6, seed) for seed in range(3)]
    loss = lambda M: sum(((M - t) @ t.T).square().sum() / t.square().sum() for t in taus)
    assert loss(merged("wudi", *taus)) < 0.5 * loss(sum(taus))


def released_iso_cts(stack, common=0.8):
    """The authors' split of the rank, written out for full-rank sums: an independent check."""
    n, T = min(stack.shape[1:]), len(stack)
    each = round((n - int(n * common)) / T)
    U, S, Vt = torch.linalg.svd(stack.sum(0), full_matrices=False)
    U, S, Vt = U[:, :n - T * each], S[:n - T * each], Vt[:n - T * each]
    us, ss, vs = [U], [S], [Vt]
    for tau in stack:
        u, s, v = torch.linalg.svd(tau - U @ U.T @ tau, full_matrices=False)
        us, ss, vs = [*us, u[:, :each]], [*ss, s[:each]], [*vs, v[:each]]
    (p, _, q), (r, _, w) = (torch.linalg.svd(m, full_matrices=False)
                            for m in (torch.cat(us, 1), torch.cat(vs)))
    return torch.cat(ss).mean() * (p @ q) @ (r @ w)


@pytest.mark.parametrize("tasks, common", [(2, 0.8), (3, 0.8), (4, 0.5), (8, 0.8)])
def test_iso_cts_splits_the_rank_as_the_released_code_does(tasks, common):
    g = torch.Generator().manual_seed(tasks)
    stack = torch.randn(tasks, 14, 12, generator=g, dtype=torch.float64)
    close(merged("iso_cts", *stack, common=common), released_iso_cts(stack, common))


def test_iso_cts_gives_every_low_rank_task_a_direction():
    """Eight tasks of rank 4: n = 32, (32 - 25) / 8 rounds to one direction each, 24 are common."""
    g = torch.Generator().manual_seed(0)
    draw = lambda: (torch.randn(48, 4, generator=g, dtype=torch.float64)
                    @ torch.randn(4, 40, generator=g, dtype=torch.float64))
    taus = [draw() for _ in range(8)]
    both = merged("iso_cts", *taus)
    assert torch.linalg.matrix_rank(both) == 32
    assert (both - merged("iso_c", *taus)).norm() > 0.1 * both.norm()


def test_iso_cts_of_tasks_that_cancel_and_of_few_directions():
    a = diagonal(2, 0, 0)
    assert not merged("iso_cts", a, -a, common=0.9).any()             # nothing common, but no error
    assert merged("iso_cts", a, a, a, a, common=0.1).isfinite().all()
