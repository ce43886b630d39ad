"""bench.claims: effects by hand from three seeds, the verdicts, and what is missing by name."""

import json
import re

import pytest

import errors
from bench import claims, tables
from support import refuses


@pytest.mark.parametrize("effects, word", [
    ([0.004, 0.006, 0.008], "confirmed"), ([0.004, 0.005, 0.005], "not seen"),
    ([-0.001, 0.1, 0.1], "not seen"), ([0.0, 0.1, 0.1], "not seen"),
    ([-0.004, -0.006, -0.008], "contradicted"), ([-0.004, -0.005, -0.005], "not seen"),
    ([0.001, -0.1, -0.1], "not seen"),
    ([1 / 1600, 7 / 1600, 16 / 1600], "confirmed")])             # .005 but for rounding
def test_a_verdict_needs_every_seed_and_half_a_point(effects, word):
    assert claims.verdict(effects) == word


def write(folder, file, **rows):
    """FILE.json with numbers of two seeds for each row."""
    groups = {str(seed): {"rows": {row: {"absolute": values[seed], "normalised": values[seed],
                                         "share": values[seed]} for row, values in rows.items()}}
              for seed in range(2)}
    (folder / f"{file}.json").write_text(json.dumps(groups))


def test_an_effect_is_a_difference_within_a_seed(tmp_path):
    """.5 - .4 and .7 - .4: mean .2, standard deviation .2 / sqrt 2 = .141."""
    write(tmp_path, "claim-lora", ties=(0.5, 0.7), average=(0.4, 0.4))
    more, less = (("claim-lora", row, "share") for row in ("ties", "average"))
    effects = claims.differences(tmp_path, more, less)
    assert effects == pytest.approx([0.1, 0.3])
    assert claims.cells(effects) == ["+0.200 ± 0.141", "confirmed"]
    effects = claims.differences(tmp_path, less, more)
    assert claims.cells(effects) == ["-0.200 ± 0.141", "contradicted"]


def look(folder, kind, box, left):
    """What five steps write for two seeds: two tasks or corruptions each."""
    found, sizes = {}, [["average", 2, 28, "-", box, left], ["task_arithmetic", 2, 28, 0.5, 9, 9],
                        *(["task_arithmetic", n, 6, 0.5, 9, n * box] for n in range(3, 8))]
    for seed in range(2):
        found |= {f"{kind} {seed} disentangle": {"box": box, "xi": [[box, 0.4]] * 2},
                  f"{kind} {seed} subsets": {"rows": sizes},
                  f"{kind} {seed} forget": {"rows": [["x", "0.3", 0.9, 0.4, 0.8, 0.7],
                                                     ["y", "0.3", 0.9, 0.6, 0.8, 0.8]]},
                  f"{kind} {seed} analogy": {"rows": [["x", 0.4, 0.6, 0.5, "+y +z", "+y +z -w"]]},
                  f"{kind} {seed} unseen": {"rows": [["x", 0.4, 0.5, left, 0.9]] * 2},
                  f"{kind} {seed} corruption": {"rows": [["clean", 0, 0.1, 0.2, 0.9],
                                                         ["jpeg", 1, 0.1, 0.5, 0.4]]}}
    for step in ("disentangle", "subsets", "apart", "forget", "analogy"):
        (folder / f"{step}-{kind}.json").write_text(json.dumps({"analysis": found}))


def train(folder, losses):
    """Logs of eight runs of seed 0: the loss of 100 steps, and later ones that do not count."""
    for name, loss in losses.items():
        for task in claims.TASKS:
            run = folder / f"{name}-{task}-s0"
            run.mkdir(exist_ok=True)
            lines = [f"{step},{loss if step <= 100 else 50 * loss}" for step in range(1, 201)]
            (run / "log.csv").write_text("\n".join(["step,loss", *lines]))


def walk(folder, **tests):
    """Results of bench.compare: 1e-3 is best on validation, `test` that of every seed."""
    for name, seeds in tests.items():
        for rate, val in ((1e-4, 0.7), (3e-4, 0.8), (1e-3, 0.9), (3e-3, 0.8), (1e-2, 0.7)):
            for seed in range(3):
                for i, task in enumerate(claims.TASKS):
                    run = folder / f"{name}-{rate:g}-{task}-s{seed}"
                    run.mkdir(exist_ok=True)
                    test = seeds[seed] + (-1) ** i * 0.1 if rate == 1e-3 else 0.0
                    (run / "result.json").write_text(json.dumps({"val": val, "test": test}))


def test_adapters_alone_at_their_own_rates(tmp_path):
    """Differences of means over tasks, seed by seed: only runs at the best rate count."""
    walk(tmp_path, lora=(0.5, 0.6, 0.7), dora=(0.6, 0.7, 0.9))
    assert claims.alone(tmp_path, "dora") == pytest.approx([0.6, 0.7, 0.9])
    with pytest.raises(errors.BadInput, match="bench.compare --adapters pissa"):
        claims.alone(tmp_path, "pissa")
    (tmp_path / "dora-0.001-digits-s2/result.json").unlink()
    with pytest.raises(errors.BadInput, match="bench.compare --adapters dora"):
        claims.alone(tmp_path, "dora")


