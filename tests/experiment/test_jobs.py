"""Several processes give what one gives: torchrun on a shared batch, --jobs on separate pieces."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from errors import BadInput
from experiment import jobs

ROOT = Path(__file__).parents[2]


def trained(folder):
    return torch.load(folder / "adapter.pt", weights_only=True)["trained"]


def torchrun(*words):
    """train.py in two processes that talk by sockets of this machine."""
    try:
        socket.create_server(("localhost", 0)).close()
    except OSError:
        pytest.skip("torchrun needs a socket on localhost")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
              "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return subprocess.run([*launch, "train.py", *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("words", [
    ("--adapter", "lora", "--joint", "--task", "digits,count"),
    ("--adapter", "l_lora", "--task", "digits", "--linearize", "model"),
    ("--adapter", "rosa", "--task", "digits", "--set", "warmup=3", "--set", "collect=2"),
    ("--adapter", "adalora", "--task", "digits", "--rank", "6", "--set", "target=3")],
    ids=lambda words: words[1])
def test_two_processes_train_like_one_on_the_whole_batch(words, command, tiny, tmp_path):
    """Batches of 7, so that the parts differ; hooks, supports and penalties see the sums."""
    words = [*words, "--model", tiny, "--dtype", "float64", "--batch", 7, "--steps", 12,
             "--limit", 50]
    code, _, err = command(train.main, *words, "--out", tmp_path / "one")
    assert code == 0, err
    done = torchrun(*words, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: python eval.py") == 1                  # one of them speaks
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()].count("two.partial") == 0
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-9, rtol=0)
    logs = [(tmp_path / n / "log.csv").read_text().splitlines()[-1] for n in ("one", "two")]
    assert abs(float(logs[0].split(",")[1]) - float(logs[1].split(",")[1])) < 1e-9


def test_a_batch_smaller_than_the_processes_is_refused(tiny, tmp_path):
    done = torchrun("--model", tiny, "--batch", 1, "--out", tmp_path / "r")
    assert done.returncode != 0 and "--batch 1 is too small for 2 processes" in done.stderr
    assert not (tmp_path / "r").exists()


def test_jobs_train_the_same_bits(fit, tmp_path):
    words = ["--adapter", "lora", "--task", "digits,count", "--steps", 3]
    assert fit(*words, "--out", tmp_path / "one-{task}")[0] == 0
    code, out, err = fit(*words, "--out", tmp_path / "two-{task}", "--jobs", 2)
    assert code == 0 and out.count("val ") == 4, err
    for task in ("digits", "count"):
        one, two = (trained(tmp_path / f"{n}-{task}") for n in ("one", "two"))
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_jobs_merge_the_same_numbers(fit, command, tmp_path):
    """Rules in other processes, and what is wrong with one of them, reach this one."""
    assert fit("--adapter", "lora", "--task", "digits,count", "--steps", 3)[0] == 0
    folders, rows = sorted((tmp_path / "runs").iterdir()), []
    words = [*folders, "--merge", "ties,fitted,emr", "--sweep", "lam=0:1:0.5", "--limit", 40]
    for count in (1, 2):
        code, out, err = command(evaluation.main, *words, "--jobs", count, "--json",
                                 tmp_path / "x.json")
        assert code == 0 and "| emr" in out, err
        found = json.loads((tmp_path / "x.json").read_text())["all"]["rows"]
        rows.append({n: (r["scores"], r.get("chosen"), r["share"]) for n, r in found.items()})
    assert rows[0] == rows[1] and list(rows[0]) == ["base", "single", "ties", "fitted", "emr"]
    words[2:] = ["--merge", "ties,dare", "--set", "density=7.0", "--jobs", 2]
    code, _, err = command(evaluation.main, *words)
    assert code == 2 and "density 7.0 is outside (0, 1]" in err
    assert command(evaluation.main, *words[:-1], 0)[0] == 2
    assert "TQDM_DISABLE" not in os.environ


def fails(n):
    """A unit of work for the test below; it must be importable."""
    if n == 2:
        raise BadInput("two")
    return n * n


@pytest.mark.parametrize("count", [1, 2])
def test_spread_keeps_the_order_and_raises(count):
    assert jobs.spread(fails, [(n,) for n in (0, 3, 1, 5)], count, "numbers") == [0, 9, 1, 25]
    with pytest.raises(BadInput, match="two"):
        jobs.spread(fails, [(n,) for n in (0, 2, 1)], count, "numbers")


def naps(seconds, path):
    """Leaves a trace; fails at once where it has no time."""
    path.write_text("began")
    if not seconds:
        raise BadInput("no time")
    time.sleep(seconds)


def test_an_error_ends_what_is_running_and_starts_nothing(tmp_path):
    """The long unit is not waited for, and most of those behind it never begin."""
    units = [(60, tmp_path / "0"), (0, tmp_path / "1"), *((60, tmp_path / f"{n}") for n in "2345")]
    began = time.monotonic()
    with pytest.raises(BadInput, match="no time"):
        jobs.spread(naps, units, 2, "naps")
    assert time.monotonic() - began < 50 and not (tmp_path / "5").exists()
