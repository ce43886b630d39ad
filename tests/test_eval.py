"""eval.py from the outside: which runs merge and in which space; one line for all others."""

import csv
import functools
import json
import os
import pickle
import shlex
import shutil

import pytest
import torch

import eval as evaluation
import lora
import merge
from experiment import cli, run_folder, scoring, spaces
from lora import ADAPTERS
from support import SPECIAL_WORDS as SPECIAL, write_checkpoint


@pytest.fixture
def merge_runs(command, tmp_path):
    """merge_runs([names], "--merge", ...) returns (code, stdout, stderr, {rows of the JSON})."""
    def call(names, *words):
        file = tmp_path / "out.json"
        code, out, err = command(evaluation.main, *[tmp_path / "runs" / n for n in names],
                                 "--json", file, *words)
        rows = json.loads(file.read_text()) if file.exists() else {}
        rows = {key: group["rows"] for key, group in rows.items() if key != "runs"}
        return code, out, err, rows
    return call


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
    start = run_folder.rebuild(run | {"trained": run["start"]}, run_folder.base_encoder(run))
    mixed = spaces.vectors([run, run_folder.load(tmp_path / "runs/lora-count-s0")], "weight")
    close = functools.partial(torch.testing.assert_close, atol=1e-6, rtol=0)
    for name, layer in lora.adapters(start).items():   # the rounding is in the base; in tau beside
        k = f"{name}.weight"                           # a run in float
        close(base[k], layer.base.weight + layer.delta_weight())
        close(mixed.base[k] + mixed.taus[0][k], base[k] + taus[0][k])
        close(mixed.base[k], run_folder.base_encoder(run).get_parameter(k))


def test_ranks_and_kinds_merge_in_weight_space(trained, merge_runs):
    third = ["--adapter", "lora", "--linearize", "layer", "--task", "count", "--rank", 3]
    folders = [*trained("--adapter", "lora", "--rank", 2),
               *trained("--adapter", "full", "--task", "letters"), *trained(*third)]
    code, out, err, groups = merge_runs(folders, "--merge", "average,task_arithmetic,ties",
                                        "--sweep", "lam=0:1:0.5", "--limit", 30)
    assert code == 0, err
    rows = groups["all"]
    assert rows["task_arithmetic"]["chosen"]["lam"] in (0.0, 0.5, 1.0)
    curve = [score for _, score in rows["task_arithmetic"]["val_curve"]]
    best = int(rows["task_arithmetic"]["chosen"]["lam"] * 2)
    assert len(curve) == 3 and max(curve) == curve[best]
    assert rows["single"]["normalised"] == 1 and rows["base"]["share"] == 0
    assert "| task_arithmetic |" in out


@pytest.mark.parametrize("adapter", [a for a in sorted(ADAPTERS) if ADAPTERS[a].weight_edit])
def test_every_kind_merges_with_another_kind_and_rank(trained, command, adapter):
    """The average in weight space is the base plus half of each run's own dense change."""
    reading = ADAPTERS[adapter].linearize.replace("model", "layer")
    out, = trained("--adapter", adapter, "--linearize", reading, *SPECIAL.get(adapter, []))
    partner, = trained("--adapter", "lora", "--rank", 3, "--task", "count")
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
def test_a_run_merged_with_itself_is_itself(trained, merge_runs, adapter):
    """In weight space, and in adapter space for the whole-model reading."""
    _, _, _, groups = merge_runs(trained("--adapter", adapter) * 2, "--merge", "average")
    rows = groups["all"]
    assert rows["average"]["scores"] == rows["single"]["scores"]


def test_by_seed_reports_mean_and_spread(trained, merge_runs):
    names = [folder for seed in (0, 1) for folder in
             trained("--adapter", "l_lora", "--task", "digits,count", "--seed", seed)]
    code, out, err, groups = merge_runs(names, "--merge", "average", "--by", "seed")
    assert code == 0 and set(groups) == {"0", "1"} and " ± " in out, err
    code, _, err, _ = merge_runs(names, "--merge", "average")
    assert code == 2 and "have different" in err
    more = trained("--adapter", "l_lora", "--task", "count,shapes", "--seed", 2)
    code, _, err, _ = merge_runs([*names, *more], "--merge", "average", "--by", "seed")
    assert code == 2 and "digits, shapes: some seeds of a row have it and some do not" in err


