"""match.py: what a permutation hid is found, and the command says what it did."""

import pytest
import torch

import encoders
from analysis import match
from exchange import huggingface
from rules.matching import permute, permute_stream

SIZES = dict(width=16, depth=2, heads=4, hidden=24)


def shuffled(params, generator):
    """The same encoder with its stream, hidden units and heads in another order."""
    order = lambda n: torch.randperm(n, generator=generator)
    out = permute_stream(params, order(16))
    for block in ("blocks.0", "blocks.1"):
        out = permute(out, block, order(24), order(4))
    return out


def written(folder, seed, **sizes):
    """A small ViT of random weights in a folder of its own."""
    torch.manual_seed(seed)
    folder.mkdir()
    huggingface.write_encoder(encoders.ViT(**SIZES | sizes), folder)
    return folder


def test_an_encoder_and_its_shuffled_self_merge_into_itself():
    torch.manual_seed(0)
    encoder = encoders.ViT(**SIZES).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    batches = list(torch.rand(2, 20, 1, 28, 28, generator=generator, dtype=torch.float64))
    a = match.weights_of(encoder)
    found, likeness = match.merged(encoder, a, shuffled(a, generator), batches)
    assert likeness == pytest.approx(1)
    apart = {name: max((p[k] - a[k]).abs().max() for k in a) for name, p in found.items()}
    for name in ("mean, stream and units matched", match.WRITTEN):
        assert apart[name] < 1e-8
    for name in ("mean", "mean, stream matched", "PLeaS, units matched"):
        assert apart[name] > 1e-2


def test_the_command_writes_what_it_merged(command, tmp_path, monkeypatch):
    a, b = (written(tmp_path / name, seed) for seed, name in enumerate("ab"))
    made, merged = [], match.merged
    monkeypatch.setattr(match, "merged", lambda *args: made.append(merged(*args)) or made[-1])
    words = [a, b, "--examples", 4, "--limit", 16, "--out", tmp_path / "merged"]
    code, out, err = command(match.main, *words)
    assert code == 0, err
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert rows == ["encoder", *made[0][0]] and "8 tasks, 4 unlabelled inputs of each" in out
    read = match.weights_of(encoders.load(tmp_path / "merged"))
    for k, v in made[0][0][match.WRITTEN].items():
        torch.testing.assert_close(read[k], v)
    code, _, err = command(match.main, *words)
    assert code == 2 and "exists: give the name of a new folder" in err


def test_the_command_takes_texts(command):
    code, out, err = command(match.main, "bert", "bert", "--examples", 4, "--limit", 16)
    assert code == 0, err
    assert "correlate with 1.00" in out


def test_encoders_that_cannot_be_matched(command, tmp_path):
    a, b = (written(tmp_path / name, 0, heads=heads) for name, heads in (("a", 4), ("b", 2)))
    for pair in (a, b), ("vit", "bert"):
        code, _, err = command(match.main, *pair)
        assert code == 2 and "not of one architecture" in err
    code, _, err = command(match.main, a, a, "--examples", 0)
    assert code == 2 and "--examples 0" in err
    code, _, err = command(match.main, a, a, "--examples", 4, "--limit", 1)
    assert code == 2 and "a linear probe needs at least 2 training examples" in err
