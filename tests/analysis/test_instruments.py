"""eval.py --analyze: every instrument runs on every space, and what it reports is what was run."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch

import eval as evaluation
import merge
from analysis import plots, protocols  # noqa: F401  (fills INSTRUMENTS)
from analysis.instruments import INSTRUMENTS, Analysis, Subset
from encoders.heads import correct, features
from experiment import run_folder, spaces
from experiment.scoring import Tasks

TASKS = ("digits", "count", "shapes", "letters")


@pytest.fixture(params=["lora", "l_lora"])
def group(request, trained):
    """Four tiny runs of one adapter: weight space, and a model linearized as a whole."""
    return trained("--adapter", request.param, "--task", ",".join(TASKS), "--lr", 0.05)


def analysis_of(group, examples=20):
    loaded = [run_folder.load(folder) for folder in group]
    space = spaces.vectors(loaded, spaces.default(loaded))
    return Analysis(space, Tasks(loaded), "tiny", 0.5, examples)


def test_every_instrument_prints_a_table_and_numbers(group, command, tmp_path, small_grids):
    file = tmp_path / "out.json"
    assert evaluation.INSTRUMENTS == tuple(INSTRUMENTS)                # what --help names
    code, out, err = command(evaluation.main, *group, "--analyze", "all", "--limit", 10,
                             "--lam", 0.5, "--json", file)
    assert code == 0, err
    found = json.loads(file.read_text())["analysis"]
    assert len(found) == len(INSTRUMENTS)
    for name in INSTRUMENTS:
        assert f"\n{name}: " in out and any(key.endswith(f" {name}") for key in found)
    assert "requirements-figures.txt" in out


def test_features_at_coefficients_are_those_of_the_merged_model(group):
    """Also where a linearized model takes the short way over T + 1 passes."""
    a = analysis_of(group)
    c = [0.7, -0.2, 0.0, 1.3]
    merged = merge.RULES["task_arithmetic"](a.space.base, a.space.taus, lam=1.0, coefficients=c)
    x = a.sample("count", "test")[0]
    direct = features(a.space.apply(merged), x)
    torch.testing.assert_close(a.features(c, "count", "test"), direct, atol=1e-4, rtol=1e-4)
    assert a.space.affine == ("l_lora" in str(group[0]))


@pytest.mark.parametrize("rule", ["average", "task_arithmetic", "ties"])
def test_a_subset_merged_by_a_rule_is_the_rule_on_its_task_vectors(group, rule):
    """Two of the four, by the rule itself and by the short way, on both of their tasks."""
    a, members, seen = analysis_of(group, examples=500), ["count", "shapes"], set()
    taus = [a.space.taus[a.names.index(name)] for name in members]
    score = Subset(a, rule, members).score
    for lam in (0.01, 0.05, 0.3, 2.0):
        setting = {} if rule == "average" else {"lam": lam}
        merged = merge.RULES[rule](a.space.base, taus, **setting)
        for task in members:
            images, labels = a.sample(task, "val")
            direct = correct(a.tasks.heads[task], features(a.space.apply(merged), images), labels)
            assert score(lam, task, "val") == pytest.approx(direct, abs=1.01 / len(labels))
            seen.add((task, direct))
    assert len(seen) == 2 if rule == "average" else len(seen) > 3


def test_pairs_have_the_task_in_the_row_and_its_partner_in_the_column(group, small_grids):
    """The average of two, scored on the one in the row, beside its single model."""
    a = analysis_of(group, examples=40)
    pairs = INSTRUMENTS["subsets"](a)["pairs"]
    for i, j in ((0, 2), (2, 0), (1, 3), (3, 3)):
        task, c = a.names[i], a.only({a.names[i], a.names[j]}, 0.5 if i != j else 1.0)
        expected = a.score(c, task, "test") / a.score(a.only([task]), task, "test")
        assert pairs[i][j] == pytest.approx(expected, abs=1e-6)
    assert pairs[0][2] != pairs[2][0]


@pytest.mark.parametrize("choose, best", [("absolute", 0.5), ("normalised", 1.0)])
def test_the_lam_of_instruments_is_chosen_by_either_score(choose, best):
    """Singles .8 and .2: (.8, .1) is more accurate, and (.4, .3) better beside the singles."""
    a = SimpleNamespace(names=["x", "y"], only=lambda members: members[0],
                        score=lambda only, n, split: {"x": 0.8, "y": 0.2}[only])
    scores = {0.5: {"x": 0.8, "y": 0.1}, 1.0: {"x": 0.4, "y": 0.3}}
    merged = SimpleNamespace(a=a, members=a.names, score=lambda lam, n, split: scores[lam][n])
    assert protocols.best_lam([merged], [0.5, 1.0], choose) == best


def test_retention_has_the_scores_of_the_runs_on_its_diagonal(group):
    a = analysis_of(group, examples=40)
    table = INSTRUMENTS["retention"](a)["table"]
    for i, name in enumerate(a.names):
        own = run_folder.load(group[i])["result"]["test"]
        assert table[i + 1][i] == pytest.approx(own, abs=1e-9)
        assert table[0][i] == a.score([0.0] * 4, name, "test")


def test_tasks_left_out_are_scored_on_a_merge_of_the_others(group):
    """By hand: task arithmetic and the rule of the two others, on the first test inputs."""
    a = analysis_of(group)
    found, others = INSTRUMENTS["unseen"](a, rule="ties"), [[2, 3], [2, 3], [0, 1], [0, 1]]
    assert [row[0] for row in found["rows"]] == a.names
    for (name, base, added, learnt, own), kept in zip(found["rows"], others):
        taus = [a.space.taus[i] for i in kept]
        merged = [merge.RULES["task_arithmetic"](a.space.base, taus, lam=a.lam),
                  merge.RULES["ties"](a.space.base, taus, lam=1.0)]
        images, labels = a.sample(name, "test")
        direct = [correct(a.tasks.heads[name], features(a.space.apply(m), images), labels)
                  for m in (a.space.base, *merged)]
        assert [base, added, learnt] == pytest.approx(direct, abs=1.01 / len(labels))
        assert own == a.score(a.only([name]), name, "test")


def test_clean_images_are_scored_as_everywhere(group):
    """The first row of `corruption` has no corruption; the means leave it out."""
    a = analysis_of(group)
    found = INSTRUMENTS["corruption"](a, severities=(5,), rule="ties")
    clean, *rows = found["rows"]
    scores = lambda c: sum(a.score(c, n, "test") for n in a.names) / len(a.names)
    assert clean[:2] == ["clean", 0] and len(rows) == 7
    assert clean[2:4] == pytest.approx([scores(a.only([])), scores(a.only(a.names, a.lam))])
    assert clean[4] == pytest.approx(sum(Subset(a, "ties", a.names).score(1.0, n, "test")
                                         for n in a.names) / len(a.names), abs=1.01 / 80)
    assert found["mean"] == pytest.approx([sum(row[i] for row in rows) / 7 for i in (2, 3, 4)])


def test_disentanglement_is_zero_on_the_axes_of_its_task(group):
    """At (0, 0) no task vector acts: nothing changes a class."""
    found = INSTRUMENTS["disentangle"](analysis_of(group), lams=(0.0, 1.0))
    assert found["xi"][0][0] == 0 and 0 <= found["box"] <= 2


def test_fisher_of_single_and_merged_models_is_the_mean_squared_gradient(group):
    """By autograd, example by example and class by class, in the space of the merge."""
    a = analysis_of(group, examples=3)
    found, (x, y) = INSTRUMENTS["fisher"](a)["rows"][0], a.sample("count", "train")
    function = a.tasks.material(a.space, ["functions"])["functions"][0]
    expected = []
    for c in ([1, 0, 0, 0], [0.5] * 4):
        params = {k: v.clone().requires_grad_() for k, v in a.at(c).items()}
        grads = lambda value, params=params: torch.autograd.grad(
            value, params.values(), retain_graph=True, allow_unused=True)
        logp = function(params, x).log_softmax(1)
        norms = torch.tensor([[sum(g.square().sum() for g in grads(value) if g is not None)
                               for value in row] for row in logp])
        expected += [(logp.exp() * norms).sum(1).mean().log().item(),
                     norms[range(3), y].mean().log().item()]
    assert found[0] == "count" and found[1:] == pytest.approx(expected, abs=1e-3)
    assert len({round(v, 2) for v in expected}) == 4


def test_the_same_task_twice_is_refused(fit, command, tmp_path):
    fit("--adapter", "lora"), fit("--adapter", "lora", "--seed", 1)
    code, _, err = command(evaluation.main, *(tmp_path / "runs").iterdir(), "--analyze", "cosine")
    assert code == 2 and "give one run per task" in err


def test_figures_or_one_line_how_to_get_them(group, command, tmp_path):
    code, out, err = command(evaluation.main, *group, "--analyze",
                             "cosine,pca,spectrum,disentangle,landscape,entropy,subsets,coefficient",
                             "--limit", 5, "--lam", 0.5, "--plot", tmp_path / "figures")
    if importlib.util.find_spec("matplotlib") is None:
        assert code == 2 and "pip install -r requirements-figures.txt" in err
        assert not (tmp_path / "figures").exists()
    else:
        assert code == 0, err
        assert len(list((tmp_path / "figures").glob("*.png"))) == 9


def test_a_sweep_of_lam_is_one_figure(group, command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs matplotlib: see requirements-figures.txt")
    lines = {}
    monkeypatch.setattr(plots, "curves", lambda drawn, *rest: lines.update(drawn))
    look = lambda *words: command(evaluation.main, *group, "--limit", 5, "--plot", tmp_path, *words)
    code, _, err = look("--merge", "ties,average", "--sweep", "lam=0:1:0.5", "--by", "adapter,lr",
                        "--json", tmp_path / "x.json")
    assert code == 0, err
    assert list(lines) in (["LoRA, lr 0.05"], ["L-LoRA, whole model, lr 0.05"])
    rows, = (group["rows"] for group in json.loads((tmp_path / "x.json").read_text()).values())
    expected = [(setting["lam"], *[score] * 3) for setting, score in rows["ties"]["val_curve"]]
    assert list(lines.values()) == [expected] and len(expected) == 3
    code, _, err = look("--merge", "ties")
    assert code == 2 and "--plot draws --analyze or a sweep of lam" in err
    assert err.count("\n") == 1
