"""match.py: what a permutation hid is found, and the command says what it did."""

import pytest
import torch

import match
import models
from merge_structured import permute, permute_stream


def shuffled(params, generator):
    """The same encoder with its stream, hidden units and heads in another order."""
    order = lambda n: torch.randperm(n, generator=generator)
    out = permute_stream(params, order(16))
    for block in ("blocks.0", "blocks.1"):
        out = permute(out, block, order(24), order(4))
    return out


def test_an_encoder_and_its_shuffled_self_merge_into_itself():
    torch.manual_seed(0)
    encoder = models.ViT(width=16, depth=2, heads=4, hidden=24).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.rand(20, 1, 28, 28, generator=generator, dtype=torch.float64)] * 2
    a = match.weights_of(encoder)
    found, likeness = match.merged(encoder, a, shuffled(a, generator), batches)
    assert likeness == pytest.approx(1)
    apart = {name: max((p[k] - a[k]).abs().max() for k in a) for name, p in found.items()}
    for name in ("mean, stream and units matched", "PLeaS, stream and units matched"):
        assert apart[name] < 1e-8
    for name in ("mean", "mean, stream matched", "PLeaS, units matched"):
        assert apart[name] > 1e-2


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_command_merges_two_checkpoints(command, tmp_path, name):
    words = [name, name, "--examples", 4, "--limit", 16, "--out", tmp_path / "merged"]
    code, out, err = command(match.main, *words)
    assert code == 0, err
    rows = [line.split("|")[1:4] for line in out.splitlines() if line.startswith("| ")][1:]
    assert [cells[0].strip() for cells in rows][:3] == ["a", "b", "mean"] and len(rows) == 7
    assert all(cells[1:] == rows[0][1:] for cells in rows)         # with itself all are one
    for k, v in models.load(name).state_dict().items():
        torch.testing.assert_close(models.load(tmp_path / "merged").state_dict()[k], v,
                                   atol=1e-3, rtol=1e-3)
    code, _, err = command(match.main, *words)
    assert code == 2 and "exists: give the name of a new folder" in err


def test_encoders_that_cannot_be_matched(command):
    code, _, err = command(match.main, "vit", "bert")
    assert code == 2 and "not of one architecture" in err
    assert command(match.main, "vit", "vit", "--examples", 0)[0] == 2
