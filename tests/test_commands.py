"""train.py and eval.py from the outside: determinism, interruption, one line for bad input."""

import csv
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import encoders
import eval as evaluation
import lora
import merge
import train
from bench import compare
from encoders import safetensors
from experiment import cli, run_folder, spaces
from files import write_idx
from lora import ADAPTERS
from pretrain import __main__ as pretrain
from pretrain import vit
from support import QUICK, write_checkpoint

ROOT = Path(train.__file__).parent
SPECIAL = {"lora_dash": ["--set", "launch=2"],
           "rosa": ["--set", "warmup=3", "--set", "collect=2"]}       # settings that fit six steps


def tensors(folder):
    """Everything trained in a run, flat."""
    run = run_folder.load(folder)
    heads = {f"{task}.{k}": v for task, head in run["heads"].items() for k, v in head.items()}
    return {f"{part}.{k}": v for part in ("start", "trained", "buffers")
            for k, v in run[part].items()} | heads


def identical(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- what a run leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize("reading", ["off", "layer", "model"])
@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
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
    assert f"linearize {reading}" in out and "adapted 12 layers" in out
    assert "next: python eval.py" in out


@pytest.mark.parametrize("adapter", ["lora", "pissa", "dora", "rosa"])
def test_quantised_runs_reload_and_merge(fit, command, tmp_path, adapter):
    """QLoRA, QPiSSA, QDoRA, QRoSA: the task vector gives the run's own model, and merges."""
    words = ["--adapter", adapter, "--quantize", "nf4", *SPECIAL.get(adapter, [])]
    assert fit(*words)[0] == 0 and fit("--adapter", "lora", "--task", "count")[0] == 0
    out = tmp_path / f"runs/{adapter}.nf4-digits-s0"
    run = run_folder.load(out)
    model, images = run_folder.rebuild(run, run_folder.base_encoder(run)), torch.rand(4, 1, 28, 28)
    base, taus, apply, *_ = spaces.vectors([run], "weight")
    merged = apply({k: base[k] + taus[0][k] for k in base})
    torch.testing.assert_close(merged(images), model(images), atol=1e-4, rtol=0)
    code, _, err = command(evaluation.main, out, tmp_path / "runs/lora-count-s0",
                           "--merge", "average", "--limit", 20)
    assert code == 0, err


def test_same_seed_same_bits_other_seed_other_bits(fit, tmp_path):
    for words in (["--seed", 0], ["--seed", 0, "--overwrite"], ["--seed", 1]):
        assert fit("--adapter", "lora", *words)[0] == 0
        if words == ["--seed", 0]:
            first = tensors(tmp_path / "runs/lora-digits-s0")
    assert identical(first, tensors(tmp_path / "runs/lora-digits-s0"))
    other = tensors(tmp_path / "runs/lora-digits-s1")
    assert not torch.equal(first["trained.blocks.0.q.B"], other["trained.blocks.0.q.B"])
    assert not torch.equal(first["start.blocks.0.q.A"], other["start.blocks.0.q.A"])


@pytest.mark.parametrize("adapter", ["lora", "l_lora"])
def test_killed_and_resumed_is_the_same_as_never_killed(command, tiny, tmp_path, monkeypatch,
                                                        adapter):
    """SIGKILL in mid-training, then --resume: the same bits; before that, no run folder exists."""
    monkeypatch.chdir(tmp_path)
    words = lambda out, *more: ["--adapter", adapter, "--model", tiny, "--out", out, "--steps", 150,
                                "--limit", 40, "--batch", 8, *more]
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
    assert code == 2 and "cannot be resumed with other settings" in err
    assert command(train.main, *words("cut", "--resume"))[0] == 0
    assert command(train.main, *words("whole"))[0] == 0
    assert identical(tensors(tmp_path / "whole"), tensors(tmp_path / "cut"))
    assert (tmp_path / "whole/log.csv").read_text() == (tmp_path / "cut/log.csv").read_text()
    assert not (tmp_path / "cut.partial").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    run_folder.save_tensors({"a": torch.ones(2)}, path)
    monkeypatch.setattr(torch, "save", lambda value, file: (Path(file).write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run_folder.save_tensors({"a": torch.zeros(2)}, path)
    monkeypatch.undo()
    assert torch.equal(run_folder.load_tensors(path)["a"], torch.ones(2))


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


def test_list_commands(command):
    code, out, _ = command(train.main, "--list")
    assert code == 0 and all(name in out for name in ADAPTERS) and "2310.04742" in out
    code, out, _ = command(evaluation.main, "--list")
    assert code == 0 and "keys: density=0.2, agg=mean, lam=1.0" in out and "2306.01708" in out


def test_grid_and_settings():
    assert cli.grid("lam=0:1:0.05") == ("lam", [round(0.05 * i, 10) for i in range(21)])
    assert cli.grid("density=0.1,0.5") == ("density", [0.1, 0.5])


# ---- merging runs --------------------------------------------------------------------------------


@pytest.fixture
def merge_runs(command, tmp_path):
    """merge_runs([names], "--merge", ...) returns (code, stdout, stderr, {rows of the JSON})."""
    def call(names, *words):
        file = tmp_path / "out.json"
        code, out, err = command(evaluation.main, *[tmp_path / "runs" / n for n in names],
                                 "--json", file, *words)
        rows = json.loads(file.read_text()) if file.exists() else {}
        rows = {key: group["rows"] for key, group in rows.items()}
        return code, out, err, rows
    return call


def test_ranks_and_kinds_merge_in_weight_space(fit, merge_runs):
    fit("--adapter", "lora", "--rank", 2)
    fit("--adapter", "full", "--task", "letters")
    fit("--adapter", "lora", "--linearize", "layer", "--task", "count", "--rank", 3)
    names = ["lora-digits-s0", "full-letters-s0", "lora.layer-count-s0"]
    code, out, err, groups = merge_runs(names, "--merge", "average,task_arithmetic,ties",
                                        "--sweep", "lam=0:1:0.5", "--limit", 30)
    assert code == 0, err
    rows = groups["all"]
    assert rows["task_arithmetic"]["chosen"]["lam"] in (0.0, 0.5, 1.0)
    curve = [score for _, score in rows["task_arithmetic"]["val_curve"]]
    best = int(rows["task_arithmetic"]["chosen"]["lam"] * 2)
    assert len(curve) == 3 and max(curve) == curve[best]
    assert rows["single"]["normalised"] == 1 and rows["base"]["share"] == 0
    assert "| task_arithmetic |" in out


@pytest.fixture(scope="session")
def partner(tiny, tmp_path_factory):
    """A LoRA run of rank 3 on another task, trained once."""
    out = tmp_path_factory.mktemp("partner") / "lora"
    with pytest.MonkeyPatch.context() as patch:
        words = ["--adapter", "lora", "--rank", 3, "--task", "count", "--model", tiny, "--out", out]
        patch.setattr(sys, "argv", ["train.py", *map(str, [*words, *QUICK])])
        train.main()
    return out


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_every_kind_merges_with_another_kind_and_rank(fit, command, partner, tmp_path, adapter):
    """The average in weight space is the base plus half of each run's own dense change."""
    reading = ADAPTERS[adapter].linearize.replace("model", "layer")
    assert fit("--adapter", adapter, "--linearize", reading, *SPECIAL.get(adapter, []))[0] == 0
    out = next((tmp_path / "runs").iterdir())
    code, text, err = command(evaluation.main, out, partner, "--merge", "average", "--limit", 20)
    assert code == 0 and "space weight" in text, err
    group = [run_folder.load(out), run_folder.load(partner)]
    base, taus, *_ = spaces.vectors(group, "weight")
    deltas = [lora.deltas(run_folder.rebuild(run, run_folder.base_encoder(run))) for run in group]
    for k, merged in merge.RULES["average"](base, taus).items():
        change = sum(delta.get(k, torch.zeros(())) for delta in deltas) / 2
        torch.testing.assert_close(merged - base[k], change, atol=1e-6, rtol=0)
        assert adapter == "bitfit" or k.endswith("bias") or change.any()


@pytest.mark.parametrize("adapter", ["lora", "l_lora", "full"])
def test_a_run_merged_with_itself_is_itself(fit, merge_runs, adapter):
    """In weight space, and in adapter space for the whole-model reading."""
    fit("--adapter", adapter)
    name = f"{adapter}.model-digits-s0" if adapter == "l_lora" else f"{adapter}-digits-s0"
    _, _, _, groups = merge_runs([name, name], "--merge", "average")
    rows = groups["all"]
    assert rows["average"]["scores"] == rows["single"]["scores"]


def test_one_run_names_the_command_that_trains_its_partners(fit, merge_runs):
    fit("--adapter", "lora", "--rank", 2, "--seed", 1)
    code, out, err, _ = merge_runs(["lora-digits-s1"])
    assert code == 0, err
    words = shlex.split(out.splitlines()[-1 - out.splitlines()[-1].startswith("wrote")])
    assert words[:5] == ["next:", "python", "train.py", "--adapter", "lora"]
    assert words[words.index("--set") + 1] == "rank=2" and words[-3:] == ["--task", "all",
                                                                         "--resume"]


def test_by_seed_reports_mean_and_spread(fit, merge_runs):
    for seed in (0, 1):
        for task in ("digits", "count"):
            assert fit("--adapter", "l_lora", "--task", task, "--seed", seed)[0] == 0
    names = [f"l_lora.model-{t}-s{s}" for t in ("digits", "count") for s in (0, 1)]
    code, out, err, groups = merge_runs(names, "--merge", "average", "--by", "seed")
    assert code == 0 and set(groups) == {"0", "1"} and " ± " in out, err
    code, _, err, _ = merge_runs(names, "--merge", "average")
    assert code == 2 and "start from different" in err


def test_joint_training_is_one_run_on_every_task(fit, merge_runs, tmp_path):
    """Two tasks take turns, for twice the steps, with a head each; it is a row beside the rules."""
    code, _, err = fit("--adapter", "lora", "--task", "digits,count", "--joint")
    assert code == 0, err
    run = run_folder.load(tmp_path / "runs/lora-joint-s0")
    assert run_folder.tasks(run) == ["digits", "count"] and set(run["heads"]) == {"digits", "count"}
    by_task = run["result"]["by_task"]
    assert run["result"]["val"] == (by_task["digits"]["val"] + by_task["count"]["val"]) / 2
    steps = list(csv.DictReader(open(run["folder"] / "log.csv")))
    assert len(steps) == 12
    fit("--adapter", "lora", "--task", "digits,count")
    names = ["lora-joint-s0", "lora-digits-s0", "lora-count-s0"]
    code, out, err, groups = merge_runs(names, "--merge", "average")
    assert code == 0 and "| joint " in out, err
    assert groups["all"]["joint"]["scores"] == {t: s["test"] for t, s in by_task.items()}
    alone, _, _, without = merge_runs(names[1:], "--merge", "average")
    for key in ("scores", "absolute", "normalised", "share"):
        assert without["all"]["average"][key] == groups["all"]["average"][key]


# ---- bad input: exit code 2 and one line, before training ----------------------------------------


@pytest.mark.parametrize("words, told", [
    (["--adapter", "l_lra"], "unknown adapter 'l_lra': did you mean 'l_lora'"),
    (["--task", "digit"], "unknown task 'digit': did you mean 'digits'"),
    (["--task", "mnist5k"], "or any name with --data FOLDER"),
    (["--model", "vti"], "unknown model 'vti': did you mean 'vit'"),
    (["--targets", "q,v_porj"], "unknown target 'v_porj'"),
    (["--adapter", "lora", "--rank", 0], "rank 0 does not fit"),
    (["--adapter", "lora", "--rank", 17],
     "rank 17 does not fit a layer of 16 inputs and 16 outputs"),
    (["--adapter", "lora", "--set", "rnk=3"], "unknown key for lora 'rnk': did you mean 'rank'"),
    (["--adapter", "lora", "--set", "rank=x"], "rank takes a int such as rank=8"),
    (["--adapter", "full", "--rank", 4], "the adapter full has no rank"),
    (["--adapter", "l_lora", "--linearize", "off"], "l_lora is a linearization"),
    (["--steps", 0], "--steps 0: give a positive number"),
    (["--device", "tpu9"], "--device tpu9 is not available here"),
    (["--out", "runs/{name}"], "only {model}, {adapter}, {task} and {seed} are filled in"),
    (["--out", "runs/x", "--task", "all"], "with several tasks it must contain {task}"),
    (["--size", 30], "image size 30 is no multiple of the patch size 7"),
    (["--data", "nowhere", "--task", "mine"], "--data nowhere is no folder"),
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
    assert code == 0 and "is finished: skipped" in out and "base val" not in out


def test_nan_stops_with_step_and_learning_rate(fit, tmp_path):
    code, _, err = fit("--adapter", "full", "--lr", 1e20)
    assert code == 2 and "the loss became nan at step" in err and "with learning rate" in err
    assert not (tmp_path / "runs/full-digits-s0").exists()


def test_bad_checkpoint_stops_training(command, tmp_path):
    folder = write_checkpoint(tmp_path / "m")
    good = (folder / "model.safetensors").read_bytes()
    changes = {"truncated": lambda t: None, "lacks": lambda t: t.pop("norm.bias"),
               "unexpected": lambda t: t.update(more=torch.zeros(2)),
               "shape": lambda t: t.update({"norm.bias": torch.zeros(3)})}
    told = {"truncated": "no complete safetensors file", "lacks": "lacks 1 tensors: norm.bias",
            "unexpected": "has unexpected 1 tensors: more", "shape": "norm.bias has shape (3,)"}
    for kind, change in changes.items():
        (folder / "model.safetensors").write_bytes(good)
        content = safetensors.read(folder / "model.safetensors")
        change(content)
        safetensors.write(content, folder / "model.safetensors")
        if kind == "truncated":
            (folder / "model.safetensors").write_bytes(good[:-1])
        code, _, err = command(train.main, "--model", folder, "--out", tmp_path / "r", *QUICK)
        assert code == 2 and told[kind] in err and err.count("\n") == 1, (kind, err)


def test_idx_task_trains_and_damaged_ones_stop(fit, tmp_path):
    assert fit("--task", "mine", "--data", write_idx(tmp_path / "good"))[0] == 0
    bad = write_idx(tmp_path / "bad", train_labels=b"\0\0\x08\x03")
    code, _, err = fit("--task", "bad", "--data", bad)
    assert code == 2 and "starts with 00000803" in err and err.count("\n") == 1


@pytest.mark.parametrize("words, told", [
    (["--merge", "tie"], "unknown rule 'tie': did you mean 'ties'"),
    (["--merge", "ties", "--set", "densty=0.2"],
     "unknown key for these rules 'densty': did you mean 'density'"),
    (["--merge", "ties", "--set", "density=2"], "density 2.0 is outside (0, 1]"),
    (["--merge", "ties", "--sweep", "lm=0:1:.1"],
     "unknown key for these rules 'lm': did you mean 'lam'"),
    (["--merge", "ties", "--sweep", "lam=0:1"], "write KEY=FROM:TO:STEP"),
    (["--merge", "ties", "--sweep", "lam=0:1:0"], "write KEY=FROM:TO:STEP"),
    (["--merge", "analogy"], "analogy takes 3 runs and got 2"),
    (["--merge", "tsv", "--space", "adapter"], "tsv merges in weight space only"),
    (["--merge", "pem"], "pem merges in adapter space only"),
    (["--merge", "task_arithmetic", "--set", "coefficients=[1,2,3]"],
     "3 coefficients for 2 task vectors"),
    (["--merge", "average", "--by", "sed"], "unknown --by 'sed': did you mean 'seed'"),
])
def test_bad_merge_input(fit, merge_runs, words, told):
    fit("--adapter", "lora")
    code, _, err, _ = merge_runs(["lora-digits-s0"] * 2, *words)
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 2 and len(lines) == 1 and told in lines[0], err


def test_one_run_and_an_untrained_run_are_refused(fit, merge_runs):
    fit("--adapter", "lora"), fit("--adapter", "lora", "--task", "count", "--lr", 0)
    for names, told in ((["lora-digits-s0"], "give at least two run folders"),
                        (["lora-digits-s0", "lora-count-s0"], "has a task vector of zeros")):
        code, _, err, groups = merge_runs(names, "--merge", "average")
        assert code == 2 and told in err and not groups


def test_runs_that_do_not_belong_together(command, fit, merge_runs, tmp_path):
    other = write_checkpoint(tmp_path / "other", seed=1)
    fit("--adapter", "lora")
    fit("--adapter", "lora", "--task", "letters", "--targets", "q,v")
    fit("--adapter", "lora", "--task", "count", "--rank", 3)
    fit("--adapter", "lora", "--task", "shapes", "--seed", 1)
    fit("--adapter", "l_lora", "--task", "arrows")
    command(train.main, "--adapter", "lora", "--model", other,
            "--out", tmp_path / "runs/other", *QUICK)
    cases = [("other", [], "different base checkpoints"),
             ("lora-letters-s0", [], "adapt different layers (blocks.0.fc1"),
             ("l_lora.model-arrows-s0", [], "linearized as a whole model"),
             ("lora-count-s0", ["--space", "adapter"], "different adapters or settings"),
             ("lora-shapes-s1", ["--space", "adapter"], "start from different blocks.0.q.A"),
             ("nothing", [], "is no run folder")]
    for name, words, told in cases:
        code, _, err, _ = merge_runs(["lora-digits-s0", name], "--merge", "average", *words)
        assert code == 2 and told in err, (name, err)
    code, _, err, _ = merge_runs(["l_lora.model-arrows-s0"] * 2, "--merge", "average",
                                 "--space", "weight")
    assert code == 2 and "not an edit of the weights: merge it with --space adapter" in err


def test_damaged_runs_are_refused(fit, merge_runs, tmp_path):
    fit("--adapter", "lora")
    folder = tmp_path / "runs/lora-digits-s0"
    good = (folder / "adapter.pt").read_bytes()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    def edit(change):
        run = torch.load(folder / "adapter.pt", weights_only=True)
        change(run)
        torch.save(run, folder / "adapter.pt")

    cases = [
        (lambda: (folder / "adapter.pt").write_bytes(good[:2000]),
         "not a complete file of tensors"),
        (lambda: (folder / "adapter.pt").write_bytes(pickle.dumps(Evil())),
         "not a complete file of tensors"),
        (lambda: torch.save(torch.zeros(3), folder / "adapter.pt"), "was not written by train.py"),
        (lambda: edit(lambda r: r["trained"].pop("blocks.0.q.A")),
         "1 tensors are missing or unexpected: blocks.0.q.A"),
        (lambda: edit(lambda r: r["trained"].update(x=torch.zeros(1))), "missing or unexpected: x"),
        (lambda: edit(lambda r: r["setting"]["hp"].update(rank=3)), "has shape"),
        (lambda: edit(lambda r: r["base"].update(sha256="0" * 64)),
         "was trained on another checkpoint"),
    ]
    for damage, told in cases:
        (folder / "adapter.pt").write_bytes(good)
        damage()
        code, _, err, _ = merge_runs(["lora-digits-s0"])
        assert code == 2 and told in err, (told, err)
    assert not (tmp_path / "pwned").exists()


def test_an_interrupted_run_is_no_result(fit, merge_runs, tmp_path):
    fit("--adapter", "lora")
    shutil.move(tmp_path / "runs/lora-digits-s0", tmp_path / "runs/lora-digits-s0.partial")
    code, _, err, _ = merge_runs(["lora-digits-s0"])
    assert code == 2 and "it was interrupted, continue it with train.py --resume" in err


def test_pretrain_writes_a_checkpoint_and_replaces_none(command, tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "ROUND", 64), monkeypatch.setattr(vit, "HELD_OUT", 40)
    words = ["--steps", 30, "--width", 16, "--depth", 1, "--heads", 2, "--out", tmp_path / "m"]
    code, out, err = command(pretrain.main, *words)
    assert code == 0 and "held-out scenes: symbol 0." in out, err
    first = encoders.load(tmp_path / "m")
    assert first(torch.rand(2, 1, 28, 28)).shape == (2, 16)
    code, _, err = command(pretrain.main, *words)
    assert code == 2 and "exists" in err and "--overwrite" in err
    assert command(pretrain.main, *words, "--overwrite")[0] == 0
    again = encoders.load(tmp_path / "m")
    assert command(pretrain.main, "--steps", 10, "--out", tmp_path / "n")[0] == 2
    assert again.sha256 == first.sha256                   # the same seed, the same bits


@pytest.mark.parametrize("adapter", ["lora", "l_lora", "dora"])
@pytest.mark.parametrize("kind", ["image", "text"])
def test_bfloat16_trains_and_merges(fit, command, tiny_text, tmp_path, kind, adapter):
    """Trained in bfloat16, heads fitted, merged and scored in float32."""
    words = {"image": ["--task", "digits,count"],
             "text": ["--task", "order,coref", "--model", tiny_text]}[kind]
    code, _, err = fit("--adapter", adapter, "--dtype", "bfloat16", "--lr", 0.02, *words)
    assert code == 0, err
    folders = sorted((tmp_path / "runs").iterdir())
    assert all(v.dtype == torch.bfloat16 and v.isfinite().all()
               for v in run_folder.load(folders[0])["trained"].values())
    loaded = [run_folder.load(folder) for folder in folders]
    space = spaces.vectors(loaded, spaces.default(loaded))
    held = [*space.base.values(), *space.taus[0].values(),
            *(v for head in loaded[0]["heads"].values() for v in head.values())]
    assert {v.dtype for v in held} == {torch.float32}
    code, out, err = command(evaluation.main, *folders, "--merge", "ties,fisher,fitted", "--limit",
                             20)
    assert code == 0 and "| fitted" in out, err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("adapter", ["lora", "l_lora", "adalora", "rosa"])
def test_a_gpu_trains_and_merges(fit, command, tmp_path, adapter):
    words = ["--task", "digits,count", *SPECIAL.get(adapter, [])]
    assert fit("--adapter", adapter, "--device", "cuda", *words)[0] == 0
    folders = sorted((tmp_path / "runs").iterdir())
    code, out, err = command(evaluation.main, *folders, "--merge", "all", "--limit", 20,
                             "--device", "cuda")
    assert code == 0 and "| twin" in out, err


def test_compare_chooses_on_val_and_reports_every_seed(command, tiny, tmp_path, monkeypatch):
    """Finished runs are not trained again; the rate of the table is the best on validation."""
    monkeypatch.setattr(compare, "SEEDS", (0, 1))
    out = tmp_path / "table"
    out.mkdir()
    times = (("lora_fa", "off", 0.9), ("lora_fa", "off, jvp", 7), ("lora", "layer", 8))
    (out / "bench.json").write_text(json.dumps(
        [dict(zip(("adapter", "linearize", "time"), row)) for row in times]))
    for rate, val in (("0.1", 0.8), ("0.2", 0.9)):
        for seed in (0, 1):
            folder = out / f"lora_fa-{rate}-count-s{seed}"
            folder.mkdir()
            numbers = {"val": val, "test": val - 0.1 * seed, "trainable": 7}
            (folder / "result.json").write_text(json.dumps(numbers))
    words = ["--adapters", "lora_fa", "--rates", "0.1,0.2", "--tasks", "count", "--model", tiny]
    code, text, err = command(compare.main, *words, "--out", out)
    assert code == 0, err
    row = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert row[:7] == ["lora_fa", "2308.03303", "7", "8", "0.2", "0.850 ± 0.071", "0.90"]
    code, _, err = command(compare.main, *words, "--steps", 0, "--out", tmp_path / "new")
    assert code == 2 and "--steps 0: give a positive number" in err


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
