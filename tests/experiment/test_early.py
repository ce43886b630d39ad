"""train.py --every, --trace and --keep: what is logged, which step is kept, and after --resume."""

import csv
import json
import shutil

import pytest
import torch

import lora
import train
from analysis.instruments import Analysis
from analysis.protocols import fisher
from encoders.heads import Prototypes
from experiment import early, run_folder, spaces
from experiment.scoring import Tasks
from linearize import encoder_of
from support import adapted, every_adapter, identical, tensors

SETTING = {"every": 2, "trace": True}


def rows(folder):
    return list(csv.DictReader(open(folder / "log.csv")))


@pytest.mark.parametrize("keep, step", [("last", None), ("best", 4), ("trace", 2)])
def test_the_first_best_step_is_kept(encoder, monkeypatch, keep, step):
    """val .3 .7 .7 .5 and log-trace 9 8 9 7 at steps 2 4 6 8."""
    model, seen = adapted(encoder, "lora", "off"), iter([0.3, 0.7, 0.7, 0.5])
    traces = iter([9.0, 8.0, 9.0, 7.0])
    monkeypatch.setattr(early, "log_trace", lambda *_: next(traces))
    watch, B = early.Watch(SETTING | {"keep": keep}, lambda: next(seen), []), model.blocks[0].q.B
    for i in range(1, 9):
        B.data.fill_(i)
        cells = watch.look(model, i, 8)
        assert (cells == ("", "")) == (i % 2 == 1) and len(cells) == len(watch.columns)
    assert watch.restore(model) == ({} if step is None else {"kept_step": step})
    assert B.unique().item() == (step or 8)


def test_watching_changes_nothing_and_keeps_the_best_on_val(fit, tmp_path):
    out, words = tmp_path / "runs/lora-digits-s0", ["--adapter", "lora", "--lr", 0.3]
    assert fit(*words)[0] == 0
    plain, log = tensors(out), rows(out)
    assert fit(*words, "--overwrite", "--every", 4, "--trace")[0] == 0
    assert identical(plain, tensors(out))
    seen = rows(out)
    assert [row["step"] for row in seen if row["val"]] == ["4", "6"]        # every N-th, the last
    assert all(bool(row["val"]) == bool(row["log_trace"]) for row in seen)
    assert [row["loss"] for row in seen] == [row["loss"] for row in log]
    code, text, _ = fit(*words, "--overwrite", "--every", 1, "--keep", "best")
    vals, result = [float(row["val"]) for row in rows(out)], json.loads(
        (out / "result.json").read_text())
    assert code == 0 and result["val"] == max(vals) and "log_trace" not in rows(out)[0]
    assert result["kept_step"] == vals.index(max(vals)) + 1
    assert f"kept step {result['kept_step']}, the best by --keep best" in text


def test_the_kept_step_survives_an_interruption(fit, tmp_path, monkeypatch):
    """Kept at step 2, stopped at 3, --resume: the bits and the log of the run that was not."""
    out, words = tmp_path / "runs/lora-digits-s0", ["--adapter", "lora", "--every", 2, "--keep",
                                                    "trace"]
    monkeypatch.setattr(train, "SAVE_EVERY", 3)
    monkeypatch.setattr(early, "log_trace", lambda model, sets: -sum(
        p.square().sum().item() for name, p in lora.trainable(model).items() if name[-1] == "B"))
    assert fit(*words)[0] == 0
    whole, log = tensors(out), (out / "log.csv").read_text()
    assert json.loads((out / "result.json").read_text())["kept_step"] == 2
    save = run_folder.save_progress

    def stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "save_progress", stop)
    assert fit(*words, "--overwrite")[0] == 130
    monkeypatch.setattr(run_folder, "save_progress", save)
    shutil.rmtree(out)
    assert fit(*words, "--resume")[0] == 0
    assert identical(whole, tensors(out)) and (out / "log.csv").read_text() == log
    assert json.loads((out / "result.json").read_text())["kept_step"] == 2


@every_adapter
def test_log_trace_is_that_of_the_trained_parameters(encoder, name):
    """By autograd, example by example and class by class, for every adapter as it is."""
    model = adapted(encoder, name, lora.ADAPTERS[name].linearize)
    g = torch.Generator().manual_seed(0)
    x, f = (torch.rand(*shape, generator=g).double() for shape in ((2, 1, 28, 28), (6, 16)))
    head = Prototypes(16, 3).double().fit(f, torch.tensor([0, 1, 2] * 2))
    params, total = list(lora.trainable(encoder_of(model)).values()), 0.0
    logp = head(model(x)).log_softmax(1)
    for value in logp.flatten():
        grads = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        total += value.exp() * sum(v.square().sum() for v in grads if v is not None)
    found = early.log_trace(model, [(head, x, torch.tensor([0, 1]))])
    assert found == pytest.approx((total / 2).log().item(), abs=1e-8)


def test_the_logged_trace_is_that_of_analyze(trained):
    """In adapter space, at the last step, on the same 40 examples."""
    folders = trained("--adapter", "lora", "--task", "digits,count", "--every", 6, "--trace")
    loaded = [run_folder.load(folder) for folder in folders]
    a = Analysis(spaces.vectors(loaded, "adapter"), Tasks(loaded), "tiny", 0.5)
    for folder, row in zip(folders, fisher(a)["rows"]):
        assert float(rows(folder)[-1]["log_trace"]) == pytest.approx(row[1], abs=1e-4)
