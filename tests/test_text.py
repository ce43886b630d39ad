"""A text model under everything that is done to models: linearization, Fisher, RegMean, merging.

In float64, on texts of different lengths; what is added as padding must count nowhere.
"""

import shutil

import pytest
import torch
from torch.func import functional_call, jvp

import eval as evaluation
import merge
import train
from experiment import run_folder, spaces
from experiment.scoring import RULES, obstacle
from linearize import encoder_of
from rules import fisher, regmean
from rules.matching import permute_stream
from support import adapted, every_adapter, text_encoder
from tasks import written

SEP = 3


@pytest.fixture
def ids():
    """Three texts and a pair, 9 tokens at most."""
    rows = [[2, 5, 6, 7, SEP], [2, 9, SEP], [2, 8, 8, 10, SEP, 11, 12, 13, SEP], [2, 20, 21, SEP]]
    return torch.tensor([row + [0] * (9 - len(row)) for row in rows])


def wider(ids, columns=4):
    """The same texts with more padding."""
    return torch.nn.functional.pad(ids, (0, columns))


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# ---- linearization -------------------------------------------------------------------------------

def linear(name, reading):
    """The tiny BERT, linearized around a start away from the initialisation."""
    return adapted(text_encoder().double(), name, reading, x=torch.tensor([[2, 5, 6, SEP]]))


@every_adapter
@pytest.mark.parametrize("reading", ["layer", "model"])
def test_every_reading_has_the_value_of_the_model_at_its_start(ids, name, reading):
    plain, expanded = linear(name, "off"), linear(name, reading)
    close(expanded(ids), plain(ids))
    close(expanded(wider(ids)), expanded(ids))


def test_the_jvp_is_the_slope(ids):
    """Central differences along a random direction in all parameters, embeddings too."""
    model = text_encoder().double()
    p = {n: v.detach() for n, v in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    v = {n: torch.randn(t.shape, generator=generator, dtype=t.dtype) for n, t in p.items()}
    f = lambda p, ids=ids: functional_call(model, p, (ids,))
    _, slope = jvp(f, (p,), (v,))
    step = lambda h: f({n: p[n] + h * v[n] for n in p})
    close((step(1e-6) - step(-1e-6)) / 2e-6, slope, 1e-6)
    close(jvp(lambda p: f(p, wider(ids)), (p,), (v,))[1], slope)
    assert slope.abs().max() > 0.1


# ---- rules that look at data ---------------------------------------------------------------------

@pytest.fixture
def space():
    """The weight space of two LoRA runs on the tiny BERT, without run folders."""
    torch.manual_seed(0)
    encoder = text_encoder().double()
    names = [n for n, _ in encoder.named_parameters() if n.endswith((".q.weight", ".fc2.weight"))]
    group = [{"folder": "a", "setting": {"linearize": "off", "quantize": None}},
             {"folder": "b", "setting": {"linearize": "off", "quantize": None}}]
    deltas = iter([{n: 0.1 * torch.randn_like(encoder.get_parameter(n)) for n in names}
                   for _ in group])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spaces.run_folder, "rebuild", lambda run, encoder: encoder)
        patch.setattr(spaces.lora, "deltas", lambda model: next(deltas))
        return spaces.weight_space(group, encoder)


def head(features):
    return features[:, :3]


def by_autograd(function, params, ids):
    """The diagonal Fisher from the definition: one backward pass per text and class."""
    total = {k: torch.zeros_like(v) for k, v in params.items()}
    for row in ids:
        leaf = {k: v.clone().requires_grad_() for k, v in params.items()}
        logp = function(leaf, row[None])[0].log_softmax(-1)
        for value in logp:
            for k, g in zip(leaf, torch.autograd.grad(value, leaf.values(), retain_graph=True)):
                total[k] += value.exp().item() * g.square() / len(ids)
    return total


def test_fisher_of_texts(space, ids):
    function = lambda p, x: head(space.call(p, x))
    F = fisher.diagonal_fisher(function, space.base, ids, chunk=3)
    padded = fisher.diagonal_fisher(function, space.base, wider(ids))
    for k, f in by_autograd(function, space.base, ids).items():
        close(F[k], f)
        close(padded[k], f)
    assert max(f.max() for f in F.values()) > 1e-6


def test_regmean_counts_real_tokens_only(space, ids):
    k = "blocks.1.fc2.weight"
    X = space.activations(space.base, ids)[k]
    assert X.shape == ((ids != 0).sum(), 24)
    alone = [space.activations(space.base, row[None, :(row != 0).sum()])[k] for row in ids]
    close(X, torch.cat(alone))
    close(space.activations(space.base, wider(ids))[k], X)
    G = regmean.grams(space.activations, space.base, ids, space.base.keys())[k]
    close(G, sum(x.T @ x for x in alone) / sum(len(x) for x in alone))


@pytest.mark.parametrize("rule", ["fisher", "regmean", "regmean_pp", "pleas"])
def test_data_rules_take_texts_of_different_lengths(space, ids, rule):
    keywords = {"activations": space.activations, "functions": 2 * [lambda p, x:
                                                                   head(space.call(p, x))]}
    needs = merge.needs(rule)
    merged = [merge.RULES[rule](space.base, space.taus, batches=batches,
                                **{k: v for k, v in keywords.items() if k in needs})
              for batches in ([ids[:3], ids[1:, :4]], [wider(ids[:3]), wider(ids[1:, :4], 9)])]
    for k in space.base:
        close(merged[0][k], merged[1][k], 1e-9)
    assert any((merged[0][k] - space.base[k]).abs().max() > 1e-3 for k in space.base)


