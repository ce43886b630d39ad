"""What the papers measure over many merged models, for `eval.py --analyze` (see instruments.py).

    subsets, coefficient, unseen            how many tasks, which coefficient, tasks left out
    retention, forget, analogy              what a task vector does to the other tasks
    corruption                              robustness to seven corruptions of the images
    fisher                                  how sharply the model's own labels depend on its weights
"""

import itertools
import random
import statistics

import torch
from tqdm import tqdm

import encoders
import merge
from analysis import measures, plots
from analysis.corruptions import CORRUPTIONS, corrupt
from analysis.instruments import INSTRUMENTS, Analysis, Subset, instrument
from encoders.heads import accuracy
from errors import BadInput
from experiment import run_folder, scoring, spaces, tables
from rules.fisher import log_traces


@instrument
def subsets(a, rules=("average", "task_arithmetic", "ties", "lorahub"), per_size=6,
            lams=(0.1, 0.2, 0.3, 0.5, 1.0)):
    """Merging K tasks, K = 2 .. T, by four rules: lam chosen on val for each K, scored on test.

    All pairs; of larger sizes at most `per_size` subsets, drawn with a fixed seed; as many choose
    lam. `rules` may name any that makes one model of any number of tasks; one that learns from
    examples does so on every subset.
    """
    single = {n: a.score(a.only([n]), n, "test") for n in a.names}
    every = {K: list(itertools.combinations(a.names, K)) for K in range(2, len(a.names) + 1)}
    draw = random.Random(0)
    for K in range(3, len(a.names) + 1):
        every[K] = sorted(draw.sample(every[K], min(per_size, len(every[K]))))
    rows, curves, pairs = [], {rule: [] for rule in rules}, torch.ones(2 * [len(a.names)])
    for rule, K in tqdm(list(itertools.product(rules, every)), desc="subsets"):
        free, merged = "lam" in merge.options(rule), [Subset(a, rule, s) for s in every[K]]
        few = random.Random(0).sample(merged, min(per_size, len(merged)))
        lam = best_lam(few, lams) if free else 1.0
        scores = [{n: s.score(lam, n, "test") for n in s.members} for s in merged]
        ratios = [scoring.normalised(score, single) for score in scores]
        means = [scoring.mean(ratio) for ratio in ratios]
        spread = statistics.fmean(means), min(means), max(means)
        rows.append([rule, K, len(merged), lam if free else "-",
                     statistics.fmean(map(scoring.mean, scores)), *spread])
        curves[rule].append((K, *spread))
        if K == 2 and rule == rules[0]:
            for (one, other), ratio in zip(every[K], ratios):
                i, j = a.names.index(one), a.names.index(other)
                pairs[i, j], pairs[j, i] = ratio[one], ratio[other]
    print(tables.table(["rule", "tasks", "subsets", "lam", "absolute", "normalised", "least",
                        "most"], rows))
    if a.folder:
        plots.curves(curves, "number of merged tasks", "normalised accuracy on the merged tasks",
                     f"Subsets of the tasks, {a.title}", "Mean over subsets, bars from the worst "
                     "to the best; 1 is as good as the single models.", a.path("subsets"))
        plots.matrix(pairs, a.names, f"Pairs of tasks merged by {rules[0]}, {a.title}",
                     "Normalised accuracy of the task on the left, merged with the one below.",
                     a.path("pairs"), high=1.0)
    return {"rows": rows, "curves": curves, "pairs": pairs.tolist()}


def best_lam(merged, lams, choose="absolute"):
    """The lam with the best accuracy on val, a mean over subsets and their tasks; or, normalised,
    of the accuracy divided by that of the single model."""
    a, unit = merged[0].a, dict.fromkeys(merged[0].a.names, 1.0)
    if choose == "normalised":
        unit = {n: a.score(a.only([n]), n, "val") for n in a.names}
    scores = lambda s, lam: {n: s.score(lam, n, "val") for n in s.members}
    return max(lams, key=lambda lam: statistics.fmean(
        scoring.mean(scoring.normalised(scores(s, lam), unit)) for s in merged))


