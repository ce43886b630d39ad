"""Preference tuning end to end, on a tiny random language model."""

import csv
import json

import pytest
import torch

import encoders
import eval
import lora
from encoders import safetensors
from experiment import run_folder
from linearize import adapt, encoder_of
from pretrain import gpt
from rlhf import __main__ as rlhf
from rlhf import policy, preferences, reward, soup
from support import SPECIAL, close, every_adapter, perturb, small

QUICK = ["--pairs", 30, "--reward-steps", 3, "--steps", 4, "--batch", 8]


@pytest.fixture(scope="session")
def tiny_gpt(tmp_path_factory):
    """A GPT of two blocks and width 16 that has seen a little English, as a checkpoint folder."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpt, "ROUND", 640)
        model, config = gpt.make(16, 2, 2)
        gpt.pretrain(model, steps=60, lr=1e-2)
    folder = tmp_path_factory.mktemp("gpt") / "tiny"
    safetensors.write(model.state_dict(), folder / "model.safetensors")
    run_folder.write_json({"model_type": "gpt_decoder"} | config, folder / "config.json")
    (folder / "vocab.txt").write_text("\n".join(gpt.vocabulary()) + "\n")
    return folder


@pytest.fixture
def backbone(tiny_gpt):
    return encoders.load(tiny_gpt).requires_grad_(False)


@pytest.fixture
def few(monkeypatch):
    """Few held-out pairs and prompts."""
    monkeypatch.setattr(rlhf, "TESTED", 20)
    monkeypatch.setattr(preferences, "HELD_OUT", 12)
    monkeypatch.setattr(soup, "PROMPTS", 12)


def scorer(backbone, name="lora", seed=1):
    return reward.Scorer(backbone, name, "off", "all", torch.Generator().manual_seed(seed),
                         **keys(name))


def keys(name):
    """Hyper-parameters that fit width 16."""
    return small(name) | {"rank": 2} if "rank" in lora.hyperparameters(lora.ADAPTERS[name]) else \
        SPECIAL.get(name, {})


# ---- what people like ----------------------------------------------------------------------------

@pytest.mark.parametrize("text, friendly, short", [
    ("good", 1, -1.5), ("a good day , superb", 2, -0.5), ("good fine superb lovely", 0, 0),
    ("bad and ugly", -2, -0.5), ("not bad", 1, -1), ("not good", -1, -1), ("", 0, -2),
    ("anna helped bruno and praised him", 2, -1)])
def test_hidden_rewards_by_hand(text, friendly, short):
    """Two kind words are the best, each further one costs; four words are short."""
    words = text.split()
    assert (preferences.friendly(words), preferences.short(words)) == (friendly, short)


def test_a_text_without_end_has_its_own_reward(backbone):
    ids = backbone.encode(["the film was good"])
    cut = ids[:, :-1]
    assert preferences.true_reward("friendly", backbone, ids).tolist() == [1.0]
    assert preferences.true_reward("friendly", backbone, cut).tolist() == [-3.0]


def test_pairs_follow_bradley_terry(backbone, monkeypatch):
    """Rewards 1 and 0: the first of a pair is preferred in sigmoid(2) = .881 of 4000 pairs."""
    made = iter(torch.arange(2).repeat_interleave(4000).view(2, 4000, 1))
    monkeypatch.setattr(preferences, "sample", lambda *args, **keywords: next(made))
    monkeypatch.setattr(preferences, "prompts", lambda *args: None)
    monkeypatch.setattr(preferences, "true_reward", lambda r, m, ids: 1.0 - ids[:, 0])
    preferred, other = preferences.pairs(backbone, "friendly", 4000, 0)
    assert abs((preferred == 0).double().mean().item() - 0.8808) < 0.02
    assert torch.equal(preferred + other, torch.ones_like(preferred))


# ---- one backbone --------------------------------------------------------------------------------

@every_adapter
def test_the_anchor_is_the_pretrained_model_to_the_bit(backbone, name):
    """Whatever the adapters of the policy do; what they leave alone is there once."""
    ids = backbone.encode(["the dog was good", "anna helped bruno"])
    before = backbone.logits(backbone(ids))
    model, _ = adapt(lora.twin(backbone), name, generator=torch.Generator().manual_seed(0),
                     **keys(name))
    ours = policy.Policy(backbone, model)
    close(ours.logits(ids), before, atol=1e-4, rtol=0)               # and the policy starts there
    descent = reward.Descent(model, 1e-2, 4)                         # lets schedules run: supports
    for _ in range(4):
        descent.descend(model(ids).square().mean())
    perturb(encoder_of(model), 0.5)
    assert torch.equal(ours.logits(ids, anchor=True), before)
    assert (ours.logits(ids) - before).abs().max() > 1e-3
    shared = {p.data_ptr() for p in backbone.parameters()}
    assert encoder_of(model).word.weight.data_ptr() in shared


def test_a_score_is_the_mean_over_real_tokens(backbone):
    made = perturb(scorer(backbone))
    ids = backbone.encode(["the film was good and long", "the meal was bad"])
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=ids.dtype)], 1)
    close(made.score(padded), made.score(ids), atol=1e-6, rtol=0)
    close(made.score(ids[1:]), made.score(ids)[1:], atol=1e-6, rtol=0)
    made.standardise(ids)
    close(made.score(ids).mean().item(), 0.0, atol=1e-4, rtol=0)
    close(made.score(ids).std().item(), 1.0, atol=1e-4, rtol=0)


def test_a_reward_model_learns_what_pairs_tell(backbone):
    """Kind endings are preferred to unkind ones: on new pairs it is right far above chance."""
    kind, unkind = "good great lovely nice clever".split(), "bad awful dull ugly stupid".split()
    texts = lambda words: backbone.encode([f"the {n} was {w}" for w in words
                                           for n in ("film", "song", "meal", "book")])
    made = scorer(backbone)
    reward.fit(made, texts(kind), texts(unkind), lr=1e-2, steps=60, batch=16, seed=0)
    new = (backbone.encode([f"the game was {w}" for w in words]) for words in (kind, unkind))
    assert reward.pair_accuracy(made, *new) == 1


@pytest.mark.parametrize("name", ["lora", "bitfit", "l_lora", "full"])
def test_beta_1_stays_at_the_anchor(backbone, name):
    """Every return is zero there, so nothing moves, to the bit."""
    model, _ = adapt(lora.twin(backbone), name, generator=torch.Generator().manual_seed(0))
    start = run_folder.state(model)[0]
    policy.train(policy.Policy(backbone, model), scorer(backbone), scorer(backbone, seed=2),
                 beta=1.0, lr=1e-2, steps=3, batch=8, seed=0)
    assert all(torch.equal(v, start[k]) for k, v in run_folder.state(model)[0].items())


def test_a_policy_learns_what_its_reward_model_says(backbone):
    """A reward that counts one token: after a few steps it is written more often."""
    token = backbone.tokenizer.vocab["the"]

    class Counts:
        def score(self, ids):
            return (ids[:, preferences.OPENING:] == token).sum(1).float()

    model, _ = adapt(lora.twin(backbone), "lora", generator=torch.Generator().manual_seed(0))
    ours = policy.Policy(backbone, model)
    start = preferences.prompts(backbone, 100, 0)
    written = lambda: ours.write(start, torch.Generator().manual_seed(0))
    before = Counts().score(written()).mean()
    policy.train(ours, Counts(), scorer(backbone), beta=0.0, lr=2e-2, steps=25, batch=32, seed=0)
    assert Counts().score(written()).mean() > before + 0.5


def test_what_is_measured(backbone):
    """The anchor against itself: KL exactly 0; the win rate counts ties half."""
    got = policy.measure(policy.Policy(backbone, backbone), None, "short", "val")
    assert got["kl"] == 0 and 0.3 < got["win"] < 0.7
    model, _ = adapt(lora.twin(backbone), "lora", generator=torch.Generator().manual_seed(0))
    perturb(model)
    assert policy.measure(policy.Policy(backbone, model), None, "short", "val")["kl"] > 0


# ---- the command ---------------------------------------------------------------------------------

def run(command, model, out, *words):
    code, printed, err = command(rlhf.main, "--model", model, "--out",
                                 out / "{adapter}-{reward}-b{beta}-s{seed}", *QUICK, *words)
    return code, printed, err


def test_the_command_trains_policies_and_cooks_a_soup(command, tiny_gpt, tmp_path, few):
    for name in ("friendly", "short"):
        code, out, err = run(command, tiny_gpt, tmp_path, "--reward", name, "--steps", 21,
                             "--json", tmp_path / f"{name}.json")
        assert code == 0, err
    assert "| anchor" in out and "| beta 0.3" in out and "held-out pairs" in out
    runs = [tmp_path / f"lora-{name}-b0.3-s0" for name in ("friendly", "short")]
    code, _, err = command(eval.main, *runs, "--merge", "average")
    assert code == 2 and "is a policy" in err and "--soup" in err
    assert {p.name for p in runs[0].iterdir()} == {"adapter.pt", "config.json", "log.csv",
                                                    "result.json"}
    log = list(csv.reader((runs[0] / "log.csv").open()))
    assert log[0] == ["step", "kl", "proxy", "true", "win"]
    assert [int(row[0]) for row in log[1:]] == [*range(2, 21, 2), 21]
    code, out, err = command(rlhf.main, "--soup", *runs, "--points", 3, "--merge", "ties", "--json",
                             tmp_path / "soup.json")
    assert code == 0, err
    rows = json.loads((tmp_path / "soup.json").read_text())["rows"]
    assert [row[:2] for row in rows] == [["anchor", "-"], *[["interpolation", a] for a in
                                                            (0, 0.5, 1)], ["ties", "-"]]
    for row, folder in ((rows[1], runs[0]), (rows[3], runs[1])):       # the ends are the policies
        alone = run_folder.load(folder)
        model = run_folder.rebuild(alone, run_folder.base_encoder(alone))
        merged = soup.spaces.vectors([alone], "weight")
        ids = model.encode(["the film was good"])
        close(merged.apply(soup.merge.add(merged.base, merged.taus[0]))(ids), model(ids),
              atol=1e-4, rtol=0)
        assert row[2:] == list(soup.rewards_of(merged.apply(
            soup.merge.add(merged.base, merged.taus[0])), model).values())


@pytest.mark.parametrize("adapter, reading", [("l_lora", "model"), ("dora", "layer"),
                                              ("bottleneck", "model")])
def test_linearized_policies_are_trained_and_merged(command, tiny_gpt, tmp_path, few, adapter,
                                                    reading):
    for name in ("friendly", "short"):
        code, out, err = run(command, tiny_gpt, tmp_path, "--adapter", adapter, "--linearize",
                             reading, "--reward", name)
        assert code == 0, err
    words = out.splitlines()[-2].split()
    assert words[:4] == ["next:", "python", "-m", "rlhf"]            # all that was given, and
    assert words[-4:] == ["--reward", "short", "--reward", "friendly"] and reading in words
    code, out, err = command(rlhf.main, *out.splitlines()[-1].split()[4:], "--points", 2)
    assert code == 0 and out.count("| interpolation") == 2, err


def test_the_same_seed_gives_the_same_bits_and_finished_runs_are_skipped(
        command, tiny_gpt, tmp_path, few):
    for out in (tmp_path / "a", tmp_path / "b"):
        assert run(command, tiny_gpt, out, "--beta", "0,0.5")[0] == 0
    for beta in ("0", "0.5"):
        a, b = (run_folder.load(tmp_path / out / f"lora-friendly-b{beta}-s0")["trained"]
                for out in "ab")
        assert all(torch.equal(a[k], b[k]) for k in a)
    code, out, _ = run(command, tiny_gpt, tmp_path / "a", "--beta", "0,0.5,1", "--resume", "--json",
                       tmp_path / "all.json")
    assert code == 0 and out.count("is finished: skipped") == 2
    rows = json.loads((tmp_path / "all.json").read_text())             # the finished ones, too
    assert list(rows) == ["reward model", "anchor", "beta 0", "beta 0.5", "beta 1"]
    assert all(len(rows[f"beta {b}"]["log"][0]) == 5 for b in ("0", "0.5", "1"))
    code, _, err = run(command, tiny_gpt, tmp_path / "a")
    assert code == 0                                                 # beta 0.3 is another run
    code, _, err = run(command, tiny_gpt, tmp_path / "a", "--beta", "0")
    assert code == 2 and "exists" in err


@pytest.mark.parametrize("words, told", [
    (["--reward-steps", "0"], "--reward-steps 0: give"),
    (["--beta", "2"], "--beta takes numbers from 0 to 1"),
    (["--beta", "x"], "--beta takes numbers from 0 to 1"),
    (["--beta", "nan"], "--beta takes numbers from 0 to 1"),
    (["--model", "vit"], "vit is no language model"),
    (["--model", "bert"], "bert is no language model"),
    (["--adapter", "lorra"], "unknown adapter 'lorra'"),
    (["--set", "rnk=2"], "unknown key for lora 'rnk'"),
    (["--temperature", "0"], "--temperature 0.0: give a number above 0"),
    (["--pairs", "0"], "--pairs 0: give"), (["--points", "1"], "--points 1: give"),
    (["--merge", "fisher"], "unknown rule without data for two runs 'fisher'"),
    (["--soup", "nowhere", "nowhere"], "nowhere is no run folder"),
    (["--targets", "zz"], "unknown target 'zz'"),
    (["--out", "runs/{task}"], "are filled in"),
    (["--out", "mine", "--beta", "0,0.1"], "with several --beta it must contain {beta}"),
    (["--resume", "--overwrite"], "--resume keeps what is finished and --overwrite replaces it"),
    (["--points", "5"], "--points: no use without --soup: leave it out"),
    (["--soup", "a", "b", "--seed", "7"], "--seed: no use with --soup: leave it out")])
def test_bad_input(command, tiny_gpt, words, told):
    words = words if {"--model", "--soup"} & {*words} else ["--model", tiny_gpt, *words]
    code, _, err = command(rlhf.main, *words)
    assert code == 2 and told in err and err.count("\n") == 1, err


def test_no_run_of_another_kind_makes_a_soup(command, trained, capsys):
    (one,) = trained()
    capsys.readouterr()
    code, _, err = command(rlhf.main, "--soup", one, one)
    assert code == 2 and "is no policy" in err


def test_train_and_eval_say_that_a_language_model_is_for_rlhf(command, tiny_gpt):
    import train
    code, _, err = command(train.main, "--model", tiny_gpt)
    assert code == 2 and "python -m rlhf" in err and err.count("\n") == 1