def test_the_router_of_twin_takes_texts(space, ids):
    labelled = [(ids[:2], None), (ids[2:, :9], None)]
    made = merge.RULES["twin"](space.base, space.taus, features=space.call, labelled=labelled)
    assert made.route(ids).tolist() == [0, 0, 1, 1]


def test_text_tensors_move_with_the_residual_stream(ids):
    """Features of permuted weights are the permuted features: every tensor of BERT is known."""
    model = text_encoder().double()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    p = {n: v.detach() for n, v in model.named_parameters()}
    close(functional_call(model, permute_stream(p, order), (ids,)), model(ids)[:, order])


# ---- train.py and eval.py ------------------------------------------------------------------------

@pytest.fixture
def fit(command, tiny_text, tmp_path):
    """fit("--task", "accept", ...) trains the tiny BERT for 6 steps into tmp_path."""
    return lambda *words: command(
        train.main, "--model", tiny_text, "--out", tmp_path / "{adapter}-{task}-s{seed}",
        "--steps", 6, "--limit", 40, "--batch", 16, "--size", 48, *words)


@pytest.mark.parametrize("adapter, rules", [("lora", "all"), ("l_lora", "ties,fisher,twin")])
def test_texts_are_trained_merged_and_looked_at(fit, command, tmp_path, adapter, rules):
    code, out, err = fit("--adapter", adapter, "--task", "sentiment,entail", "--lr", 0.01)
    assert code == 0 and "adapted 12 layers" in out, err
    folders = sorted(tmp_path.glob("*-s0"))
    run = run_folder.load(folders[0])
    model = run_folder.rebuild(run, run_folder.base_encoder(run))
    texts = ["a film", ("no cat", "a dog")]
    base, taus, apply, call, *_ = spaces.vectors([run], spaces.default([run]))
    ids = encoder_of(model).encode(texts)
    merged = merge.add(base, taus[0])
    torch.testing.assert_close(call(merged, ids), model(ids), atol=1e-5, rtol=0)
    code, out, err = command(evaluation.main, *folders, "--merge", rules, "--limit", 20,
                             "--set", "steps=3", *(["--set", "budget=4"] if rules == "all" else []))
    rows = {line.split("|")[1].split()[0] for line in out.splitlines() if line.startswith("| ")}
    with_data = {name for name in RULES if merge.needs(name) and not obstacle(name, "weight", 2)}
    expected = with_data if rules == "all" else set(rules.split(","))
    assert code == 0 and expected | {"base", "single"} <= rows, err
    code, out, err = command(evaluation.main, *folders, "--analyze", "cosine,entropy")
    assert code == 0 and "Spearman" in out, err


def test_the_first_text_task_is_the_default_and_all_means_texts(fit, tmp_path):
    assert fit("--adapter", "lora")[0] == 0
    assert fit("--adapter", "bitfit", "--task", "all", "--joint")[0] == 0
    assert run_folder.tasks(run_folder.load(tmp_path / "lora-accept-s0")) == ["accept"]
    assert run_folder.tasks(run_folder.load(tmp_path / "bitfit-joint-s0")) == list(written.TASKS)


def test_train_says_how_many_texts_are_cut(fit, tmp_path):
    rows = [f"{'a ' * (6 + i % 2)},{'yes' if i % 4 > 1 else 'no'}" for i in range(80)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]))
    words = "--task", "films", "--data", tmp_path, "--adapter", "lora", "--limit", 1000, "--size"
    eight, nine, ten = (fit(*words, size, "--overwrite")[1] for size in (8, 9, 10))
    assert "films: 64 of 64 training texts reach 8 tokens, where texts are cut" in eight
    assert 20 < int(nine.split()[1]) < 44 and "texts reach 9 tokens" in nine
    assert "texts are cut" not in ten


def test_a_text_run_resumes(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 3)
    assert fit("--adapter", "lora")[0] == 0
    whole = run_folder.load(tmp_path / "lora-accept-s0")["trained"]

    def stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    save = run_folder.save_progress
    monkeypatch.setattr(run_folder, "save_progress", stop)
    assert fit("--adapter", "lora", "--overwrite")[0] == 130
    monkeypatch.setattr(run_folder, "save_progress", save)
    shutil.rmtree(tmp_path / "lora-accept-s0")
    assert fit("--adapter", "lora", "--resume")[0] == 0
    again = run_folder.load(tmp_path / "lora-accept-s0")["trained"]
    assert all(torch.equal(again[k], v) for k, v in whole.items())


def test_the_wrong_kind_is_one_line_before_anything_is_made(fit, command, tiny, tmp_path):
    code, _, err = fit("--task", "digits")
    assert code == 2 and "is a model of texts and digits a task of images: give another" in err
    code, _, err = command(train.main, "--model", tiny, "--task", "accept", "--out", tmp_path / "x")
    assert code == 2 and "is a model of images and accept a task of texts" in err
    assert not list(tmp_path.iterdir()) and err.count("\n") == 1


def test_instruments_that_do_not_fit_are_refused_or_left_out(fit, command, tmp_path, small_grids):
    assert fit("--adapter", "bitfit", "--task", "accept,order")[0] == 0
    look = lambda *what: command(evaluation.main, *sorted(tmp_path.glob("*-s0")), "--limit", 20,
                                 "--analyze", ",".join(what))
    for name, why in (("corruption", "is for images and these runs are on texts"),
                      ("analogy", "needs runs on four tasks or more")):
        code, _, err = look("cosine", name)
        assert code == 2 and f"{name} {why}: leave it out" in err and err.count("\n") == 1
    code, out, err = look("all")
    assert code == 0 and "corruption:" not in out and "retention:" in out, err
    assert "a task vector has no matrix" in out                                # biases alone