@instrument
def coefficient(a, lams=tuple(i / 10 for i in range(16))):
    """Accuracy of every task against the coefficient of task arithmetic, on val."""
    scores = {n: [(lam, a.score(a.only(a.names, lam), n, "val")) for lam in lams]
              for n in tqdm(a.names, desc="coefficient")}
    average = [(lam, statistics.fmean(scores[n][i][1] for n in a.names))
               for i, lam in enumerate(lams)]
    print(tables.table(["lam", *a.names, "mean"],
                       [[f"{lam:g}", *[scores[n][i][1] for n in a.names], m]
                        for i, (lam, m) in enumerate(average)]))
    if a.folder:
        plots.curves({"mean": average} | scores, "coefficient lam", "validation accuracy",
                     f"theta_0 + lam sum tau, {a.title}", "The average of the models is at 1/T = "
                     f"{1 / len(a.names):.3f}. A flat curve forgives a bad coefficient.",
                     a.path("coefficient"))
    return scores | {"mean": average}


@instrument
def unseen(a, rule="adamerging_layer"):
    """Leave two tasks out: merge the others, by task arithmetic and a rule, and score the two."""
    rows, out = [], 2 if len(a.names) > 2 else 1
    for first in tqdm(range(0, len(a.names), out), desc="unseen"):
        left = a.names[first:first + out]
        others = [n for n in a.names if n not in left]
        learnt = Subset(a, rule, others)
        for n in left:
            base, added, own = (a.score(c, n, "test")
                                for c in (a.only([]), a.only(others, a.lam), a.only([n])))
            rows.append([n, base, added, learnt.score(1.0, n, "test"), own])
    means = [statistics.fmean(column) for column in list(zip(*rows))[1:]]
    print(tables.table(["left out", "base", "task_arithmetic", rule, "its own model"],
                       [*rows, ["mean", *means]]))
    return {"rows": rows, "mean": means}


@instrument
def retention(a):
    """Every single-task model on every task: what fine-tuning on one does to the others."""
    names = ["base", *a.names]
    table = [[a.score(a.only([row]), column, "test") for column in a.names]
             for row in tqdm(names, desc="retention")]
    print(tables.table(["trained on \\ scored on", *a.names],
                       [[n, *row] for n, row in zip(names, table)]))
    base, *single = table
    lost = [base[j] - row[j] for i, row in enumerate(single) for j in range(len(row)) if i != j]
    mean = statistics.fmean(lost)
    print(f"lost on another task: {mean:.3f} in the mean, {max(lost):.3f} at most")
    return {"names": names, "table": table, "lost": mean}


@instrument
def forget(a, lams=tuple(i / 10 for i in range(1, 16))):
    """theta_0 - lam tau_t: lowers its task; lam such that the others keep 95 % on val."""
    rows = []
    for n in tqdm(a.names, desc="forget"):
        others = [m for m in a.names if m != n]
        control = lambda v, split: statistics.fmean(a.score(a.only([n], -v), m, split)
                                                    for m in others)
        curve = [(lam, a.score(a.only([n], -lam), n, "val"), control(lam, "val")) for lam in lams]
        best = measures.forgetting(a.score(a.only([]), n, "val"), control(0.0, "val"), curve)
        lam = best[0] if best else 0.0
        rows.append([n, f"{lam:g}", *[a.score(a.only([n], -v), n, "test") for v in (0.0, lam)],
                     *[control(v, "test") for v in (0.0, lam)]])
    print(tables.table(["forget", "lam", "task before", "after", "others before", "after"], rows))
    return {"rows": rows}


@instrument
def analogy(a):
    """tau_C + tau_B - tau_A for a task D that none was trained on: all triples, best on val.

    Against the best pair tau_B + tau_C on val, and the base. If subtracting tau_A does not help
    beyond what the search over more candidates explains, there is no analogy to speak of.
    """
    rows = []
    formula = lambda c: " ".join(f"{'+-'[v < 0]}{n}" for v, n in zip(c, a.names) if v)
    for d in tqdm(a.names, desc="analogy"):
        others = [n for n in a.names if n != d]
        pairs = [a.only(p, a.lam) for p in itertools.combinations(others, 2)]
        triples = [[x - a.lam * (n == m) for x, n in zip(a.only(p, a.lam), a.names)]
                   for p in itertools.combinations(others, 2) for m in others if m not in p]
        val = lambda c: a.score(c, d, "val")
        pair, triple = max(pairs, key=val), max(triples, key=val)
        rows.append([d, *[a.score(c, d, "test") for c in (a.only([]), pair, triple)],
                     formula(pair), formula(triple)])
    means = [statistics.fmean(row[i] for row in rows) for i in (1, 2, 3)]
    print(tables.table(["unseen task", "base", "B + C", "B + C - A", "pair", "triple"],
                       [*rows, ["mean", *means, "", ""]]))
    return {"rows": rows, "mean": means}