def test_by_any_setting_is_one_table_with_a_column(trained, merge_runs):
    """--by of a setting and of an adapter's key; each group is what its runs give alone."""
    words = ["--adapter", "lora", "--task", "digits,count", "--lr", 0.05]
    sizes = {batch: trained(*words, *["--batch", batch] * (batch != 16)) for batch in (16, 8)}
    names = sizes[16] + sizes[8]
    code, out, err, groups = merge_runs(names, "--merge", "average", "--by", "batch")
    assert code == 0 and list(groups) == ["batch=16", "batch=8"], err
    lines = [line.split() for line in out.splitlines() if line.startswith("| average")]
    assert [line[3] for line in lines] == ["8", "16"] and out.count("| model ") == 1
    for batch, folders in sizes.items():
        alone = merge_runs(folders, "--merge", "average")[3]["all"]["average"]
        assert alone["scores"] == groups[f"batch={batch}"]["average"]["scores"]
    ranks = names + trained(*words, "--rank", 2)
    code, out, err, groups = merge_runs(ranks, "--merge", "average", "--by", "rank,batch,adapter")
    assert code == 0 and list(groups) == ["lora rank=8 batch=16", "lora rank=8 batch=8",
                                          "lora rank=2 batch=16"], err
    code, _, err, _ = merge_runs(names, "--merge", "average", "--by", "bach")
    assert code == 2 and "unknown --by 'bach': did you mean 'batch'? known: adapter, seed" in err
    assert " rank" in err and " lr" in err and " hp" not in err


def test_joint_training_is_one_run_on_every_task(trained, merge_runs):
    """Two tasks take turns, for twice the steps, with a head each; it is a row beside the rules."""
    joint, = trained("--adapter", "lora", "--task", "digits,count", "--joint")
    run = run_folder.load(joint)
    assert run_folder.tasks(run) == ["digits", "count"] and set(run["heads"]) == {"digits", "count"}
    by_task = run["result"]["by_task"]
    assert run["result"]["val"] == (by_task["digits"]["val"] + by_task["count"]["val"]) / 2
    steps = list(csv.DictReader(open(run["folder"] / "log.csv")))
    assert len(steps) == 12
    names = [joint, *trained("--adapter", "lora", "--task", "digits,count")[::-1]]
    code, out, err, groups = merge_runs(names, "--merge", "average")
    assert code == 0 and "| joint " in out, err
    assert groups["all"]["joint"]["scores"] == {t: s["test"] for t, s in by_task.items()}
    probe = trained("--adapter", "lora", "--task", "digits,count", "--joint", "--head", "probe")
    code, _, err, _ = merge_runs([*probe, *names[1:]], "--merge", "average")
    assert code == 2 and "share a task, with another --head" in err
    fresh = trained("--adapter", "lora", "--task", "digits,count", "--joint", "--random-weights")
    code, _, err, _ = merge_runs([*fresh, *names[1:]], "--merge", "average")
    assert code == 2 and "start from different base checkpoints" in err
    code, _, err, _ = merge_runs([*names, joint], "--merge", "average")
    assert code == 2 and "are joint runs: give one" in err
    code, _, err, _ = merge_runs([*names, *trained("--adapter", "lora", "--task", "shapes")],
                                 "--merge", "average")
    assert code == 2 and f"{joint} was not trained on shapes: leave it out" in err
    alone, _, _, without = merge_runs(names[1:], "--merge", "average")
    for key in ("scores", "absolute", "normalised", "share"):
        assert without["all"]["average"][key] == groups["all"]["average"][key]


@pytest.mark.parametrize("kind, adapter", [("image", "lora"), ("image", "l_lora"),
                                           ("image", "dora"), ("text", "l_lora")])
def test_bfloat16_trains_and_merges(trained, command, tiny_text, kind, adapter):
    """Trained in bfloat16, heads fitted, merged and scored in float32."""
    words = {"image": ["--task", "digits,count"],
             "text": ["--task", "order,coref", "--model", tiny_text]}[kind]
    folders = trained("--adapter", adapter, "--dtype", "bfloat16", "--lr", 0.02, *words)
    assert all(v.dtype == torch.bfloat16 and v.isfinite().all()
               for v in run_folder.load(folders[0])["trained"].values())
    loaded = [run_folder.load(folder) for folder in folders]
    space = spaces.vectors(loaded, spaces.default(loaded))
    held = [*space.base.values(), *space.taus[0].values(),
            *(v for head in loaded[0]["heads"].values() for v in head.values())]
    assert {v.dtype for v in held} == {torch.float32}
    code, out, err = command(evaluation.main, *folders, "--merge", "ties,fisher,fitted", "--limit",
                             20, "--set", "steps=3")
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


# ---- bad input: exit code 2 and one line, before training ----------------------------------------

