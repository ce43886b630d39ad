"""scoring.py: choosing on validation, models behind a router, seconds and memory."""

import pytest
import torch

import merge
from experiment import run_folder, scoring, spaces
from experiment.measure import Peak, reset_high_water
from experiment.scoring import Tasks, along, search


@pytest.fixture(params=["lora", "l_lora"])
def group(request, trained):
    """(runs, space, tasks) of two tiny runs, in weight space and linearized as a whole."""
    folders = trained("--adapter", request.param, "--task", "digits,count", "--lr", 0.05)
    loaded = [run_folder.load(folder) for folder in folders]
    return loaded, spaces.vectors(loaded, spaces.default(loaded)), Tasks(loaded)


def test_search_takes_the_best_setting_on_val(group):
    """The short way over lam gives the accuracies of the merged models themselves."""
    _, space, tasks = group
    choices = [{"lam": lam} for lam in (0.0, 0.5, 1.0, 3.0)]
    row = search("task_arithmetic", choices, space, tasks)
    direct = []
    for choice in choices:
        merged = merge.RULES["task_arithmetic"](space.base, space.taus, **choice)
        scores = tasks.scores(space.apply(merged), "val")
        direct.append(sum(scores.values()) / 2)
    assert [score for _, score in row["val_curve"]] == pytest.approx(direct, abs=0.026)
    best = max(range(4), key=lambda i: row["val_curve"][i][1])
    assert row["chosen"] == choices[best] and row["seconds"] > 0
    merged = along(space.base, merge.add(space.base, space.taus[0]), 0.25)
    torch.testing.assert_close(merged, merge.add(space.base, space.taus[0], 0.25))


@pytest.mark.parametrize("choose, best", [("absolute", 0.25), ("normalised", 1.0)])
def test_search_by_either_score(group, monkeypatch, choose, best):
    """Singles .8 and .2: (.8, .1) is more accurate, and (.4, .3) better beside the singles."""
    _, space, tasks = group
    scores = {0.25: {"digits": 0.8, "count": 0.1}, 1.0: {"digits": 0.4, "count": 0.3}}
    monkeypatch.setattr(scoring, "singles", lambda *_: {"digits": 0.8, "count": 0.2})
    monkeypatch.setattr(scoring.Mixture, "scores", lambda self, c, *_: scores[c[0]])
    row = search("task_arithmetic", [{"lam": 0.25}, {"lam": 1.0}], space, tasks, choose)
    assert row["chosen"] == {"lam": best}
    expected = {"absolute": [0.45, 0.35], "normalised": [0.75, 1.0]}
    assert [score for _, score in row["val_curve"]] == pytest.approx(expected[choose])


def test_experts_are_scored_on_their_own_task_or_where_the_router_sends(group):
    _, space, tasks = group
    models = [merge.add(space.base, tau) for tau in space.taus]
    own = tasks.score_result(merge.Experts(models), space, "test")["scores"]
    for name, model in zip(tasks.order, models):
        assert own[name] == tasks.score(space.apply(model), "test", name)
    to_second = merge.Experts(models, lambda x: torch.ones(len(x), dtype=torch.int64))
    sent = tasks.routed(to_second, space, "test")
    assert [sum(own) for _, own in sent.values()] == [0, 40]
    routed = tasks.score_result(to_second, space, "test")["scores"]
    assert routed == pytest.approx(tasks.scores(space.apply(models[1]), "test"))


def test_several_runs_on_a_task_count_as_their_mean(group):
    """Scores in the order of the runs; an expert of either run of a task is its expert."""
    (one, other), space, _ = group
    tasks = Tasks([one, other, one | {"result": one["result"] | {"val": 0.125}}])
    given = tasks.material(space, ["scores"])["scores"]
    assert given == [one["result"]["val"], other["result"]["val"], 0.125]
    models = [merge.add(space.base, tau) for tau in space.taus]
    experts = merge.Experts([space.base, models[1], models[0]])
    names = [run["setting"]["task"] for run in (one, other)]
    found = tasks.score_result(experts, space, "val")["scores"]
    score = lambda params, task: tasks.score(space.apply(params), "val", task)
    ends = [score(params, names[0]) for params in (space.base, models[0])]
    assert ends[0] != ends[1] and found[names[0]] == sum(ends) / 2
    assert found[names[1]] == score(models[1], names[1])


def test_rules_get_the_data_they_name(group):
    _, space, tasks = group
    made = tasks.material(space, ["functions", "batches", "labelled", "scores"])
    x, y = made["labelled"][1]
    model = merge.add(space.base, space.taus[1])
    logits = made["functions"][1](model, x)
    accuracy = (logits.argmax(1) == y).double().mean().item()
    assert accuracy == tasks.score(space.apply(model), "val", tasks.order[1])
    assert len(made["batches"]) == 2 and made["scores"][0] == tasks.runs[tasks.order[0]]["result"][
        "val"]
    assert torch.equal(made["batches"][0], tasks.data("calib", tasks.order[0])[0])


def test_regmean_sees_the_inputs_of_every_layer(group):
    """x W^T + b of the recorded inputs is what the layer computes."""
    _, space, tasks = group
    x = tasks.data("val", "digits")[0][:2]
    if space.activations is None:
        return
    seen = space.activations(space.base, x)
    assert set(seen) == set(space.base)
    width = {k: v.shape[1] for k, v in space.base.items()}
    assert all(seen[k].shape == (2 * 17, width[k]) for k in seen)     # 16 patches and a class token
    assert torch.equal(seen["blocks.0.q.weight"], seen["blocks.0.v.weight"])
    changed = {k: v + (k == "blocks.0.fc1.weight") for k, v in space.base.items()}
    other = space.activations(changed, x)
    assert torch.equal(seen["blocks.0.fc1.weight"], other["blocks.0.fc1.weight"])
    assert not torch.equal(seen["blocks.0.fc2.weight"], other["blocks.0.fc2.weight"])


@pytest.mark.skipif(reset_high_water() is None, reason="this system does not count peak memory")
def test_peak_sees_what_is_allocated_and_let_go():
    """64 MB, held for less than any sampling would notice; then what came before is forgotten."""
    with Peak() as peak:
        torch.ones(16_000_000).sum()
    assert peak.seconds > 0 and 50e6 < peak.bytes < 100e6
    with Peak() as peak:
        pass
    assert peak.bytes < 10e6


def test_a_lam_of_experts_is_a_setting_like_any_other(group):
    """Twin's lam is that of its shared part: every value is a run of the rule."""
    _, space, tasks = group
    row = search("twin", [{"lam": 0.0, "steps": 2}, {"lam": 0.5, "steps": 2}], space, tasks)
    assert isinstance(row["result"], merge.Experts) and len(row["val_curve"]) == 2
    assert row["chosen"]["lam"] in (0.0, 0.5)


def test_summaries_by_hand():
    rows = {"base": {"scores": {"a": 0.2, "b": 0.4}}, "single": {"scores": {"a": 0.8, "b": 0.6}},
            "merged": {"scores": {"a": 0.6, "b": 0.5}}}
    scoring.summarize(rows)
    merged = [rows["merged"][key] for key in ("absolute", "normalised", "share")]
    assert merged == pytest.approx([0.55, (3 / 4 + 5 / 6) / 2, 0.25 / 0.4])
    assert [rows[name]["worst"] for name in rows] == ["a", "b", "a"]