@instrument
def corruption(a, severities=(1, 3, 5), rule="adamerging_layer"):
    """The base, task arithmetic and a rule, merged on clean data, on corrupted test images."""
    rows, added = [], a.at(a.only(a.names, a.lam))
    models = [a.space.apply(params)
              for params in (a.space.base, added, Subset(a, rule, a.names).merged)]
    clean = {n: a.sample(n, "test") for n in a.names}
    kinds = [("clean", 0), *itertools.product(CORRUPTIONS, severities)]
    for name, severity in tqdm(kinds, desc="corruption"):
        images = {n: corrupt(x, name, severity) if severity else x for n, (x, _) in clean.items()}
        scores = [statistics.fmean(accuracy(model, a.tasks.heads[n], images[n], clean[n][1])
                                   for n in a.names) for model in models]
        rows.append([name, severity, *scores])
    means = [statistics.fmean(column) for column in list(zip(*rows[1:]))[2:]]
    print(tables.table(["corruption", "severity", "base", f"task_arithmetic, lam {a.lam:g}", rule],
                       [*rows, ["mean", "", *means]]))
    return {"rows": rows, "mean": means}


@instrument
def fisher(a, examples=100):
    """Log-trace of the Fisher information, labels of the model (true) and of the data (empirical).

    Of every single model on its task and of task arithmetic on every task, natural logarithm, on
    the first inputs of train (rules/fisher.py). The trace is over the parameters that are merged:
    in weight space the weights that the runs changed, in adapter space what was trained itself.
    """
    rows, merged = [], a.at(a.only(a.names, a.lam))
    functions = a.tasks.material(a.space, ["functions"])["functions"]
    for n, function in zip(a.names, tqdm(functions, desc="fisher")):
        x, y = (part[:examples] for part in a.sample(n, "train"))
        models = a.at(a.only([n])), merged
        rows.append([n, *(v for params in models for v in log_traces(function, params, x, y))])
    header = ["task", "single, true", "empirical", f"merged, lam {a.lam:g}, true", "empirical"]
    print(tables.table(header, rows))
    print(f"on the first {len(x)} examples of train, {sum(v.numel() for v in merged.values()):,} "
          "parameters")
    return {"rows": rows}


def check(runs, args):
    """BadInput for an instrument that does not fit these runs; --analyze all leaves it out."""
    texts = any(encoders.kind(run["setting"]["model"]) == "text" for run in runs)
    tasks = {run["setting"]["task"] for run in runs if len(run_folder.tasks(run)) == 1}
    unfit = {"corruption": "is for images and these runs are on texts"} if texts else {}
    unfit |= {"analogy": "needs runs on four tasks or more"} if len(tasks) < 4 else {}
    for name in [name for name in unfit if name in args.analyze]:
        if not args.everything:
            raise BadInput(f"{name} {unfit[name]}: leave it out of --analyze")
        tqdm.write(f"left out: {name} {unfit[name]}")
        args.analyze.remove(name)


def analyze(groups, args):
    """Use the instruments on every group {eval.Group: runs}; returns {title: numbers}."""
    numbers, lams = {}, [i / 20 for i in range(1, 21)]
    for group, runs in groups.items():
        _, single = scoring.split_joint(runs)
        tasks = scoring.Tasks(single, args.device, args.limit, args.unlabelled)
        space = spaces.vectors(single, group.space, args.device)
        a = Analysis(space, tasks, group.name(), args.lam, folder=args.plot)
        if args.lam is None:
            a.lam = best_lam([Subset(a, "task_arithmetic", a.names)], lams, args.choose)
        print(f"\n{group.name()}, space {group.space}, {len(single)} tasks, lam {a.lam:g}, "
              f"first {min(a.examples, args.limit or a.examples)} examples of a split")
        for name in args.analyze:
            print(f"\n{name}: {INSTRUMENTS[name].__doc__.splitlines()[0]}")
            numbers[f"{group.name()} {name}"] = INSTRUMENTS[name](a)
    if not args.plot:
        print("\nfigures: add --plot FOLDER (needs matplotlib, see requirements-figures.txt)")
    return numbers
