"""Scoring: one model, or one model per task, on every task; settings chosen on validation.

    absolute     mean over tasks of the merged model's accuracy
    normalised   mean over tasks of merged / single, each task by its own fine-tuned model
    share        (merged - base) / (single - base) of the means: what survives of the gain
"""

import functools
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

import data
from exchange import peft_folder
import merge
import rules  # noqa: F401  (fills merge.RULES)
import encoders
from experiment import run_folder
from experiment import spaces
from analysis.measures import normalised
from errors import BadInput
from exchange.huggingface import write_merged
from encoders.heads import accuracy, correct, features
from linearize import LinearizedModel
from experiment.measure import Peak

RULES = merge.RULES


class Tasks:
    """The tasks of a group of runs: heads, data, and the accuracy of a model on all of them.

    unlabelled   the split that rules see without labels: "calib" (inductive: examples of no other
                 split) or "test" (transductive: the very inputs that are scored)
    """

    def __init__(self, group, device="cpu", limit=None, unlabelled="calib"):
        single = [run for run in group if len(run_folder.tasks(run)) == 1]
        self.order = [run["setting"]["task"] for run in single]         # of every task vector
        self.runs = {task: run for run in single or group for task in run_folder.tasks(run)}
        self.heads = {task: run_folder.head(run, task).to(device) for task, run in self.runs.items()}
        self.device, self.limit, self.unlabelled = device, limit, unlabelled
        self.at_base = None                # features on val of a linearized base, for all rules
        first = group[0]["setting"]
        self.encode, self.known = encoders.encoding(first["model"], first["size"]), {}

    def data(self, split, task):
        """(inputs, labels) of a split, read and encoded once."""
        if (split, task) not in self.known:
            s = self.runs[task]["setting"]
            self.known[split, task] = data.load(task, split, s["data"], self.limit or s["limit"],
                                                self.encode)
        return self.known[split, task]

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

    def function(self, space, task):
        """(params, x) -> logits (B, C) of one task, differentiable in params."""
        return lambda params, x: self.heads[task](space.call(params, x))

    def material(self, space, names):
        """The keywords of that a rule names, for the runs in their order."""
        each = lambda make: [make(task) for task in self.order]
        made = {"functions": lambda: each(lambda task: self.function(space, task)),
                "batches": lambda: each(lambda task: self.data(self.unlabelled, task)[0]),
                "labelled": lambda: each(lambda task: self.data("val", task)),
                "activations": lambda: space.activations, "features": lambda: space.call,
                "scores": lambda: each(lambda task: self.runs[task]["result"]["val"])}
        return {name: made[name]() for name in names}

    def score_result(self, result, space, split):
        """{task: accuracy} of what a rule returned."""
        if not isinstance(result, merge.Experts):
            return self.scores(space.apply(result), split)
        if result.route is None:
            return {task: self.score(space.apply(result.models[self.order.index(task)]), split,
                                     task) for task in self.runs}
        return {task: statistics.fmean(hit) for task, (hit, _) in
                self.routed(result, space, split).items()}

    def routed(self, result, space, split):
        """{task: (correct?, sent to its own expert?) per input}, by the router, own head."""
        out = {}
        for task in self.runs:
            inputs, labels = self.data(split, task)
            where = result.route(inputs).cpu()
            hit = torch.zeros(len(inputs), dtype=torch.bool)
            for expert in where.unique().tolist():
                rows = where == expert
                f = features(space.apply(result.models[expert]), inputs[rows])
                hit[rows] = self.heads[task](f).argmax(1).cpu() == labels[rows]
            out[task] = hit.double().tolist(), (where == self.order.index(task)).double().tolist()
        return out


def mean(scores):
    return statistics.fmean(scores.values())


def along(base, one, lam):
    """base + lam (one - base): a rule's result at `lam`, from its result at 1."""
    return {k: base[k] + lam * (one[k] - base[k]) for k in base}


