"""Score runs on their own tasks, and merge them into one model that is scored on every task.

    python eval.py runs/vit-lora-*-s0                        # each run by itself
    python eval.py runs/vit-lora-*-s0 --merge average,task_arithmetic,ties --sweep lam=0:1:0.05
    python eval.py runs/vit-lora-* --by seed --merge average # mean and spread over seeds
    python eval.py --list                                    # every rule and its keys

    absolute     mean over tasks of the merged model's accuracy
    normalised   mean over tasks of merged / single, each task by its own fine-tuned model
    share        (merged - base) / (single - base) of the means: what survives of the gain

Coefficients are chosen on val, by the mean accuracy over the tasks; the chosen one is scored once.
"""

import argparse
import itertools
import statistics

from tqdm import tqdm

import adapters  # noqa: F401  (fills lora.ADAPTERS)
import cli
import data
import merge
import runs
import spaces
from errors import BadInput, unknown
from heads import accuracy, correct, features
from linearize import LinearizedModel


def arguments():
    """The command line, checked as far as it can be without loading a run."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folders made by train.py")
    add("--merge", default="", metavar="RULE,...", help="merge the runs with these rules")
    add("--space", choices=["weight", "adapter"],
        help="default: weight, or adapter for models linearized as a whole")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the rules")
    add("--sweep", action="append", default=[], metavar="KEY=FROM:TO:STEP",
        help="values of a key to choose from on val; also KEY=a,b,c")
    add("--by", choices=["seed"], help="one merged model per seed; report mean and spread")
    add("--split", choices=["val", "test"], default="test")
    add("--limit", type=int, metavar="N", help="at most N examples per split")
    add("--device", default="auto")
    add("--json", metavar="FILE", help="also write every number to a file")
    add("--list", action="store_true", help="list the rules and stop")
    args = p.parse_args()
    args.merge = [r for r in args.merge.split(",") if r]
    for name in args.merge:
        if name not in merge.RULES:
            raise unknown("rule", name, merge.RULES)
    args.device = cli.device(args.device)
    if not args.runs and not args.list:
        raise BadInput("give at least one run folder; train.py prints where it writes")
    return args


def grid(text):
    """lam=0:1:0.05 -> ("lam", [0, 0.05, ..., 1]);  density=0.1,0.2 -> ("density", [0.1, 0.2])."""
    key, _, values = text.partition("=")
    try:
        if ":" in values:
            low, high, step = (float(v) for v in values.split(":"))
            count = round((high - low) / step)
            return key, [round(low + i * step, 10) for i in range(count + 1)]
        return key, [float(v) for v in values.split(",")]
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"--sweep {text}: write KEY=FROM:TO:STEP such as lam=0:1:0.05, "
                       "or KEY=a,b,c") from None


def settings_of(rule, args):
    """The settings of a rule to try: --set fixed, --sweep as a product; a list of dicts."""
    known = merge.options(rule)
    everything = {k: v for r in args.merge for k, v in merge.options(r).items()}
    fixed = cli.keywords(args.set, everything, "these rules")
    swept = dict(grid(s) for s in args.sweep)
    for key in swept:
        if key not in everything:
            raise unknown("key for these rules", key, everything)
    swept = {k: v for k, v in swept.items() if k in known}
    fixed = {k: v for k, v in fixed.items() if k in known and k not in swept}
    return [fixed | dict(zip(swept, values)) for values in itertools.product(*swept.values())]


class Tasks:
    """The tasks of a group of runs: heads, data, and the accuracy of a model on all of them."""

    def __init__(self, group, args):
        self.args, self.runs, self.heads = args, {r["setting"]["task"]: r for r in group}, {}
        for task, run in self.runs.items():
            self.heads[task] = runs.head(run).to(args.device)

    def data(self, split, task):
        s = self.runs[task]["setting"]
        return data.load(task, split, s["data"], self.args.limit or s["limit"])

    def score(self, model, split, task):
        """Accuracy on one task."""
        return accuracy(model, self.heads[task], *self.data(split, task))

    def scores(self, model, split):
        """{task: accuracy}."""
        return {task: self.score(model, split, task) for task in self.runs}

    def features(self, model, split):
        """{task: features (n, D)}."""
        return {task: features(model, self.data(split, task)[0]) for task in self.runs}

    def scores_of(self, features, split):
        """{task: accuracy} of features already computed."""
        return {task: correct(self.heads[task], f, self.data(split, task)[1])
                for task, f in features.items()}


def mean(scores):
    return statistics.fmean(scores.values())


def val_curve(rule, choices, base, taus, apply, tasks, bar):
    """Mean val accuracy of every choice of settings.

    A `lam` multiplies the whole merged task vector, so the rule runs once per setting of the other
    keys. A model linearized as a whole is affine in its parameters, and its features with it:
    f(lam) = f(0) + lam (f(1) - f(0)), two passes for the whole sweep.
    """
    curve, ends = [], {}
    for choice in choices:
        rest = {k: v for k, v in choice.items() if k != "lam"}
        if (key := str(rest)) not in ends:
            full = rest | ({"lam": 1.0} if "lam" in choice else {})
            one = merge.RULES[rule](base, taus, **full)
            affine = "lam" in choice and isinstance(apply(base), LinearizedModel)
            ends[key] = one, [tasks.features(apply(p), "val") for p in (base, one) if affine]
        (one, outputs), lam = ends[key], choice.get("lam", 1.0)
        if outputs:
            f0, f1 = outputs
            scores = tasks.scores_of({t: f0[t] + lam * (f1[t] - f0[t]) for t in f0}, "val")
        else:
            merged = {k: base[k] + lam * (one[k] - base[k]) for k in base}
            scores = tasks.scores(apply(merged), "val")
        curve.append(mean(scores))
        bar.set_postfix_str(f"{rule} {curve[-1]:.3f}", refresh=False)
        bar.update()
    return curve


def evaluate(group, args, bar):
    """All rows of one group of runs: {row: {"scores": {task: acc}, "chosen": {...}}}."""
    tasks = Tasks(group, args)
    space = args.space or spaces.default(group)
    base, taus, apply = spaces.vectors(group, space, args.device)
    rows = {"base": {"scores": tasks.scores(apply(base), args.split)}}
    single = {task: [] for task in tasks.runs}
    for run, tau in zip(group, taus):
        task, model = run["setting"]["task"], apply({k: base[k] + tau[k] for k in base})
        single[task].append(tasks.score(model, args.split, task))
    single = {task: statistics.fmean(scores) for task, scores in single.items()}
    rows["single"] = {"scores": single}
    for rule in args.merge:
        choices = settings_of(rule, args)
        curve = val_curve(rule, choices, base, taus, apply, tasks, bar) if len(choices) > 1 else []
        best = choices[curve.index(max(curve))] if curve else choices[0]
        merged = merge.RULES[rule](base, taus, **best)
        rows[rule] = {"scores": tasks.scores(apply(merged), args.split), "chosen": best,
                      "val_curve": list(zip(choices, curve))}
    floor, ceiling = mean(rows["base"]["scores"]), mean(single)
    for row in rows.values():
        scores = row["scores"]
        row["absolute"] = mean(scores)
        row["normalised"] = mean({t: scores[t] / max(single[t], 1e-9) for t in single})
        row["share"] = (mean(scores) - floor) / (ceiling - floor) if ceiling != floor else 0.0
    return space, rows


def report(results, tasks):
    """The table of one or several groups (seeds): mean, and the spread where there are several."""
    def cell(values):
        if len(values) == 1:
            return f"{values[0]:.3f}"
        return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"

    out = []
    for name in results[0]:
        rows = [r[name] for r in results]
        chosen = [", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                            for k, v in row.get("chosen", {}).items()) for row in rows]
        out.append([name, " / ".join(dict.fromkeys(chosen)) or "-",
                    *[f"{statistics.fmean(r['scores'][t] for r in rows):.3f}" for t in tasks],
                    *[cell([r[k] for r in rows]) for k in ("absolute", "normalised", "share")]])
    return cli.table(["model", "chosen on val", *tasks, "absolute", "normalised", "share"], out)


def own_task(group, args):
    """The table without --merge: every run on its own task."""
    rows = []
    for run in tqdm(group, desc="runs"):
        model = runs.rebuild(run, runs.base_encoder(run, args.device))
        s, tasks = run["setting"], Tasks([run], args)
        rows.append([run["folder"].name, s["adapter"], s["linearize"], s["task"],
                     *[tasks.score(model, split, s["task"]) for split in ("val", "test")]])
    return cli.table(["run", "adapter", "linearize", "task", "val", "test"], rows)


def main():
    """Score the runs one by one, or merged."""
    args = arguments()
    if args.list:
        for name, function in merge.RULES.items():
            title, _, formula = function.__doc__.splitlines()[0].partition(".   ")
            print(cli.entry(name, title, formula, merge.options(name)))
        return
    loaded = [runs.load(folder) for folder in args.runs]
    if not args.merge:
        print(own_task(loaded, args))
        print("next: add --merge average,task_arithmetic,ties --sweep lam=0:1:0.05")
        return
    groups = {}
    for run in loaded:
        groups.setdefault(run["setting"]["seed"] if args.by else None, []).append(run)
    sizes = [len(s) for s in (settings_of(rule, args) for rule in args.merge)]
    with tqdm(total=len(groups) * sum(n for n in sizes if n > 1), desc="sweep on val") as bar:
        found = [evaluate(group, args, bar) for group in groups.values()]
    space, tasks = found[0][0], list(found[0][1]["base"]["scores"])
    first = loaded[0]["setting"]
    print(f"{len(loaded)} runs in {len(groups)} group(s), adapter {first['adapter']}, linearize "
          f"{first['linearize']}, space {space}, scored on {args.split}")
    print(report([rows for _, rows in found], tasks))
    if args.json:
        runs.write_json({"space": space, "groups": {str(k): rows for k, (_, rows)
                                                    in zip(groups, found)}}, args.json)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    cli.run(main)
