"""bench.py runs in all its parts; what its tables claim is measured, not asserted."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import merge
from bench import __main__ as bench
from bench import growth, merging, steps

ROOT = Path(__file__).parents[2]


def apart(*words):
    """What steps.py prints in a process with a heap of its own: it sets the allocator."""
    done = subprocess.run([sys.executable, "-m", "bench", *map(str, words)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bench_compares_with_lora(command):
    words = ["--rounds", 2, "--steps", 1, "--batch", 2]
    code, out, _ = command(bench.main, "--adapters", "lora_fa", *words)
    rows = [line.split("|") for line in out.splitlines() if line.startswith("| lora")]
    assert code == 0 and [row[1].strip() for row in rows] == ["lora", "lora_fa"]
    assert rows[0][5].split() == ["1.00", "(1.00", "to", "1.00)"]
    assert float(rows[1][7]) < 1                         # no input is kept for a frozen A
    assert command(bench.main, "--adapters", "lra")[0] == 2
    code, _, err = command(bench.main, "--rounds", 1)
    assert code == 2 and "--rounds 1" in err


def test_the_released_form_is_the_closed_form():
    """A layer expanded in all its parameters, as in the paper's code, has LLoRA's gradients."""
    ours, released = (steps.Contender(*kind, 2) for kind in
                      (("l_lora", "layer"), ("lora", "off" + steps.RELEASED)))
    grads = []
    for contender in (ours, released):
        with torch.no_grad():                                # away from B = 0, the same in both
            generator = torch.Generator().manual_seed(2)
            for p in contender.params:
                p.add_(0.02 * torch.randn(p.shape, generator=generator))
        loss = contender.loss()
        grads.append([loss, *torch.autograd.grad(loss, [*contender.params],
                                                 materialize_grads=True)])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert all(g.abs().max() > 0 for g in grads[0][2::2])    # of B


def test_bench_of_rules_counts_what_they_hold(command):
    """Beside the base, a streaming rule holds its result and the task vector at hand."""
    out = apart("--rules", "average,ties", "--millions", 8, "--rounds", 1)
    held = {row[1].strip(): float(row[5]) for row in
            (line.split("|") for line in out.splitlines()) if len(row) > 5 and "." in row[5]}
    assert 1.5 < held["average"] < 2.5 and 8 < held["ties"] < 10.5    # 2 and T + 2, and slack
    for words, told in ((["--plot", "there"], "--plot draws --growth"),
                        (["--growth", "--rules", "ties"], "--rules and --growth are tables")):
        code, _, err = command(bench.main, *words)
        assert code == 2 and told in err
    code, _, err = command(bench.main, "--rules", "fisher")
    assert code == 2 and "unknown rule without data 'fisher'" in err


@pytest.mark.parametrize("threshold", [merging.sort, merging.kthvalue])
def test_the_recipe_is_ties(threshold):
    """What ours is compared with computes the same thing."""
    base, make = merging.task_vectors(0.1, 64)
    taus = [make(t) for t in range(3)]
    want = merge.RULES["ties"](base, taus, lam=1.0)
    for k, v in merging.ties_by(threshold, base, taus).items():
        torch.testing.assert_close(v, want[k])


def test_bench_of_adamerging():
    """Three ways to one gradient; the weights in the graph, once for every task, hold the most."""
    out = apart("--rules", "adamerging", "--millions", 1.8, "--rounds", 1, "--batch", 2)
    assert float(out.split("at most ")[1].split()[0]) < 1e-5 and ", 2 images a task" in out
    held = [int(line.split("|")[4]) for line in out.splitlines()
            if line.startswith(("| weights", "| in the graph"))]
    assert held[0] < held[1] < held[2]


def test_bench_of_growth(command, monkeypatch):
    small = {"rank": (2, 4), "depth": (1, 2), "batch": (2, 4), "tasks": (2, 4)}
    monkeypatch.setattr(growth, "SIZES", small)
    for name in ("keep_freed_memory", "stop_keeping_freed_memory"):
        monkeypatch.setattr(growth, name, lambda: None)
    code, out, err = command(bench.main, "--growth", "--rounds", 1)
    assert code == 0, err
    lines = [line.split("|")[1:-1] for line in out.splitlines() if " / " in line]
    rows = {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}
    assert list(rows) == ["LoRA, rank", "L-LoRA, rank", "LoRA, depth", "L-LoRA, depth",
                          "LoRA, batch", "L-LoRA, batch", "average, tasks", "ties, tasks"]
    sizes, _, _, kept, power = rows["LoRA, depth"]
    small, large = (float(v) for v in kept.split("/"))
    assert sizes == "1 / 2" and large > small and float(power) == pytest.approx(1, abs=0.05)
    assert growth.exponent([1, 3, 12]) == 2


def test_bench_without_the_library_says_how_to_get_it(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    code, _, err = command(bench.main, "--peft", "tiny")
    assert code == 2 and "pip install -r requirements-exchange.txt" in err
