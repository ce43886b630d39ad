"""Scoring: one model, or one model per task, on every task; settings chosen on validation.

    absolute     mean over tasks of the merged model's accuracy
    normalised   mean over tasks of merged / single, each task by its own fine-tuned model
    share        (merged - base) / (single - base) of the means: what survives of the gain
"""

import statistics

import torch
from tqdm import tqdm

import data
import encoders
import merge
import rules  # noqa: F401  (fills merge.RULES)
from encoders.heads import accuracy, correct, features
from errors import BadInput
from experiment import run_folder, spaces
from experiment.measure import Peak
from merge import RULES


class Tasks:
    """The tasks of a group of runs: heads, data, and the accuracy of a model on all of them.

    unlabelled   the split that rules see without labels: "calib" (inductive: examples of no other
                 split) or "test" (transductive: the very inputs that are scored)
    """

    def __init__(self, group, device="cpu", limit=None, unlabelled="calib"):
        self.single = [run for run in group if len(run_folder.tasks(run)) == 1]
        self.order = [run["setting"]["task"] for run in self.single]    # of every task vector
        self.runs = {task: run for run in self.single or group for task in run_folder.tasks(run)}
        spaces.check_origin(group)
        for run in group:
            for other in (self.runs[t] for t in run_folder.tasks(run) if t in self.runs):
                if differ := [k for k in ("data", "head", "limit")
                              if run["setting"][k] != other["setting"][k]]:
                    raise BadInput(f"{other['folder']} and {run['folder']} share a task, with "
                                   f"another --{differ[0]}: merge runs that are scored on the same "
                                   "examples by the same head")
        first = (self.single or group)[0]["setting"]
        dtype = run_folder.dtype(first)                          # that of the models they read
        self.heads = {t: run_folder.head(run, t).to(device, dtype) for t, run in self.runs.items()}
        self.device, self.limit, self.unlabelled = device, limit, unlabelled
        self.at_base = {}                  # features of a linearized base, for `Mixture`
        self.encode, self.loaded = encoders.encoding(first["model"], first["size"]), {}

    def data(self, split, task):
        """(inputs, labels) of a split, read and encoded once."""
        if (split, task) not in self.loaded:
            s, folder = self.runs[task]["setting"], self.runs[task]["folder"]
            if "examples" in s and s["examples"][task] != data.mark(task, s["data"]):
                raise BadInput(f"{folder} was trained on other examples than {s['data']} has now: "
                               "put the old ones back, or train it again")
            self.loaded[split, task] = data.load(task, split, s["data"], self.limit or s["limit"],
                                                 self.encode)
        return self.loaded[split, task]

    def score(self, model, split, task):
        """Accuracy on one task."""
        return accuracy(model, self.heads[task], *self.data(split, task))

    def scores(self, model, split):
        """{task: accuracy}."""
        return {task: self.score(model, split, task) for task in self.runs}

    def material(self, space, names):
        """What a rule asks for by the names of its keywords, for the runs in their order."""
        logits = lambda head: lambda params, x: head(space.call(params, x))
        makers = {"functions": lambda task: logits(self.heads[task]),
                  "batches": lambda task: self.data(self.unlabelled, task)[0],
                  "labelled": lambda task: self.data("val", task)}
        whole = {"activations": space.activations, "features": space.call,
                 "scores": [run["result"]["val"] for run in self.single]}
        return {name: whole[name] if name in whole else [makers[name](task) for task in self.order]
                for name in names}

    def score_result(self, result, space, split):
        """{"scores": {task: accuracy}} of what a rule returned; of experts with a router also
        {"routed": {task: share of inputs that it sent to the task's own expert}}."""
        if not isinstance(result, merge.Experts):
            return {"scores": self.scores(space.apply(result), split)}
        if not result.route:
            return {"scores": self.own(map(space.apply, result.models), split)}
        sent = self.routed(result, space, split)
        return {"scores": {task: statistics.fmean(hit) for task, (hit, _) in sent.items()},
                "routed": {task: statistics.fmean(own) for task, (_, own) in sent.items()}}

    def own(self, models, split):
        """{task: accuracy} of models, one for each run, on the run's task; of several, the mean."""
        found = {task: [] for task in self.runs}
        for task, model in zip(self.order, models):
            found[task].append(self.score(model, split, task))
        return {task: statistics.fmean(scores) for task, scores in found.items()}

    def routed(self, result, space, split):
        """{task: (correct?, sent to its own expert?)}, 0 or 1 for every input, by the router."""
        out = {}
        for task in self.runs:
            inputs, labels = self.data(split, task)
            where = result.route(inputs).cpu()
            hit = torch.zeros(len(inputs), dtype=torch.bool)
            for expert in where.unique().tolist():
                rows = where == expert
                f = features(space.apply(result.models[expert]), inputs[rows])
                hit[rows] = self.heads[task](f).argmax(1).cpu() == labels[rows]
            out[task] = hit.double().tolist(), [float(self.order[i] == task) for i in where]
        return out


