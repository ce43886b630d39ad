"""Fixtures: a checkpoint small enough to train in milliseconds, and the real files if present."""

import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")    # tiny tensors: a second thread only costs

import pytest
import torch

import encoders
import merge
import train
from analysis import protocols
from experiment import cli
from support import QUICK, TINY, write_checkpoint, write_text_checkpoint


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


@pytest.fixture
def fit(command, tiny, tmp_path):
    """fit("--adapter", "lora", ...) trains the tiny encoder for 6 steps into tmp_path/runs."""
    def call(*words):
        return command(train.main, "--model", tiny,
                       "--out", tmp_path / "runs/{adapter}-{task}-s{seed}", *QUICK, *words)
    return call


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """trained("--adapter", "lora", ...) -> [run folders], made as by `fit` and once: only read."""
    made = {}

    def call(*words):
        if words not in made:
            out = tmp_path_factory.mktemp("trained")
            with pytest.MonkeyPatch.context() as patch:
                line = ["--model", tiny, "--out", out / "{adapter}-{task}-s{seed}", *QUICK, *words]
                patch.setattr(sys, "argv", ["train.py", *map(str, line)])
                train.main()
            made[words] = sorted(out.iterdir())
        return made[words]
    return call


@pytest.fixture
def small_grids(monkeypatch):
    """Every instrument on fewer subsets and coefficients."""
    for name, few in (("subsets", {"per_size": 1, "lams": (0.3, 1.0)}),
                      ("unseen", {"rule": "ties"}), ("corruption", {"rule": "ties"}),
                      ("landscape", {"lams": (0.0, 1.0)}), ("disentangle", {"lams": (0.0, 1.0)})):
        whole = protocols.INSTRUMENTS[name]
        part = functools.update_wrapper(functools.partial(whole, **few), whole)
        monkeypatch.setitem(protocols.INSTRUMENTS, name, part)
    quick = functools.partial(merge.RULES["lorahub"], budget=4)
    monkeypatch.setitem(merge.RULES, "lorahub", functools.update_wrapper(
        quick, merge.RULES["lorahub"]))


@pytest.fixture(scope="session")
def real():
    """Folder of real checkpoints and data sets, from the environment variable REAL_DATA."""
    folder = os.environ.get("REAL_DATA")
    if not folder:
        pytest.skip("set REAL_DATA to a folder of checkpoints and data (see docs/real-data.md)")
    return Path(folder)