@pytest.mark.parametrize("words, told", [
    (["--merge", "tie"], "unknown rule 'tie': did you mean 'ties'"),
    (["--merge", "ties", "--set", "densty=0.2"],
     "unknown key for these rules 'densty': did you mean 'density'"),
    (["--merge", "ties", "--set", "density=2"], "density 2.0 is outside (0, 1]"),
    (["--merge", "ties", "--sweep", "lm=0:1:.1"],
     "unknown key for these rules 'lm': did you mean 'lam'"),
    (["--merge", "ties", "--sweep", "lam=0:1"], "write KEY=FROM:TO:STEP"),
    (["--merge", "ties", "--sweep", "lam=0:1:0"], "write KEY=FROM:TO:STEP"),
    (["--merge", "ties", "--sweep", "lam=1:0:0.1"], "write KEY=FROM:TO:STEP"),
    (["--merge", "ties", "--sweep", "lam=0:inf:0.1"], "write KEY=FROM:TO:STEP"),
    (["--merge", "ties", "--sweep", "lam=0,nan"], "give a number between -1e6 and 1e6"),
    (["--merge", "ties", "--set", "lam=1e999"], "give a number between -1e6 and 1e6"),
    (["--merge", "fisher", "--set", "examples=0"], "examples 0: take at least 1"),
    (["--merge", "regmean", "--set", "examples=-3"], "give a whole number of 0 or more"),
    (["--merge", "fitted", "--sweep", "steps=2,3.5"], "steps takes whole numbers"),
    (["--merge", "pleas", "--set", "heads=x"], "heads takes a number or a list"),
    (["--merge", "task_arithmetic", "--set", "coefficients=['a', [1]]"], "give a list of numbers"),
    (["--merge", "task_arithmetic", "--set", "coefficients=0.5"], "0.5 as coefficients for 2"),
    (["--merge", "analogy"], "analogy takes 3 runs and got 2"),
    (["--merge", "tsv", "--space", "adapter"], "tsv merges in weight space only"),
    (["--merge", "pem"], "pem merges in adapter space only"),
    (["--merge", "task_arithmetic", "--set", "coefficients=[1,2,3]"],
     "3 coefficients for 2 task vectors"),
    (["--merge", "average", "--by", "sed"], "unknown --by 'sed': did you mean 'seed'"),
    (["--merge", "average", "--lam", 0.5], "--lam is for --analyze: for rules give --set lam=0.5"),
    (["--set", "lam=1"], "--set and --sweep are for rules: add --merge RULE"),
    (["--analyze", "cosine", "--sweep", "lam=0,1"], "--set and --sweep are for rules"),
    (["--by", "seed"], "--by is for --merge and --analyze: add one of them"),
    (["--choose", "normalised"], "--choose is for --merge and --analyze: add one of them"),
    (["--analyze", "cosine", "--split", "val"], "--analyze scores on test: leave out --split val"),
    (["--merge", "layerwise", "--set", "coefficients=[1]"], "coefficients [1]: give {group: one"),
    (["--merge", "pem", "--space", "adapter", "--set", "signs=5"], "5 as signs for 2"),
    (["--merge", "pleas", "--set", "heads=[1,2]"], "heads [1, 2]: give the model's own number"),
    (["--merge", "twin", "--set", "lr=-1"], "lr=-1: give a learning rate of 0 or more"),
])
def test_bad_merge_input(trained, merge_runs, words, told):
    code, _, err, _ = merge_runs(trained("--adapter", "lora") * 2, *words)
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert code == 2 and len(lines) == 1 and told in lines[0], err


def test_one_run_and_an_untrained_run_are_refused(trained, merge_runs, tmp_path):
    one, = trained("--adapter", "lora")
    still = shutil.copytree(one, tmp_path / "still")
    run = run_folder.load_tensors(still / "adapter.pt")
    run_folder.save_tensors(run | {"trained": run["start"]}, still / "adapter.pt")
    for names, told in (([one], "give at least two run folders"),
                        ([one, still], "has a task vector of zeros")):
        code, _, err, groups = merge_runs(names, "--merge", "average")
        assert code == 2 and told in err and not groups


@pytest.mark.parametrize("adapter, head", [("lora", "probe"), ("l_lora", "prompts")])
def test_float64_is_scored_and_merged_in_float64(trained, merge_runs, adapter, head):
    runs = trained("--adapter", adapter, "--head", head, "--task", "digits,count", "--dtype",
                   "float64")
    code, _, err, groups = merge_runs(runs, "--merge", "average")
    own = {run_folder.load(run)["setting"]["task"]: run_folder.load(run)["result"] for run in runs}
    assert code == 0, err
    assert groups["all"]["single"]["scores"] == {task: r["test"] for task, r in own.items()}


