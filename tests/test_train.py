"""train.py from the outside: what a run leaves, interruption, one line for bad input."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from experiment import run_folder
from files import write_idx
from lora import ADAPTERS
from support import QUICK, SPECIAL_WORDS as SPECIAL, identical, tensors, write_checkpoint

ROOT = Path(train.__file__).parent


# ---- what a run leaves ---------------------------------------------------------------------------

# every adapter as it is; a linearization wraps all of them alike, so those that differ in what they
# keep beside their parameters: nothing, B0 A0, shared factors, supports, schedules, a closed form
WRAPPED = ["lora", "l_lora", "pissa", "dora", "vera", "adalora", "rosa", "lora_dash", "spectral_r",
           "bitfit"]
CASES = [(a, "off") for a in sorted(ADAPTERS)] + [(a, r) for a in WRAPPED
                                                  for r in ("layer", "model")]


@pytest.mark.parametrize("adapter, reading", CASES)
def test_train_save_reload_gives_the_same_logits(fit, tmp_path, monkeypatch, adapter, reading):
    if reading not in ADAPTERS[adapter].lr:
        code, _, err = fit("--adapter", adapter, "--linearize", reading)
        assert code == 2 and "is a linearization" in err
        return
    kept = {}
    save = run_folder.save_run
    monkeypatch.setattr(run_folder, "save_run",
                        lambda out, setting, model, *rest: (kept.update(out=out, model=model),
                                                            save(out, setting, model, *rest)))
    code, out, err = fit("--adapter", adapter, "--linearize", reading, *SPECIAL.get(adapter, []))
    assert code == 0, err
    x = torch.rand(3, 1, 28, 28)
    run = run_folder.load(kept["out"])
    rebuilt = run_folder.rebuild(run, run_folder.base_encoder(run))
    assert torch.equal(rebuilt(x), kept["model"](x))
    assert {p.name for p in kept["out"].iterdir()} == {"adapter.pt", "config.json",
                                                       "log.csv", "result.json"}
    rows = list(csv.DictReader(open(kept["out"] / "log.csv")))
    assert [int(r["step"]) for r in rows] == list(range(1, 7))
    own = ADAPTERS[adapter].targets
    per_block = 6 if own == "all" else len(own.split(","))
    assert f"linearize {reading}" in out and f"adapted {2 * per_block} layers" in out
    assert "next: python eval.py" in out


def test_same_seed_same_bits_other_seed_other_bits(fit, tmp_path):
    for words in (["--seed", 0], ["--seed", 0, "--overwrite"], ["--seed", 1]):
        assert fit("--adapter", "lora", *words)[0] == 0
        if words == ["--seed", 0]:
            first = tensors(tmp_path / "runs/lora-digits-s0")
    assert identical(first, tensors(tmp_path / "runs/lora-digits-s0"))
    other = tensors(tmp_path / "runs/lora-digits-s1")
    assert not torch.equal(first["trained.blocks.0.q.B"], other["trained.blocks.0.q.B"])
    assert not torch.equal(first["start.blocks.0.q.A"], other["start.blocks.0.q.A"])


def test_killed_and_resumed_is_the_same_as_never_killed(command, tiny, tmp_path, monkeypatch):
    """SIGKILL in mid-training, then --resume: the same bits; before that, no run folder exists."""
    monkeypatch.chdir(tmp_path)
    words = lambda out, *more: ["--adapter", "l_lora", "--model", tiny, "--out", out, "--steps",
                                150, "--limit", 40, "--batch", 8, *more]
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *map(str, words("cut"))],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not (tmp_path / "cut.partial/resume.pt").exists() and time.time() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "cut").exists()
    code, _, err = command(train.main, *words("cut"))
    assert code == 2 and "is an interrupted run: --resume continues it" in err
    code, _, err = command(train.main, *words("cut", "--resume", "--lr", 0.5))
    assert code == 2 and "was made with other settings" in err
    assert command(train.main, *words("cut", "--resume"))[0] == 0
    assert command(train.main, *words("whole"))[0] == 0
    assert identical(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))
    assert (tmp_path / "whole/log.csv").read_text() == (tmp_path / "cut/log.csv").read_text()
    assert not (tmp_path / "cut.partial").exists()


def test_schedule_and_batches():
    """Ten steps: one of warm-up, then half a cosine. Batches: each epoch permutes the rows."""
    rates = [train.schedule(s, 10) for s in range(10)]
    assert rates[:2] == [1, 1] and rates == sorted(rates, reverse=True)
    assert abs(rates[4] - 0.75) < 1e-12 and abs(rates[7] - 0.25) < 1e-12     # cos 60, cos 120
    assert [train.schedule(s, 40) for s in range(4)] == [0.25, 0.5, 0.75, 1]
    epoch = torch.cat([train.batch_rows(12, 4, s, 7) for s in range(3)])
    assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(epoch[:4], train.batch_rows(12, 4, 3, 7))
    assert not torch.equal(epoch[:4], train.batch_rows(12, 4, 0, 8))


def test_epochs_are_passes_over_the_training_examples(command, fit, tiny, tmp_path):
    """40 examples in batches of 16 are two steps; of several tasks the largest counts."""
    words = ["--adapter", "lora", "--model", tiny, "--limit", 40, "--batch", 16, "--epochs", 3]
    assert command(train.main, *words, "--out", tmp_path / "three")[0] == 0
    assert fit("--adapter", "lora")[0] == 0                                      # six steps
    assert identical(tensors(tmp_path / "three"), tensors(tmp_path / "runs/lora-digits-s0"))
    setting = {"steps": None, "epochs": 3, "batch": 16}
    assert train.total_steps(setting, [20, 40]) == 3 * 2 * 2
    assert train.total_steps(setting, [10]) == 3


def test_sgd_has_momentum_and_no_adaptive_step(fit, tmp_path):
    """Two steps of slope 1 and rate .1 from 0: -.1, then -.1 (.9 + 1) more."""
    p = torch.zeros(1, requires_grad=True)
    optimizer = train.OPTIMIZERS["sgd"]([{"params": [p], "lr": 0.1}])
    for expected in (-0.1, -0.29):
        optimizer.zero_grad(), p.sum().backward(), optimizer.step()
        assert p.item() == pytest.approx(expected)
    moved = {}
    for words in (["sgd", "--lr", 1e-2], ["sgd", "--lr", 1e-3, "--overwrite"]):
        assert fit("--adapter", "full", "--optimizer", *words)[0] == 0
        run = run_folder.load(tmp_path / "runs/full-digits-s0")
        moved[words[2]] = sum(v.square().sum() for v in run["trained"].values()).sqrt().item()
    assert run["setting"]["optimizer"] == "sgd"
    assert moved[1e-2] == pytest.approx(10 * moved[1e-3], rel=0.05)       # proportional to the rate


def test_list_commands(command):
    code, out, _ = command(train.main, "--list")
    assert code == 0 and all(name in out for name in ADAPTERS) and "2310.04742" in out
    code, out, _ = command(evaluation.main, "--list")
    assert code == 0 and "keys: density=0.2, agg=mean, lam=1.0" in out and "2306.01708" in out


# ---- bad input: exit code 2 and one line, before training ----------------------------------------

@pytest.mark.parametrize("words, told", [
    (["--adapter", "l_lra"], "unknown adapter 'l_lra': did you mean 'l_lora'"),
    (["--task", "digit"], "unknown task 'digit': did you mean 'digits'"),
    (["--task", "mnist5k"], "or any name with --data FOLDER"),
    (["--model", "vti"], "unknown model 'vti': did you mean 'vit'"),
    (["--targets", "q,v_porj"], "unknown target 'v_porj'"),
    (["--adapter", "lora", "--rank", 0], "--rank 0: give a whole number of 1 or more"),
    (["--adapter", "lora", "--rank", 17],
     "rank 17 does not fit a layer of 16 inputs and 16 outputs"),
    (["--adapter", "lora", "--set", "rnk=3"], "unknown key for lora 'rnk': did you mean 'rank'"),
    (["--adapter", "lora", "--set", "rank=x"], "rank takes a int such as rank=8"),
    (["--adapter", "full", "--rank", 4], "unknown key for full 'rank': known: (none)"),
    (["--adapter", "l_lora", "--linearize", "off"], "l_lora is a linearization"),
    (["--steps", 0], "--steps 0: give a whole number of 1 or more"),
    (["--epochs", 2], "--steps 6 and --epochs 2: give one of the two"),
    (["--every", 0], "--every 0: give a whole number of 1 or more"),
    (["--keep", "best"], "look at the model while it trains: add --every N"),
    (["--trace"], "look at the model while it trains: add --every N"),
    (["--lr", -1], "--lr -1.0: give a number above 0"),
    (["--lr", 0], "--lr 0.0: give a number above 0"),
    (["--lr", "nan"], "--lr nan: give a number above 0"),
    (["--wd", -1], "--wd -1.0: give a number of 0 or more"),
    (["--wd", "inf"], "--wd inf: give a number of 0 or more"),
    (["--adapter", "lora", "--alpha", "nan"], "--alpha nan: give a number above 0"),
    (["--adapter", "lora", "--set", "alpha=1e999"], "give a number between -1e6 and 1e6"),
    (["--seed", 10 ** 20], "give a whole number from 0 to 4294967295"),
    (["--size", 0], "--size 0: give a whole number of 1 or more"),
    (["--model", "."], "config.json cannot be read"),
    (["--device", "tpu9"], "--device tpu9 is not available here"),
    (["--out", "runs/{name}"], "only {model}, {adapter}, {task} and {seed} are filled in"),
    (["--out", "runs/x", "--task", "all"], "with several tasks it must contain {task}"),
    (["--adapter", "pissa", "--set", "alpha=[1]"], "--set alpha=[1]: give a number above 0"),
    (["--adapter", "adalora", "--set", "every=0"], "choose --set every of 1 or more"),
    (["--adapter", "adalora", "--set", "gamma=-1"], "adalora needs gamma of 0 or more"),
    (["--adapter", "adalora", "--set", "beta=1"], "gamma 0.1 and beta 1: adalora needs"),
    (["--adapter", "lora_plus", "--set", "ratio=0"], "ratio 0: choose --set ratio above 0"),
    (["--resume", "--overwrite"], "--resume keeps what is finished and --overwrite replaces it"),
    (["--size", 30], "image size 30 is no multiple of the patch size 7"),
    (["--data", "nowhere", "--task", "mine"], "/nowhere is no folder"),
    (["--head", "probe", "--limit", 1], "a linear probe needs at least 2 training examples"),
])
def test_bad_training_input(fit, tmp_path, words, told):
    code, _, err = fit(*words)
    assert code == 2 and told in err and err.count("\n") == 1, err
    assert not (tmp_path / "runs").exists()


def test_existing_folder_is_kept(fit, tmp_path):
    fit("--adapter", "lora")
    before = tensors(tmp_path / "runs/lora-digits-s0")
    code, _, err = fit("--adapter", "lora", "--lr", 0.5)
    assert code == 2 and "exists: --overwrite replaces it" in err
    assert identical(before, tensors(tmp_path / "runs/lora-digits-s0"))
    code, out, _ = fit("--adapter", "lora", "--resume")
    assert code == 0 and "is finished: skipped" in out and "before training" not in out


def test_nan_stops_with_step_and_learning_rate(fit, tmp_path):
    code, _, err = fit("--adapter", "full", "--lr", 1e20)
    assert code == 2 and "the loss became nan at step" in err and "with learning rate" in err
    assert not (tmp_path / "runs/full-digits-s0").exists()


def test_bad_checkpoint_stops_training(command, tmp_path):
    """In one line, before anything is made; test_vit.py has every kind of damage."""
    folder = write_checkpoint(tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    code, _, err = command(train.main, "--model", folder, "--out", tmp_path / "r", *QUICK)
    assert code == 2 and "no complete safetensors file" in err and err.count("\n") == 1
    assert not list(tmp_path.glob("r*"))


def test_idx_task_trains_and_damaged_ones_stop(fit, tmp_path):
    assert fit("--task", "mine", "--data", write_idx(tmp_path / "good"))[0] == 0
    bad = write_idx(tmp_path / "bad", train_labels=b"\0\0\x08\x03")
    code, _, err = fit("--task", "bad", "--data", bad)
    assert code == 2 and "starts with 00000803" in err and err.count("\n") == 1


# ---- real images ---------------------------------------------------------------------------------

def test_real_tasks_train_and_merge(command, real, tmp_path):
    for task in ("fashion_mnist", "mnist5k"):
        code, _, err = command(train.main, "--adapter", "l_lora", "--task", task,
                               "--data", real / task, "--steps", 40, "--limit", 500,
                               "--out", tmp_path / task)
        assert code == 0, err
        result = json.loads((tmp_path / task / "result.json").read_text())
        assert result["test"] > 0.35 and result["val"] > result["base_val"]
    code, out, err = command(evaluation.main, tmp_path / "fashion_mnist", tmp_path / "mnist5k",
                             "--merge", "average", "--limit", 200)
    assert code == 0 and "| average" in out, err


def test_pretrained_dinov2_beats_random_weights(command, real, tmp_path):
    accuracy = {}
    for words in ([], ["--random-weights"]):
        out = tmp_path / f"run{len(words)}"
        code, _, err = command(train.main, "--adapter", "lora",
                               "--model", real / "vit-small-dinov2", "--size", 56,
                               "--task", "mnist5k", "--data", real / "mnist5k", "--steps", 10,
                               "--lr", 1e-3, "--batch", 16, "--limit", 200, "--out", out, *words)
        assert code == 0, err
        accuracy[len(words)] = json.loads((out / "result.json").read_text())["test"]
    assert accuracy[0] > accuracy[1] + 0.1


def test_real_texts_train_and_merge(command, real, tmp_path):
    """A published BERT on two real text sets, a dozen steps: better than it was, and merged."""
    for task in ("r8", "newsgroups"):
        code, _, err = command(train.main, "--adapter", "lora", "--targets", "q,v",
                               "--model", real / "bert-minilm-l6", "--size", 24, "--task", task,
                               "--data", real / task, "--steps", 12, "--lr", 2e-3, "--batch", 16,
                               "--limit", 200, "--head", "prototypes", "--out", tmp_path / task)
        assert code == 0, err
        result = json.loads((tmp_path / task / "result.json").read_text())
        assert result["val"] > result["base_val"] and result["test"] > 0.3
    code, out, err = command(evaluation.main, tmp_path / "r8", tmp_path / "newsgroups",
                             "--merge", "average")
    assert code == 0 and "| average" in out, err


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(f"{sys.executable} train.py --list | head -1", shell=True, cwd=ROOT,
                          capture_output=True, text=True)
    assert done.stdout == "adalora\n" and done.stderr == ""
