"""The command line: places that cannot be written, values given twice, paths, next commands."""

import json
import resource
import shlex
from pathlib import Path

import pytest
import torch

import eval
import train
from analysis import match
from experiment import run_folder
from support import QUICK


def left_behind(folder):
    """Names of everything in a folder and below it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


# ---- places --------------------------------------------------------------------------------------

@pytest.mark.parametrize("place", ["file/x", "file/deeper/x", "/proc/nowhere/x", f"{'n' * 300}"])
@pytest.mark.parametrize("flag", ["--json", "--export", "--plot"])
def test_a_place_that_cannot_be_written_is_told_before_any_work(
        command, trained, capsys, tmp_path, monkeypatch, flag, place):
    if flag == "--plot":
        pytest.importorskip("matplotlib", reason="needs matplotlib: see requirements-figures.txt")
    (run,), words = trained(), ["--analyze", "cosine"] * (flag == "--plot")
    capsys.readouterr()                                                 # what training printed
    monkeypatch.setattr(run_folder, "rebuild", None)                    # no work may begin
    (tmp_path / "file").write_text("not a folder")
    code, _, err = command(eval.main, run, *words, flag, tmp_path / place)
    assert code == 2 and err.count("\n") == 1 and "give another place" in err
    assert left_behind(tmp_path) == ["file"]


@pytest.mark.parametrize("place", ["file/run", "/proc/nowhere/run"])
def test_training_tries_its_folder_first(command, tiny, tmp_path, monkeypatch, place):
    monkeypatch.setattr(train, "train", None)
    (tmp_path / "file").write_text("not a folder")
    code, _, err = command(train.main, "--model", tiny, *QUICK, "--out", tmp_path / place)
    assert code == 2 and err.count("\n") == 1 and "--out" in err and "give another place" in err


@pytest.mark.parametrize("write", [
    lambda path: run_folder.save_tensors({"x": torch.zeros(10_000)}, path),
    lambda path: run_folder.write_json(["x" * 10_000], path)], ids=["tensors", "json"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_half(tmp_path, command, write):
    """A limit on the size of a file stands for the full disk: the same OSError from a write."""
    path = tmp_path / "file"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        code, _, err = command(lambda: write(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and err.count("\n") == 1 and str(path) in err and "File too large" in err
    assert path.read_text() == "old" and left_behind(tmp_path) == ["file"]


# ---- one value for one thing ---------------------------------------------------------------------

@pytest.mark.parametrize("words, told", [
    (["--rank", 8, "--set", "rank=9"], "rank is 8 already"),
    (["--alpha", 8, "--set", "alpha=9"], "alpha is 8.0 already"),
    (["--set", "rank=3", "--set", "rank=3"], "rank is 3 already"),
    (["--adapter", "full", "--rank", 8], "unknown key for full 'rank'")])
def test_train_takes_one_value_for_a_key(fit, words, told):
    code, _, err = fit("--adapter", "lora", *words)
    assert code == 2 and told in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [["--set", "lam=1", "--sweep", "lam=0:1:0.5"],
                                   ["--sweep", "lam=0,1", "--sweep", "lam=0:1:0.5"]])
def test_eval_takes_one_value_for_a_key(command, words):
    code, _, err = command(eval.main, "run", "--merge", "ties", *words)
    assert code == 2 and "lam: it has a value already" in err and err.count("\n") == 1


@pytest.mark.parametrize("text, wants", [
    ("all", ["a", "b", "c"]), ("all,b", ["a", "b", "c"]), ("c,all", ["c", "a", "b"]),
    ("b,b", ["b"]), (None, ["a"])])
def test_names_of_tasks(monkeypatch, text, wants):
    """`all` is every built-in task, also among others; a task counts once."""
    class Suite:
        TASKS = dict.fromkeys("abc")

    monkeypatch.setattr(train.data, "suite", lambda kind: Suite)
    monkeypatch.setattr(train.data, "check", lambda *args: None)
    monkeypatch.setattr(train.data, "kind", lambda *args: "image")
    args = type("Args", (), {"task": text, "model": "vit", "download": False, "data": None})
    assert train.checked_tasks(args) == wants


# ---- paths ---------------------------------------------------------------------------------------

def test_a_run_knows_its_folders_from_anywhere(command, tiny, tmp_path, monkeypatch):
    """--model and --data may be relative; the run is read from another folder."""
    rows = [f"a text {i}\t{i % 2}" for i in range(40)]
    (tmp_path / "mine").mkdir()
    for name in ("train", "test"):
        (tmp_path / "mine" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = command(train.main, "--model", "bert", "--adapter", "bitfit", "--data", "mine",
                           "--task", "mine", "--steps", 2, "--out", "run")
    assert code == 0, err
    assert json.loads(Path("run/config.json").read_text())["data"] == str(tmp_path / "mine")
    assert json.loads(Path("run/config.json").read_text())["model"] == "bert"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = command(eval.main, tmp_path / "run")
    assert code == 0 and "mine" in out, err


def test_a_model_that_is_a_path_is_kept_whole(fit, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    code, out, err = fit("--model", tiny.name)
    assert code == 0, err
    run = shlex.split(out.splitlines()[-1])[-1]
    assert json.loads(Path(run, "config.json").read_text())["model"] == str(tiny)


@pytest.mark.parametrize("tasks", ["digits", "digits,shapes"])
def test_the_next_command_names_the_runs_and_survives_a_shell(command, tiny, tmp_path, tasks):
    out = tmp_path / "my runs (old)" / "{task}"
    code, printed, err = command(train.main, "--model", tiny, "--task", tasks, *QUICK, "--out", out)
    assert code == 0, err
    _, python, script, *words = shlex.split(printed.splitlines()[-1])
    runs = [str(out).format(task=task) for task in tasks.split(",")]
    assert (python, script, words[:len(runs)]) == ("python", "eval.py", runs)
    code, _, err = command(eval.main, *words)
    assert code == 0, err


def test_the_matched_encoder_is_named_as_a_shell_takes_it(command, tiny, tmp_path):
    code, printed, err = command(match.main, tiny, tiny, "--examples", 20, "--limit", 20,
                                 "--out", tmp_path / "of both")
    assert code == 0, err
    assert shlex.split(printed.splitlines()[-1])[-1] == str(tmp_path / "of both")


# ---- what a table says ---------------------------------------------------------------------------

def test_two_runs_of_one_task_are_told(command, trained):
    runs = [run for words in ([], ["--seed", 1], ["--task", "shapes"])
            for run in trained("--adapter", "lora", *words)]
    code, out, err = command(eval.main, *runs, "--merge", "average", "--limit", 20)
    assert code == 0, err
    assert "digits has 2 runs: each counts as a task vector, single is their mean" in out
    assert "shapes has" not in out
