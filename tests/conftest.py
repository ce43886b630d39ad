"""Fixtures: a checkpoint small enough to train in milliseconds, and the real files if present."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")    # tiny tensors: a second thread only costs

import pytest
import torch

import adapters  # noqa: F401
import cli
import models
import runs
import weights

TINY = {"image": 28, "patch": 7, "channels": 1, "width": 16, "depth": 2, "heads": 2, "hidden": 24,
        "mean": [0.5], "std": [0.5]}


def write_checkpoint(folder, seed=4):
    """A ViT of 2 blocks and width 16 at random weights, as a checkpoint folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    weights.write(models.ViT(**TINY).state_dict(), folder / "model.safetensors")
    runs.write_json({"model_type": "vit_encoder"} | TINY, folder / "config.json")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Path of the tiny checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def encoder():
    """A two-block encoder in float64 with random weights."""
    torch.manual_seed(3)
    return models.ViT(**TINY).double()


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
