"""bench runs in all its parts; what its tables claim is measured, not asserted."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import merge
from bench import __main__ as bench
from bench import compare, growth, merging, steps

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
    """Beside the base: a mean that takes task vectors one by one holds three models; TIES the T of
    them, trimmed and agreeing, and what one tensor needs."""
    out = apart("--rules", "average,ties", "--millions", 1.8, "--rounds", 1)
    held = {row[1].strip(): float(row[5]) for row in
            (line.split("|") for line in out.splitlines()) if len(row) > 5 and "." in row[5]}
    assert 2.5 < held["average"] < 3.5 and 16 < held["ties"] < 24     # 3 and 2 T + 1, and slack
    for words, told in ((["--plot", "there"], "--plot draws --growth"),
                        (["--growth", "--json", "x"], "leave it out with --growth"),
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


def test_compare_walks_the_rates(monkeypatch):
    """From the default up while it gets better, down while within a point: and no further."""
    curve = {1e-4: 0.9, 3e-4: 0.93, 1e-3: 0.945, 3e-3: 0.95, 1e-2: 0.94, 3e-2: 0.2}
    args, known = SimpleNamespace(rates=list(curve)), {}
    monkeypatch.setattr(compare, "validation", lambda args, adapter: dict(sorted(known.items())))
    steps = []
    while todo := compare.untried(args, "lora"):
        steps.append(todo)
        known |= {rate: curve[rate] for rate in todo}
    assert steps == [[1e-3], [3e-4, 3e-3], [1e-2]]
    assert compare.best_rate(args, "lora") == 1e-3
    known[3e-3] = 0.956
    assert compare.best_rate(args, "lora") == 3e-3
    known.clear(), known.update({1e-4: 0.90, 3e-4: 0.8})
    assert compare.untried(args, "lora") == []                    # 1e-4 is the end of the grid


def test_compare_chooses_on_val_and_reports_every_seed(command, tiny, tmp_path, monkeypatch):
    """Finished runs are not trained again; the rate of the table is chosen on validation."""
    monkeypatch.setattr(compare, "SEEDS", (0, 1))
    out = tmp_path / "table"
    out.mkdir()
    times = (("lora_fa", "off", 0.9), ("lora_fa", "off, jvp", 7), ("lora", "layer", 8))
    (out / "bench.json").write_text(json.dumps(
        [dict(zip(("adapter", "linearize", "time"), row)) for row in times]))
    seed = lambda *numbers: {"rows": {name: {"absolute": n} for name, n in zip(
        ("single", "average", "task_arithmetic"), numbers)}}
    (out / "lora_fa-0.2-count.json").write_text(json.dumps({0: seed(0.9, 0.5, 0.7),
                                                            1: seed(0.8, 0.6, 0.7)}))
    for rate, val in (("0.1", 0.8), ("0.2", 0.9)):
        for seed in (0, 1):
            folder = out / f"lora_fa-{rate}-count-s{seed}"
            folder.mkdir()
            numbers = {"val": val, "test": val - 0.1 * seed, "trainable": 7}
            (folder / "result.json").write_text(json.dumps(numbers))
            made = {"steps": 200, "model": str(tiny)}
            (folder / "config.json").write_text(json.dumps(made))
    words = ["--adapters", "lora_fa", "--rates", "0.1,0.2", "--tasks", "count", "--model", tiny]
    code, text, err = command(compare.main, *words, "--out", out)
    assert code == 0, err
    row = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert row[:9] == ["lora_fa", "2308.03303", "7", "8", "0.2", "0.850 ± 0.071", "0.550 ± 0.071",
                       "0.700 ± 0.000", "0.90"]
    code, _, err = command(compare.main, "--adapters", "lora_fa", "--tasks", "cuont")
    assert code == 2 and "unknown task 'cuont': did you mean 'count'" in err
    code, _, err = command(compare.main, *words, "--out", out, "--steps", 300)
    assert code == 2 and "was made with --steps 200: give another --out" in err
    code, _, err = command(compare.main, *words, "--steps", 0, "--out", tmp_path / "new")
    assert code == 2 and "--steps 0: give a whole number of 1 or more" in err
