"""Figures of docs/: each is drawn from the files it names, or says which command makes them."""

import json
from types import SimpleNamespace

import pytest
import torch

import lora
from analysis import plots
from bench import compare, figures

RULES = (*figures.RULES, "base")


@pytest.fixture
def results(tmp_path):
    """The files of bench.tables and bench.compare, with made-up numbers."""
    for kind in figures.KINDS:
        groups = {seed: {"rows": {rule: {"absolute": 0.1 * i + 0.01 * seed}
                                  for i, rule in enumerate(RULES, 1)}} for seed in (0, 1, 2)}
        for step in ("claim", "text"):
            (tmp_path / f"{step}-{kind}.json").write_text(json.dumps(groups))
    for i, kind in enumerate(figures.THREE):
        plane = {"lams": [0, 0.5, 1], "pair": ["x", "y"],
                 "loss": (torch.arange(9.0).reshape(3, 3) + 1 + i).tolist()}
        energy = {"single": {"x": [0.5, 1.0], "y": [0.7, 1.0]}, "sum": [0.4, 0.8]}
        (tmp_path / f"look-{kind}.json").write_text(json.dumps(
            {"analysis": {f"{kind} landscape": plane, f"{kind} spectrum": energy}}))
    for name in figures.FACTORS:
        for task in figures.drawn.TASKS:
            folder = tmp_path / f"{name}-0.001-{task}-s0"
            folder.mkdir()
            lines = [f"{i},{2 if i <= 10 else 1},0.1" for i in range(1, 21)]
            (folder / "log.csv").write_text("\n".join(["step,loss,lr", *lines]))
    for i, name in enumerate(sorted(lora.ADAPTERS)):
        compared(tmp_path, name, {"average": 0.5 + i / 500, "task_arithmetic": 0.7 - i / 500,
                                  "single": 0.9})
    return tmp_path


def compared(runs, name, scores):
    """The walk of an adapter with its default as the best rate, three seeds, and their merge."""
    args = SimpleNamespace(out=runs, rates=compare.RATES, tasks=list(figures.drawn.TASKS))
    own, = compare.untried(args, name)
    at = compare.RATES.index(own)
    for rate, seed in [*((rate, 0) for rate in compare.RATES[at - 1:at + 2]), (own, 1), (own, 2)]:
        for task in args.tasks:
            folder = compare.folder(args, name, rate, seed, task)
            folder.mkdir(exist_ok=True)
            result = {"val": 0.9 if rate == own else 0.5, "test": 0.9}
            (folder / "result.json").write_text(json.dumps(result))
    rows = {rule: {"absolute": score} for rule, score in scores.items()}
    (runs / f"{name}-{own:g}-{'+'.join(args.tasks)}.json").write_text(
        json.dumps({seed: {"rows": rows} for seed in (0, 1, 2)}))


def test_all_figures_are_drawn(command, results):
    pytest.importorskip("matplotlib", reason="needs matplotlib: see requirements-figures.txt")
    words = ["--folder", results, "--runs", results, "--out", results / "out"]
    code, out, err = command(figures.main, *words)
    assert code == 0, err
    assert sorted(p.stem for p in (results / "out").iterdir()) == sorted(figures.FIGURES)
    (results / "look-lora.json").unlink()
    code, _, err = command(figures.main, "landscape", *words)
    assert code == 2 and "look-lora.json: python -m bench.tables look" in err
    code, _, err = command(figures.main, "bar", *words)
    assert code == 2 and "bar" in err


def test_what_is_drawn_is_what_was_read(command, results, monkeypatch):
    drawn = {}
    for name in ("bars", "planes", "curves", "dots"):
        monkeypatch.setattr(plots, name, lambda data, *rest, name=name, **more:
                            drawn.setdefault(name, []).append((data, rest, more)))
    monkeypatch.setattr(plots, "folder", lambda path: path)
    code, _, err = command(figures.main, "bars", "landscape", "spectrum", "losses", "adapters",
                           "--folder", results, "--runs", results)
    assert code == 0, err
    (heights, rest, _), = drawn["bars"]
    assert heights["LoRA"][0] == pytest.approx([0.1, 0.11, 0.12])
    assert rest[-1] == pytest.approx(0.6)                     # bars start at the row base
    (maps, rest, _), = drawn["planes"]
    assert list(maps) == ["full fine-tuning", "LoRA", "L-LoRA, whole model"]
    assert rest[-2:] == (1.0, 3.0)                            # one scale, from the least of all
    (energy, _, _), (loss, _, _) = drawn["curves"]
    assert energy["LoRA, one task"] == [(1, pytest.approx(0.6)), (2, 1.0)]
    assert energy["LoRA, sum of eight"] == [(1, 0.4), (2, 0.8)]
    assert loss["PiSSA"] == [(5, 2.0), (15, 1.0)]
    (rows, _, _), = drawn["dots"]
    assert list(rows) == sorted(lora.ADAPTERS, reverse=True)          # by task arithmetic, upwards
    i = sorted(lora.ADAPTERS).index("bat")                    # 1, but for adapters of other tests
    assert rows["bat"] == pytest.approx([0.5 + i / 500, 0.7 - i / 500, 0.9])
    (results / "dora-0.001-count-s2" / "result.json").unlink()
    code, _, err = command(figures.main, "adapters", "--runs", results)
    assert code == 2 and "python -m bench.compare --adapters dora" in err