def along(base, one, lam):
    """base + lam (one - base): a rule's result at `lam`, from its result at 1."""
    return {k: base[k] + lam * (one[k] - base[k]) for k in base}


class Mixture:
    """Features of the models at(c), c a list of T numbers; at([0, ..., 0]) is the base.

    A model linearized as a whole is affine in its parameters, and its features with it:

        f(x; c) = f(x; 0) + sum_t c_t [f(x; e_t) - f(x; 0)]          e_t the T unit vectors

    so T + 1 passes over the inputs give every c. Any other model is merged and run.

    at_base   {name of the inputs: f(x; 0)}, shared by all mixtures around one base; grows
    """

    def __init__(self, space, size, at, at_base):
        self.space, self.size, self.at, self.at_base = space, size, at, at_base
        self.changes = {}                                    # {name of the inputs: (T, n, D)}

    def features(self, c, name, inputs):
        """f(x; c) (n, D) of inputs x; `name` tells these inputs from others."""
        if not self.space.affine:
            return features(self.space.apply(self.at(c)), inputs)
        if name not in self.at_base:
            self.at_base[name] = features(self.space.apply(self.space.base), inputs)
        f0 = self.at_base[name]
        if name not in self.changes:
            ends = [self.space.apply(self.at(e)) for e in torch.eye(self.size).tolist()]
            self.changes[name] = torch.stack([features(end, inputs) for end in ends]) - f0
        J = self.changes[name]
        return f0 + torch.einsum("t,tnd->nd", torch.as_tensor(c).to(J), J)

    def scores(self, c, tasks, split):
        """{task: accuracy} of the model at(c)."""
        if not self.space.affine:
            return tasks.scores(self.space.apply(self.at(c)), split)
        examples = {task: tasks.data(split, task) for task in tasks.runs}
        return {task: correct(tasks.heads[task], self.features(c, (task, split), inputs), labels)
                for task, (inputs, labels) in examples.items()}


def obstacle(rule, space, count):
    """Why a rule cannot be used on `count` runs in this space, or None."""
    function = RULES[rule]
    if function.count not in (None, count):
        return f"{rule} takes {function.count} runs and got {count}"
    if function.space not in (None, space):
        return f"{rule} merges in {function.space} space only"