def test_runs_that_do_not_belong_together(trained, merge_runs, tmp_path):
    other = write_checkpoint(tmp_path / "other", seed=1)
    first, linear = trained("--adapter", "lora"), trained("--adapter", "l_lora")
    cases = [(["--model", other], [], "different base checkpoints"),
             (["--targets", "q,v"], ["--space", "adapter"],
              "adapt different layers (blocks.0.fc1"),
             (["--adapter", "l_lora"], [], "one is not, lora and l_lora.model: merge runs of one"),
             (["--rank", 3], ["--space", "adapter"], "different adapters or settings"),
             (["--seed", 1], ["--space", "adapter"], "have different blocks.0.q.A")]
    for words, more, told in cases:
        second = trained("--adapter", "lora", "--task", "count", *words)
        code, _, err, _ = merge_runs(first + second, "--merge", "average", *more)
        assert code == 2 and told in err, (words, err)
    code, _, err, _ = merge_runs([*first, tmp_path / "nothing"], "--merge", "average")
    assert code == 2 and "is no run folder" in err
    code, _, err, _ = merge_runs(linear * 2, "--merge", "average", "--space", "weight")
    assert code == 2 and "not an edit of the weights: merge it with --space adapter" in err


@pytest.mark.parametrize("reading", ["off", "model"])
def test_what_only_training_reads_may_differ_in_adapter_space(trained, merge_runs, reading):
    runs = trained("--adapter", "adalora", "--task", "digits,count", "--linearize", reading,
                   "--rank", 6, "--set", "target=3", "--set", "every=2")
    first, second = (run_folder.load(run)["buffers"] for run in runs)
    assert not torch.equal(first["blocks.0.q.Ibar_e"], second["blocks.0.q.Ibar_e"])
    code, _, err, groups = merge_runs(runs, "--merge", "average", "--space", "adapter")
    assert code == 0 and "average" in groups["all"], err
    code, _, err, _ = merge_runs(trained("--adapter", "spa", "--task", "digits,count"), "--merge",
                                 "average", "--space", "adapter")
    assert code == 2 and "have different blocks.0.q.support" in err


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


def test_grid_and_settings():
    assert cli.grid("lam=0:1:0.05", {}) == ("lam", [round(0.05 * i, 10) for i in range(21)])
    assert cli.grid("lam=0:1:0.35", {}) == ("lam", [0, 0.35, 0.7])            # none beyond the end
    assert cli.grid("density=0.1,0.5", {"density": 0.2}) == ("density", [0.1, 0.5])


def test_one_run_names_the_command_that_trains_its_partners(fit, merge_runs):
    fit("--adapter", "lora", "--rank", 2, "--seed", 1)
    code, out, err, _ = merge_runs(["lora-digits-s1"])
    assert code == 0, err
    last = next(line for line in out.splitlines() if line.startswith("next: "))
    words = shlex.split(last)
    assert words[:5] == ["next:", "python", "train.py", "--adapter", "lora"]
    assert words[words.index("--set") + 1] == "rank=2" and words[-3:] == ["--task", "all",
                                                                         "--resume"]


def test_json_without_merge_has_the_scores(trained, merge_runs, tmp_path):
    code, out, err = merge_runs(trained("--adapter", "lora"))[:3]
    written = json.loads((tmp_path / "out.json").read_text())
    assert code == 0 and [row["task"] for row in written["runs"]] == ["digits"], err
    assert 0 <= written["runs"][0]["test"] <= 1 and f"{written['runs'][0]['test']:.3f}" in out


def test_split_train_scores_the_training_examples(trained, merge_runs, tmp_path):
    """Merged and alone; --limit 25 of the 40 that were trained on tells the splits apart."""
    folders = trained("--adapter", "lora", "--task", "digits,count", "--lr", 0.05)
    loaded = [run_folder.load(folder) for folder in folders]
    space, tasks = spaces.vectors(loaded, "weight"), scoring.Tasks(loaded, limit=25)
    own = {task: tasks.score(space.apply(merge.add(space.base, tau)), "train", task)
           for task, tau in zip(tasks.order, space.taus)}
    words = ["--split", "train", "--limit", 25]
    code, out, err, groups = merge_runs(folders, "--merge", "average", *words)
    assert code == 0 and "scored on train" in out, err
    assert groups["all"]["single"]["scores"] == own
    assert merge_runs(folders, *words)[0] == 0
    alone = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert {row["task"]: row["train"] for row in alone} == own
    assert any(row["train"] != row["test"] for row in alone)


