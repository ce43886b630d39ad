"""PLeaS: the least-squares fit, equal models, permuted models, and the mean of the outputs."""

import pytest
import torch

from merge import RULES
from rules import matching, pleas
from support import HEAD_ORDER, UNIT_ORDER, activations_of, draw, images, noise, refuses, same

KEYS = ("q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias", "out.weight", "out.bias",
        "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def test_least_squares_against_lstsq():
    Z, Y, start = draw(30, 5), draw(30, 4, seed=1), draw(4, 5, seed=2)
    torch.testing.assert_close(pleas.least_squares(Z, Y, start, 1e-13),
                               torch.linalg.lstsq(Z, Y).solution.T)
    scale = (0.3 * Z.square().sum(0).mean()).sqrt()              # a ridge is five more rows
    rows = torch.cat([Z, scale * torch.eye(5)]), torch.cat([Y, scale * start.T])
    torch.testing.assert_close(pleas.least_squares(Z, Y, start, 0.3),
                               torch.linalg.lstsq(*rows).solution.T)


def test_what_no_input_shows_keeps_its_start():
    """One row e_1 with target 7: the other column stays; without inputs everything does."""
    start, Z = draw(1, 2), torch.tensor([[1.0, 0]])
    W = pleas.least_squares(Z, torch.tensor([[7.0]]), start)
    assert W[0, 0] == pytest.approx(7, abs=1e-4) and W[0, 1] == start[0, 1]
    assert pleas.least_squares(0 * Z, torch.tensor([[7.0]]), start).equal(start)
    refuses("ridge 0.0 must be above 0", pleas.least_squares, Z, Z, start, 0.0)


def pleas_problem(encoder, size=0.01, keys=KEYS):
    """Weights of both blocks by `keys`, two task vectors of entries `size`, and the data."""
    params = dict(encoder.named_parameters())
    base = {k: v.detach().clone() for k, v in params.items() if k.startswith("blocks.")
            and k.split(".", 2)[2] in keys}
    full = activations_of(encoder)
    batches = [images(10, seed=21), images(10, seed=22)]
    return base, [noise(base, size, s) for s in (1, 2)], dict(activations=full, batches=batches)


def test_pleas_of_equal_tasks_is_the_task(encoder):
    base, (tau, _), data = pleas_problem(encoder, 0.1)
    same(RULES["pleas"](base, [tau, tau], heads=2, **data), {k: base[k] + tau[k] for k in base},
         atol=1e-8, rtol=0)


def test_pleas_of_a_model_and_its_permutation_is_the_model(encoder):
    base, (tau, _), data = pleas_problem(encoder, 0.1)
    a = {k: base[k] + tau[k] for k in base}
    b = matching.permute(a, "blocks.0", UNIT_ORDER, HEAD_ORDER)
    b = matching.permute(b, "blocks.1", UNIT_ORDER)
    taus = [tau, {k: b[k] - base[k] for k in base}]
    same(RULES["pleas"](base, taus, heads=2, **data), a, atol=1e-6, rtol=0)
    k = "blocks.0.fc1.weight"
    assert (RULES["average"](base, taus)[k] - a[k]).norm() > 1


def test_pleas_averages_the_first_layer_and_fits_the_last_to_the_mean_output(encoder):
    """q of the first block has the same inputs in both models, out of the last has not."""
    base, taus, data = pleas_problem(encoder, 0.1, ("q.weight", "out.weight"))
    merged = RULES["pleas"](base, taus, **data)
    k = "blocks.0.q.weight"
    mean = base[k] + (taus[0][k] + taus[1][k]) / 2
    torch.testing.assert_close(merged[k], mean, atol=1e-9, rtol=0)
    k = "blocks.1.out.weight"
    (A, X), (B, Y) = ((p[k], data["activations"](p, torch.cat(data["batches"]))[k].detach())
                      for p in ({n: base[n] + tau[n] for n in base} for tau in taus))
    Z = (X + Y) / 2
    left = torch.linalg.lstsq(Z, (X - Y) @ (A - B).T / 4).solution.T
    assert left.norm() > 1e-3
    assert (merged[k] - (A + B) / 2 - left).norm() < 1e-3 * left.norm()


@pytest.mark.parametrize("dropped", ["fc1.bias", "fc1.weight", "fc2.weight"])
def test_units_stay_in_place_where_a_key_is_missing(encoder, dropped):
    """Without fc1.bias a permutation would change the function."""
    keys = [k for k in KEYS if k != dropped]
    base, (tau, _), data = pleas_problem(encoder, 0.0, keys)
    calls = []
    activations = lambda p, x: calls.append(p) or data["activations"](p, x)
    RULES["pleas"](base, [tau, noise(base, 0.5)], batches=data["batches"], activations=activations)
    before, after = calls[len(calls) // 3], calls[-1]      # a, b, b again, on every batch
    assert all(torch.equal(before[k], after[k]) for k in base)


def test_fine_tunes_of_one_base_are_matched_already(encoder):
    base, taus, data = pleas_problem(encoder, 0.02)
    a, b = ({k: base[k] + tau[k] for k in base} for tau in taus)
    seen = [data["activations"](p, torch.cat(data["batches"])) for p in (a, b)]
    for block in ("blocks.0", "blocks.1"):
        fixed = matching.match_mlp(block, seen) == torch.arange(24)
        assert fixed.double().mean() >= 0.95
        assert matching.match_heads(a, b, block, 2, seen).tolist() == [0, 1]