def search(rule, choices, space, tasks, choose="absolute"):
    """The row of the settings with the best score on val; of equal ones, the first.

    choices  settings, dicts of keywords; a single one is not scored on val
    choose   the score, a mean over the tasks: absolute accuracy, or normalised by the single models

    A `lam` multiplies the whole merged task vector, so the rule runs once, at lam = 1, per setting
    of its other keys, and `line` has the models of every lam; `lam` varies fastest among the
    choices. For experts it is a setting like any other.
    """
    material, last, best, curve = tasks.material(space, merge.needs(rule)), None, None, []
    unit = dict.fromkeys(tasks.runs, 1.0)                            # scores are divided by it
    if choose == "normalised" and len(choices) > 1:
        unit = singles(space, tasks, "val")
    for choice in tqdm(choices, rule, leave=False):
        lam = None if RULES[rule].experts else choice.get("lam")
        rest = choice if lam is None else choice | {"lam": 1.0}
        if rest != last:
            last = rest
            with Peak(tasks.device) as peak:
                one = RULES[rule](space.base, space.taus, **material, **rest)
            line = Mixture(space, 1, lambda c, one=one: along(space.base, one, c[0]), tasks.at_base)
        if len(choices) > 1:
            scores = tasks.score_result(one, space, "val")["scores"] if lam is None else \
                line.scores([lam], tasks, "val")
            curve.append((choice, mean(normalised(scores, unit))))
        if best is None or curve[-1][1] > best[0]:
            row = {"chosen": choice, "result": one if lam is None else line.at([lam]),
                   "seconds": peak.seconds, "bytes": peak.bytes}
            best = curve[-1][1] if curve else 0.0, row
    return best[1] | {"val_curve": curve}


def merged(rule, choices, space, tasks, split, choose="absolute"):
    """(what a rule returned, its row); the row is {"scores": {task: acc}, "chosen": {...}, ...}."""
    row = search(rule, choices, space, tasks, choose)
    result = row.pop("result")
    for model in result.models if isinstance(result, merge.Experts) else [result]:
        merge.check_finite(model, f"what {rule} merged")
    return result, row | tasks.score_result(result, space, split)


# ---- rows ----------------------------------------------------------------------------------------


def mean(scores):
    """Mean over the tasks of {task: score}."""
    return statistics.fmean(scores.values())


def split_joint(group):
    """(runs on several tasks, runs on one); BadInput unless there are two of the latter."""
    joint, single = [], []
    for run in group:
        (joint if len(run_folder.tasks(run)) > 1 else single).append(run)
    if len(single) < 2:
        raise BadInput("merging takes two runs or more: give at least two run folders")
    if len(joint) > 1:
        raise BadInput(f"{joint[0]['folder']} and {joint[1]['folder']} are joint runs: give one")
    for run in joint:
        if missing := {s["setting"]["task"] for s in single} - {*run_folder.tasks(run)}:
            raise BadInput(f"{run['folder']} was not trained on {min(missing)}: leave it out")
    return joint, single


def singles(space, tasks, split, lam=1.0):
    """{task: accuracy of theta_0 + lam tau_t on its own task}, the mean of several runs on one."""
    return tasks.own((space.apply(merge.add(space.base, tau, lam)) for tau in space.taus), split)


def references(joint, space, tasks, split):
    """The rows that no rule makes: {"base", "single", "joint": {"scores": {task: acc}}}.

    joint   no run, or one on several tasks at once, which is not merged
    """
    rows = {"base": {"scores": tasks.scores(space.apply(space.base), split)},
            "single": {"scores": singles(space, tasks, split)}}
    for run in joint:
        model = run_folder.rebuild(run, run_folder.base_encoder(run, tasks.device))
        rows["joint"] = {"scores": tasks.scores(model, split)}
    return rows


def normalised(scores, single):
    """{task: merged score / single-task score}; 1 where the single model has nothing to lose."""
    return {task: score / single[task] if single[task] else 1.0 for task, score in scores.items()}


def summarize(rows):
    """Add absolute, normalised, share and the worst task to every row."""
    single = rows["single"]["scores"]
    floor, ceiling = mean(rows["base"]["scores"]), mean(single)
    for row in rows.values():
        ratio = normalised(row["scores"], single)
        row["absolute"], row["normalised"] = mean(row["scores"]), mean(ratio)
        row["share"] = (row["absolute"] - floor) / (ceiling - floor) if ceiling != floor else 0.0
        row["worst"] = min(ratio, key=lambda task: (ratio[task], row["scores"][task]))
