"""What may be replaced or continued: runs of ours, with the same settings, by one process."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import eval as evaluation
import train
from experiment import run_folder
from support import QUICK, make_run, refuses, write_checkpoint
from tasks import published

ROOT = Path(__file__).parents[2]


def users_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("x")


def folder_of_runs(path):
    path.mkdir()
    (path / "vit-lora-digits-s0").mkdir()


def run_with_a_note(path):
    path.mkdir()
    for name in ("adapter.pt", "config.json", "log.csv", "result.json", "note.txt"):
        (path / name).write_text("{}")


def link(path):
    target = path.with_name("elsewhere")
    users_folder(target)
    os.symlink(target, path)


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]], ids=str)
@pytest.mark.parametrize("make", [users_folder, folder_of_runs, run_with_a_note, link,
                                  lambda path: path.write_text("x")], ids=lambda f: f.__name__)
@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_what_is_no_run_is_refused_and_stays(command, tiny, tmp_path, make, flags, suffix):
    out = tmp_path / "mine"
    make(Path(f"{out}{suffix}"))
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    code, _, err = command(train.main, "--model", tiny, *QUICK, "--out", out, *flags)
    assert code == 2 and err.startswith("error: ") and "--out FOLDER writes elsewhere" in err
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_overwrite_replaces_a_run_and_nothing_beside_it(command, tiny, tmp_path):
    out, words = tmp_path / "mine", ["--model", tiny, *QUICK, "--out", tmp_path / "mine"]
    assert command(train.main, *words)[0] == 0
    users_folder(tmp_path / "mine.old")
    assert command(train.main, *words, "--overwrite", "--seed", 1)[0] == 0
    assert run_folder.load(out)["setting"]["seed"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "mine.old"]
    assert (tmp_path / "mine.old" / "thesis.txt").read_text() == "x"


def test_resume_goes_on_with_an_overwrite_that_was_cut_short(command, tiny, tmp_path, monkeypatch):
    words = ["--model", tiny, *QUICK, "--out", tmp_path / "mine"]
    assert command(train.main, *words)[0] == 0

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_run", stop)
        assert command(train.main, *words, "--overwrite", "--seed", 1)[0] == 130
    code, out, err = command(train.main, *words, "--resume", "--seed", 1)
    assert code == 0 and "is finished" not in out, err
    assert run_folder.load(tmp_path / "mine")["setting"]["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_without_a_result_is_not_taken_for_a_finished_run(command, tiny, tmp_path):
    words = ["--model", tiny, *QUICK, "--out", tmp_path / "mine", "--resume"]
    (tmp_path / "mine").mkdir()
    code, _, err = command(train.main, *words)
    assert code == 2 and "mine is no finished run: remove it, or give --overwrite" in err


def test_an_interrupted_run_goes_on_from_its_own_checkpoint_only(command, tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "model")
    words = ["--model", tmp_path / "model", *QUICK, "--out", tmp_path / "mine"]
    monkeypatch.setattr(train, "SAVE_EVERY", 3)

    def stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    save = run_folder.save_progress
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_progress", stop)
        assert command(train.main, *words)[0] == 130
    shutil.rmtree(tmp_path / "model")
    write_checkpoint(tmp_path / "model", seed=1)
    code, _, err = command(train.main, *words, "--resume")
    assert code == 2 and "was trained on another checkpoint than --model is now" in err


def test_a_run_knows_its_data_again(command, tiny, tmp_path):
    x, y = np.zeros((40, 28, 28)), np.arange(40) % 3
    write = lambda n: np.savez(tmp_path / "own.npz", x_train=x[:n], y_train=y[:n], x_test=x,
                               y_test=y)
    words = ["--model", tiny, *QUICK, "--out", tmp_path / "mine", "--task", "own", "--data",
             tmp_path]
    write(39)
    assert command(train.main, *words)[0] == 0
    code, _, err = command(evaluation.main, tmp_path / "mine")
    assert code == 0, err
    write(40)
    published.read.cache_clear()
    code, _, err = command(evaluation.main, tmp_path / "mine")
    assert code == 2 and "was trained on other examples than" in err


@pytest.mark.parametrize("other", [["--lr", 0.5], ["--rank", 2], ["--adapter", "lora"],
                                   ["--task", "count"], ["--batch", 3]], ids=str)
def test_resume_of_a_finished_run_with_other_settings_is_refused(command, tiny, tmp_path, other):
    words = ["--model", tiny, *QUICK, "--out", tmp_path / "mine"]
    assert command(train.main, *words)[0] == 0
    assert "is finished: skipped" in command(train.main, *words, "--resume")[1]
    code, _, err = command(train.main, *words, "--resume", *other)
    assert code == 2 and "was made with other settings" in err and str(other[1]) in err


def test_a_second_process_is_refused_while_the_first_trains(tiny, tmp_path):
    words = [sys.executable, str(ROOT / "train.py"), "--model", str(tiny), "--limit", "40",
             "--out", str(tmp_path / "mine")]
    first = subprocess.Popen([*words, "--steps", "100000"], cwd=ROOT, stderr=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while not (tmp_path / "mine.partial/config.json").exists() and time.time() < deadline:
            time.sleep(0.1)
        for flag in ("--resume", "--overwrite"):
            second = subprocess.run([*words, "--steps", "100000", flag], cwd=ROOT, text=True,
                                    capture_output=True)
            assert second.returncode == 2 and "another process is training" in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    again = subprocess.run([*words, "--steps", "3", "--overwrite"], cwd=ROOT, capture_output=True)
    assert again.returncode == 0                          # a killed process leaves no lock behind


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_run_killed_before_its_first_file_can_go_on(command, tiny, tmp_path, flag):
    begun = tmp_path / "mine.partial"
    begun.mkdir()
    (begun / "lock").touch(), (begun / ".tmp-x1").mkdir()
    words = ["--model", tiny, *QUICK, "--out", tmp_path / "mine", flag]
    assert command(train.main, *words)[0] == 0
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [
        "adapter.pt", "config.json", "log.csv", "result.json"]


CONTENTS = {"empty": b"", "list": b"[1]", "null": b"null", "cut": b'{"val": 0.5, ',
            "latin": b"\xe9"}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_small_file_of_a_run_is_named_in_one_line(command, tiny, tmp_path, content):
    run = make_run(tmp_path / "mine", tiny, "lora")["folder"]
    (run / "result.json").write_bytes(content)
    code, _, err = command(evaluation.main, run)
    assert (code, err.count("\n")) == (2, 1) and f"{run}/result.json cannot be read" in err
    (run / "result.json").write_text('{"val": 0.5}')
    assert "lacks val and test" in command(evaluation.main, run)[2]
    begun = tmp_path / "begun.partial"
    begun.mkdir()
    words = ["--model", tiny, *QUICK, "--out", tmp_path / "begun"]
    (begun / "config.json").write_bytes(content)
    code, _, err = command(train.main, *words, "--resume")
    assert (code, err.count("\n")) == (2, 1) and f"{begun}/config.json cannot be read" in err
    (begun / "config.json").write_text('{"task": "digits"}')
    code, _, err = command(train.main, *words, "--resume")
    assert (code, err.count("\n")) == (2, 1) and "was made with other settings" in err
    (begun / "config.json").write_bytes(content)
    assert command(train.main, *words, "--overwrite")[0] == 0


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.8])
def test_one_changed_byte_of_an_adapter_is_noticed(tiny, tmp_path, place):
    """Also among the tensors, where torch.load sees nothing."""
    file = make_run(tmp_path / "mine", tiny, "full")["folder"] / "adapter.pt"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    refuses("adapter.pt is not a complete file of tensors", run_folder.load, tmp_path / "mine")


def test_a_run_from_before_a_setting_has_its_default(command, tiny, tmp_path):
    """It loads, is grouped by it and counts as finished, but not with another value."""
    words = ["--model", tiny, *QUICK, "--out", tmp_path / "mine"]
    assert command(train.main, *words)[0] == 0
    file, run = tmp_path / "mine/adapter.pt", run_folder.load_tensors(tmp_path / "mine/adapter.pt")
    setting = {k: v for k, v in run["setting"].items() if k not in run_folder.DEFAULTS}
    assert len(setting) == len(run["setting"]) - 5
    run_folder.save_tensors(run | {"setting": setting}, file)
    run_folder.write_json(setting, tmp_path / "mine/config.json")
    assert run_folder.load(tmp_path / "mine")["setting"] == setting | run_folder.DEFAULTS
    assert "is finished: skipped" in command(train.main, *words, "--resume")[1]
    code, _, err = command(train.main, *words, "--resume", "--optimizer", "sgd")
    assert code == 2 and "optimizer adamw then, sgd now" in err
    code, out, err = command(evaluation.main, tmp_path / "mine", tmp_path / "mine", "--merge",
                             "average", "--by", "optimizer")
    assert code == 0 and "| average |     adamw |" in out, err