def search(rule, choices, space, tasks, bar):
    """The choice of settings with the best mean val accuracy; a dict of the row's entries.

    A `lam` multiplies the whole merged task vector, so the rule runs once per setting of the other
    keys. A model linearized as a whole is affine in its parameters, and its features with it:
    f(lam) = f(0) + lam (f(1) - f(0)), two passes for the whole sweep.
    """
    material, last, curve, best = tasks.material(space, merge.needs(rule)), None, [], None
    for choice in choices:
        lam = choice.get("lam") if not RULES[rule].experts else None
        rest = choice if lam is None else choice | {"lam": 1.0}
        if rest != last:                                          # lam varies fastest
            last = rest
            with Peak(tasks.device) as peak:
                one = RULES[rule](space.base, space.taus, **material, **rest)
            affine = (lam is not None and len(choices) > 1
                      and isinstance(space.apply(space.base), LinearizedModel))
            if affine and tasks.at_base is None:
                tasks.at_base = tasks.features(space.apply(space.base), "val")
            ends = [tasks.at_base, tasks.features(space.apply(one), "val")] if affine else []
        result = one if lam is None else along(space.base, one, lam)
        row = {"chosen": choice, "result": result, "seconds": peak.seconds, "bytes": peak.bytes}
        if len(choices) == 1:
            bar.update()
            return row | {"val_curve": []}
        if ends:
            between = {t: ends[0][t] + lam * (ends[1][t] - ends[0][t]) for t in ends[0]}
            scores = tasks.scores_of(between, "val")
        else:
            scores = tasks.score_result(result, space, "val")
        curve.append((choice, mean(scores)))
        if best is None or curve[-1][1] > best[0]:
            best = curve[-1][1], row
        bar.set_postfix_str(f"{rule} {curve[-1][1]:.3f}", refresh=False)
        bar.update()
    return best[1] | {"val_curve": curve}


def split_joint(group):
    """(runs on several tasks, runs on one); BadInput unless there are two of the latter."""
    joint = [run for run in group if len(run_folder.tasks(run)) > 1]
    single = [run for run in group if len(run_folder.tasks(run)) == 1]
    if len(single) < 2:
        raise BadInput("one run is nothing to merge: give at least two run folders")
    return joint, single


def obstacle(rule, space, count):
    """Why a rule cannot be used on `count` runs in this space, or None."""
    function = RULES[rule]
    if function.count and function.count != count:
        return f"{rule} takes {function.count} runs and got {count}"
    if function.space and function.space != space:
        return f"{rule} merges in {function.space} space only"
    return None


class Bench(NamedTuple):
    """What identifies a group of runs and how it is scored: plain values, for any process."""

    folders: tuple
    space: str
    split: str
    device: str
    limit: int | None
    unlabelled: str


@functools.lru_cache(maxsize=2)
def prepared(bench):
    """(joint runs, Tasks, Space) of a Bench, loaded once per process."""
    joint, group = split_joint(loaded := [peft_folder.load(folder) for folder in bench.folders])
    tasks = Tasks(loaded, bench.device, bench.limit, bench.unlabelled)
    return joint, tasks, spaces.vectors(group, bench.space, tasks.device)


def references(bench, bar):
    """The rows that no rule makes: {"base", "single", "joint": {"scores": {task: acc}}}.

    A run trained on several tasks jointly is a row of its own and is not merged.
    """
    joint, tasks, space = prepared(bench)
    rows = {"base": {"scores": tasks.scores(space.apply(space.base), bench.split)}}
    single = {task: [] for task in tasks.runs}
    for task, tau in zip(tasks.order, space.taus):
        model = space.apply(merge.add(space.base, tau))
        single[task].append(tasks.score(model, bench.split, task))
    rows["single"] = {"scores": {t: statistics.fmean(scores) for t, scores in single.items()}}
    for run in joint:
        model = run_folder.rebuild(run, run_folder.base_encoder(run, tasks.device))
        rows["joint"] = {"scores": tasks.scores(model, bench.split)}
    bar.update()
    return rows


def merged(bench, rule, choices, export, bar):
    """The row of a rule: {rule: {"scores": {task: acc}, "chosen": {...}, "val_curve", ...}}.

    choices  list of settings to choose from;  export  a folder for the merged encoder, or None
    """
    _, tasks, space = prepared(bench)
    row = search(rule, choices, space, tasks, bar)
    result = row.pop("result")
    if isinstance(result, merge.Experts) and result.route:
        sent = tasks.routed(result, space, bench.split)
        row["scores"] = {t: statistics.fmean(hit) for t, (hit, _) in sent.items()}
        row["routed"] = {t: statistics.fmean(own) for t, (_, own) in sent.items()}
    else:
        row["scores"] = tasks.score_result(result, space, bench.split)
    if export:
        about = {"rule": rule, "space": bench.space, "split": bench.split,
                 "runs": [Path(folder).name for folder in bench.folders]}
        write_merged(space.apply(result), tasks.heads, about | row, export)
    return {rule: row}


def row(bench, rule, choices, export, bar):
    """`merged`, or `references` where the rule is None: one unit of work for parallel.spread."""
    return merged(bench, rule, choices, export, bar) if rule else references(bench, bar)


def summarize(rows):
    """Add absolute, normalised, share and the worst task to every row."""
    single = rows["single"]["scores"]
    floor, ceiling = mean(rows["base"]["scores"]), mean(single)
    for row in rows.values():
        ratio = normalised(row["scores"], single)
        row["absolute"], row["normalised"] = mean(row["scores"]), mean(ratio)
        row["share"] = (row["absolute"] - floor) / (ceiling - floor) if ceiling != floor else 0.0
        row["worst"] = min(ratio, key=ratio.get)