def test_what_instruments_found(tmp_path):
    """Negation: .9 to .5, others .8 to .75. Analogy: .5 from .6. Unseen: .5 from .4, then .7.
    Corrupted, without the clean row: .4 from .5. Three to seven tasks: .6 to 1.4, mean 1."""
    look(tmp_path, "lora", 0.2, 0.7)
    effects = [claims.looked(tmp_path, "lora", *which) for _, _, *which in claims.LOOKED]
    for seeds, value in zip(effects, (0.4, 0.35, -0.1, 0.1, 0.2, -0.1), strict=True):
        assert seeds == pytest.approx([value, value])
    effects = [claims.looked(tmp_path, "lora", step, step, number)
               for _, step, number in claims.DIFFERS]
    for seeds, value in zip(effects, (-0.2, -0.3, 0.2, 0.7, 1), strict=True):
        assert seeds == pytest.approx([value, value])


def test_a_step_is_made_from_all_its_runs_and_again_if_its_commands_change(tmp_path, monkeypatch,
                                                                         command):
    monkeypatch.chdir(tmp_path)
    refuses("no runs runs/none-.: python -m bench.tables train, or text", tables.command,
            "eval.py runs/none-* --merge ties", 1)
    for text, several in (("train.py --task all", True), ("train.py --joint", False),
                          ("eval.py --merge ties", True), ("eval.py --analyze pca", False)):
        assert ("--jobs" in tables.command(text, 2)) == several
    made = []
    monkeypatch.setattr(tables, "run", lambda name, jobs, folder: made.append(name))
    (tmp_path / "runs/tables").mkdir(parents=True)
    for said in (tables.STEPS["joint"], tables.STEPS["joint"][:2]):
        (tmp_path / "runs/tables/joint.txt").write_text("".join(f"$ python {s}\n" for s in said))
        assert command(tables.main, "joint")[0] == 0
    assert made == ["joint"]


def test_the_tables_are_made_from_the_files_that_the_steps_write(tmp_path, command):
    code, _, err = command(claims.main, "--folder", tmp_path)
    assert code == 2 and "claim-l_lora.model.json: python -m bench.tables claim" in err
    every = {rule: (0.5, 0.6) for row in claims.BETTER for rule in row[2:]}
    made = [text.split("--json runs/tables/")[1].split()[0]
            for step in ("claim", "rules") for text in tables.STEPS[step]]
    for file in made:
        write(tmp_path, file.removesuffix(".json"), **every)
    for kind in tables.THREE:
        look(tmp_path, kind, 0.2, 0.7)
    code, _, err = command(claims.main, "--folder", tmp_path, "--runs", tmp_path)
    assert code == 2 and "python -m bench.compare --adapters pissa" in err
    names = {name for row in claims.ABOVE for name in row[1:]}
    walk(tmp_path, **dict.fromkeys(names, (0.5, 0.5, 0.5)) | {"pissa": (0.7, 0.7, 0.7)})
    code, _, err = command(claims.main, "--folder", tmp_path, "--runs", tmp_path)
    assert code == 2 and "python -m bench.compare --adapters lora" in err
    train(tmp_path, {"lora-0.001": 0.9, "pissa-0.001": 0.7, "dora-0.001": 0.9,
                     "lora_plus-0.001": 1.0})
    code, _, err = command(claims.main, "--folder", tmp_path, "--runs", tmp_path)
    assert code == 2 and "python -m bench.tables ranks" in err
    train(tmp_path, {"lora-r4": 0.9, "lora-r64": 0.8, "rslora-r4": 0.9, "rslora-r64": 0.5})
    code, out, err = command(claims.main, "--folder", tmp_path, "--runs", tmp_path)
    assert code == 0, err
    for row in ("pissa > lora               | 2404.02948 | +0.200 ± 0.000 |    confirmed",
                "pissa < lora               | 2404.02948 | +0.200 ± 0.000 |    confirmed",
                "lora_plus < lora           | 2402.12354 | -0.100 ± 0.000 | contradicted",
                "rslora: rank 64 < rank 4   | 2312.03732 | +0.400 ± 0.000 |    confirmed",
                "... and by more than in lora | 2312.03732 | +0.300 ± 0.000 |    confirmed"):
        assert re.sub(" +", " ", row) in re.sub(" +", " ", out)
    level = 3 * len(claims.LINEARIZED) + 2 * len(claims.BETTER) + len(claims.DIFFERS) + 1
    assert out.count("not seen") == level + len(claims.ABOVE) - 1
    assert out.count("confirmed") == 4 * 2 + 4 and out.count("contradicted") == 4 + 1
