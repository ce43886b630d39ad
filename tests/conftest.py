"""Fixtures: a checkpoint small enough to train in milliseconds, and the real files if present."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")    # tiny tensors: a second thread only costs

import pytest
import torch

import adapters  # noqa: F401
from experiment import cli
import encoders
from experiment import run_folder
from encoders import safetensors
from encoders.bert import BERT

TINY = {"image": 28, "patch": 7, "channels": 1, "width": 16, "depth": 2, "heads": 2, "hidden": 24,
        "mean": [0.5], "std": [0.5]}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
TINY_TEXT = {"vocab": len(WORDS), "positions": 64, "types": 2, "width": 16, "depth": 2, "heads": 2,
             "hidden": 24}


def write_checkpoint(folder, seed=4):
    """A ViT of 2 blocks and width 16 at random weights, as a checkpoint folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    safetensors.write(encoders.ViT(**TINY).state_dict(), folder / "model.safetensors")
    run_folder.write_json({"model_type": "vit_encoder"} | TINY, folder / "config.json")
    return folder


def write_text_checkpoint(folder, seed=4):
    """A BERT of 2 blocks and width 16 at random weights that spells, as a checkpoint folder."""
    folder.mkdir(parents=True)
    safetensors.write(text_encoder(seed).state_dict(), folder / "model.safetensors")
    run_folder.write_json({"model_type": "bert_encoder"} | TINY_TEXT, folder / "config.json")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def text_encoder(seed=3):
    """A two-block BERT with random weights, and embeddings large enough to tell words apart."""
    torch.manual_seed(seed)
    model = BERT(**TINY_TEXT, sep=3)
    with torch.no_grad():
        for table in (model.word, model.position, model.segment):
            table.weight.mul_(20)
    return model


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory):
    """Path of the tiny text checkpoint."""
    return write_text_checkpoint(tmp_path_factory.mktemp("models") / "tiny-text")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Path of the tiny checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def encoder():
    """A two-block encoder in float64 with random weights."""
    torch.manual_seed(3)
    return encoders.ViT(**TINY).double()


@pytest.fixture
def command(monkeypatch, capsys):
    """command(main, "--flag", ...) runs a script in this process: (exit code, stdout, stderr)."""
    def call(main, *words):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
        try:
            cli.run(main)
            code = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err
    return call


@pytest.fixture(scope="session")
def real():
    """Folder of real checkpoints and data sets, from the environment variable REAL_DATA."""
    folder = os.environ.get("REAL_DATA")
    if not folder:
        pytest.skip("set REAL_DATA to a folder with real checkpoints and data (see the README)")
    return Path(folder)


def perturb(module, size=0.3, seed=1):
    """Move every trained parameter away from its start; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module