def test_scaled_is_every_single_model_at_the_chosen_lam(trained, merge_runs):
    folders = trained("--adapter", "lora", "--task", "digits,count", "--lr", 0.05)
    loaded = [run_folder.load(folder) for folder in folders]
    space, tasks = spaces.vectors(loaded, "weight"), scoring.Tasks(loaded)
    words = ["--merge", "average,task_arithmetic", "--set"]
    for lam in (0.5, 1.0):
        code, out, err, groups = merge_runs(folders, *words, f"lam={lam}")
        rows = groups["all"]
        assert code == 0 and rows["scaled"]["chosen"] == {"lam": lam}, err
        assert list(rows)[:3] == ["base", "single", "scaled"]
        assert f"lam={lam:g} |" in out.partition("| scaled")[2].splitlines()[0]
        for task, tau in zip(tasks.order, space.taus):
            model = space.apply({k: v + lam * tau[k] for k, v in space.base.items()})
            assert rows["scaled"]["scores"][task] == tasks.score(model, "test", task)
    assert rows["scaled"]["scores"] == rows["single"]["scores"]
    code, _, _, groups = merge_runs(folders, "--merge", "ties")
    assert code == 0 and "scaled" not in groups["all"]


def test_runs_of_one_task_with_other_heads_are_refused(fit, merge_runs):
    fit("--adapter", "lora")
    fit("--adapter", "lora", "--head", "probe", "--seed", 1)
    code, _, err, _ = merge_runs(["lora-digits-s0", "lora-digits-s1"], "--merge", "average")
    assert code == 2 and "share a task, with another --head" in err


def test_a_result_that_is_not_finite_is_no_row(trained, merge_runs, monkeypatch):
    def broken(base, taus):
        return {k: v / 0 for k, v in base.items()}

    broken.count = broken.space = broken.experts = None
    monkeypatch.setitem(merge.RULES, "average", broken)
    code, _, err, _ = merge_runs(trained("--adapter", "lora") * 2, "--merge", "average")
    assert code == 2 and "what average merged has NaN or infinity" in err
    code, _, err, _ = merge_runs(trained("--adapter", "lora") * 2, "--merge", "task_arithmetic",
                                 "--set", "coefficients=[1e45, 0]")
    assert code == 2 and "give a number between -1e6 and 1e6" in err


def test_runs_on_different_layers_and_equal_checkpoints_merge_in_weight_space(
        fit, merge_runs, tiny, tmp_path):
    """What a run leaves alone stays; the name of a checkpoint does not matter, its bytes do."""
    twin = shutil.copytree(tiny, tmp_path / "twin")
    fit("--adapter", "lora", "--targets", "q,v")
    fit("--adapter", "lora", "--targets", "fc1", "--task", "count", "--model", twin)
    runs = [run_folder.load(tmp_path / f"runs/lora-{task}-s0") for task in ("digits", "count")]
    space = spaces.vectors(runs, "weight")
    for tau, mine in zip(space.taus, ("q v", "fc1")):
        moved = {k.split(".")[2] for k, v in tau.items() if v.any()}
        assert moved == set(mine.split())
    code, out, err, _ = merge_runs(["lora-digits-s0", "lora-count-s0"], "--merge", "average,ties")
    assert code == 0 and "| ties" in out, err


def test_json_makes_its_folder_and_refuses_one(trained, command, tmp_path):
    run, = trained("--adapter", "lora")
    assert command(evaluation.main, run, "--json", tmp_path / "new/deep/x.json")[0] == 0
    assert json.loads((tmp_path / "new/deep/x.json").read_text())["runs"]
    code, _, err = command(evaluation.main, run, "--json", tmp_path)
    assert code == 2 and "is a folder: give the name of a file" in err


def test_choose_reaches_the_rules(trained, merge_runs):
    """The chosen lam is the first best of the curve, which holds the score that chooses."""
    folders = trained("--adapter", "lora", "--task", "digits,count", "--lr", 0.05)
    words = ["--merge", "task_arithmetic", "--sweep", "lam=0,0.5,1", "--split", "val"]
    for choose in ("absolute", "normalised"):
        code, out, err, groups = merge_runs(folders, *words, "--choose", choose)
        row = groups["all"]["task_arithmetic"]
        assert code == 0 and f"by the {choose} score" in out, err
        assert row[choose] == pytest.approx(max(score for _, score in row["val_curve"]))
