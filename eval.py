"""Score runs on their own tasks, and merge them into one model that is scored on every task.

    python eval.py runs/vit-lora-*-s0                        # each run by itself
    python eval.py runs/vit-lora-*-s0 --merge average,task_arithmetic,ties --sweep lam=0:1:0.05
    python eval.py runs/vit-*-s0 --merge all --by adapter    # every rule, one table per adapter
    python eval.py runs/vit-lora-*-s? --by seed --merge average      # mean and spread over seeds
    python eval.py --list                                    # every rule and its keys

Coefficients are chosen on val, by the mean accuracy over the tasks (or --choose normalised); the
chosen one is scored once.
experiment/scoring.py explains the scores. What only some calls need is imported where it is used.
"""

import argparse
import functools
import itertools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import merge
from errors import BadInput, unknown
from experiment import cli, run_folder, scoring, spaces, tables
from experiment.scoring import RULES, Tasks

LAMS = [0.1, 0.2, 0.3, 0.5, 1.0]                 # what --merge all sweeps unless told otherwise
TRIVIAL = ("negation", "layerwise")              # not in all: the opposite, and the average again
INSTRUMENTS = ("cosine", "distance", "pca", "spectrum", "disentangle", "landscape", "entropy",
               "subsets", "coefficient", "unseen", "retention", "forget", "analogy", "corruption",
               "fisher")


# ---- merging -------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Runs that are merged with each other, and how: plain values, for any process."""

    method: str | None               # lora, l_lora.model, ... with --by adapter
    seed: int | None                 # with --by seed
    values: tuple                    # ((key, value), ...) of the other keys of --by
    folders: tuple
    space: str
    split: str
    device: str
    limit: int | None
    unlabelled: str
    choose: str

    def label(self):
        """All that tells it from other groups but the seed: "lora batch=8"."""
        return " ".join([self.method or "", *(f"{k}={v}" for k, v in self.values)]).strip()

    def name(self):
        seed = "" if self.seed is None else self.seed
        return f"{self.label()} {seed}".strip() or "all"


def load(folder):
    """A run from its run folder, or from the PEFT folder that --export wrote."""
    if (Path(folder) / "adapter_config.json").is_file():
        from exchange import peft_folder
        return peft_folder.load(folder)
    run = run_folder.load(folder)
    if not run["heads"]:
        raise BadInput(f"{folder} is a policy, without a classifier: python -m rlhf --soup merges "
                       "two of them")
    return run


@functools.lru_cache(maxsize=2)
def opened(group):
    """(joint runs, Space of the others, Tasks of all) of a Group, once per process."""
    runs = [load(folder) for folder in group.folders]
    joint, single = scoring.split_joint(runs)
    tasks = Tasks(runs, group.device, group.limit, group.unlabelled)
    return joint, spaces.vectors(single, group.space, group.device), tasks


def rows_of(group, rule, choices, export):
    """{rule: its row} in a group, the best of several settings; rule None: rows without a rule."""
    joint, space, tasks = opened(group)
    if rule is None:
        return scoring.references(joint, space, tasks, group.split)
    result, row = scoring.merged(rule, choices, space, tasks, group.split, group.choose)
    if export:
        from exchange import huggingface
        about = {"rule": rule, "space": group.space, "split": group.split,
                 "runs": [Path(folder).name for folder in group.folders]}
        huggingface.write_merged(space.apply(result), tasks.heads, about | row, export)
    if rule != "task_arithmetic":
        return {rule: row}
    lam = row["chosen"].get("lam", merge.options(rule)["lam"])
    scaled = scoring.singles(space, tasks, group.split, lam)
    return {"scaled": {"scores": scaled, "chosen": {"lam": lam}}, rule: row}


def groups_of(runs, args, by):
    """{Group: its runs}: one for every adapter, seed and value of the other keys in `by`."""
    groups = {}
    for run in runs:
        key = (run_folder.method(run["setting"]) if "adapter" in by else None,
               run["setting"]["seed"] if "seed" in by else None,
               tuple((k, run_folder.value(run, k)) for k in by if k not in ("adapter", "seed")))
        groups.setdefault(key, []).append(run)
    return {Group(*key, tuple(str(run["folder"]) for run in members),
                  args.space or spaces.default(members), args.split, args.device, args.limit,
                  args.unlabelled, args.choose): members for key, members in groups.items()}


def usable(group, members, args, reported):
    """The rules of --merge that fit a group; --merge all leaves out others and reports it once."""
    fit, (_, single) = [], scoring.split_joint(members)
    for rule in args.merge:
        reason = scoring.obstacle(rule, group.space, len(single))
        if not reason:
            fit.append(rule)
        elif not args.all:
            raise BadInput(f"{reason}: leave it out or give other runs")
        elif reason not in reported:
            tqdm.write(f"left out: {reason}")
            reported.add(reason)
    return fit


def merge_runs(runs, args):
    """Every rule in every group, and a table per method; returns {group: {"space", "rows"}}."""
    opened.cache_clear()                                  # runs may have been trained again since
    groups, units, reported, tasks = groups_of(runs, args, args.by), [], set(), {}
    for group, members in groups.items():
        found = {task for run in members for task in run_folder.tasks(run)}
        if lacks := tasks.setdefault(group.label(), found) ^ found:
            raise BadInput(f"{', '.join(sorted(lacks))}: some seeds of {group.label() or 'a row'} "
                           "have it and some do not: train what is missing, or leave it out")
        for task, n in Counter(run["setting"]["task"] for run in members).items():
            if n > 1:
                print(f"{task} has {n} runs: each counts as a task vector, single is their mean")
        rules = usable(group, members, args, reported)
        units += [(group, rule, rule and settings_of(rule, args), args.export)
                  for rule in (None, *rules)]
    if args.jobs > 1:
        from experiment import jobs
        results = jobs.spread(rows_of, units, args.jobs, "rules")
    else:
        with tqdm(units, "rules") as bar:
            results = [rows_of(*unit) for unit in bar]
    rows = {group: {} for group in groups}
    for (group, *_), made in zip(units, results):
        rows[group] |= made
    first = ("base", "single", "scaled")
    rows = {group: dict(sorted(made.items(), key=lambda row: row[0] not in first))
            for group, made in rows.items()}
    for group in groups:
        scoring.summarize(rows[group])
    for method in dict.fromkeys(group.method for group in groups):
        same = [group for group in groups if group.method == method]
        used = [[run["setting"]["adapter"], run["setting"]["linearize"], group.space]
                for group in same for run in groups[group]]
        adapter, linearize, space = ("/".join(dict.fromkeys(words)) for words in zip(*used))
        print(f"\n{len(used)} runs in {len(same)} group(s), adapter {adapter}, linearize "
              f"{linearize}, space {space}, unlabelled inputs from {args.unlabelled}, settings by "
              f"the {args.choose} score on val, scored on {args.split}")
        print(tables.report([(group.values, rows[group]) for group in same], args.all))
    if args.plot and args.curve:
        from analysis import plots
        plots.coefficient(rows, args.plot / "coefficient.png")
    return {group.name(): {"space": group.space, "rows": rows[group]} for group in groups}


# ---- command line --------------------------------------------------------------------------------


def arguments():
    """The command line, checked as far as it can be without loading a run."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folders made by train.py")
    add("--merge", default="", metavar="RULE,...", help="merge the runs with these rules, or all")
    add("--space", choices=["weight", "adapter"],
        help="default: weight, or adapter for models linearized as a whole")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the rules")
    add("--sweep", action="append", default=[], metavar="KEY=FROM:TO:STEP",
        help="values of a key to choose from on val; also KEY=a,b,c")
    add("--by", default="", metavar="KEY,...",
        help="adapter, seed, or any setting of the runs such as batch, lr, rank: merge the runs of "
        "each value apart; a table per adapter, mean and spread over seeds, rows for other keys")
    add("--choose", choices=["absolute", "normalised"], default="absolute",
        help="the score on val that chooses among swept settings: mean accuracy of the merged "
        "model, or mean over the tasks of its accuracy / that of the single model")
    add("--unlabelled", choices=["calib", "test"], default="calib",
        help="inputs for rules that use them without labels; test is what AdaMerging's paper does")
    add("--analyze", default="", metavar="WHAT,...",
        help=f"instruments, or all: {', '.join(INSTRUMENTS)}")
    add("--lam", type=float, help="coefficient of task arithmetic for --analyze (default: by val)")
    add("--plot", metavar="FOLDER", help="also draw the figures of --analyze, and accuracy on val "
        "over lam for --merge with --sweep lam=... (needs matplotlib)")
    add("--export", metavar="FOLDER",
        help="one run: as a PEFT adapter; with --merge RULE: the merged encoder, Hugging Face form")
    add("--split", choices=["train", "val", "test"], default="test",
        help="what runs and merged models are scored on; choices are made on val all the same")
    add("--limit", type=int, metavar="N", help="at most N examples per split")
    add("--jobs", type=int, default=1, metavar="N", help="rules at a time, for --merge")
    add("--device", default="auto")
    add("--json", metavar="FILE", help="also write every number to a file")
    add("--list", action="store_true", help="list the rules and stop")
    args = p.parse_args()
    args.all, args.everything = args.merge == "all", args.analyze == "all"
    args.merge = [r for r in RULES if r not in TRIVIAL] if args.all else \
        cli.names(args.merge, "rule", RULES)
    args.analyze = list(INSTRUMENTS) if args.everything else \
        cli.names(args.analyze, "instrument", INSTRUMENTS)
    read_keys(args)
    if args.export:
        check_export(args)
    cli.check_numbers(args)
    args.device = cli.device(args.device)
    if args.plot:
        if not args.analyze and not args.curve:
            raise BadInput("--plot draws --analyze or a sweep of lam: add --analyze WHAT, or "
                           "--merge RULE --sweep lam=0:1:0.05")
        from analysis import plots
        args.plot = plots.folder(args.plot)
    if args.json:
        cli.check_place("--json", args.json)
    if not args.runs and not args.list:
        raise BadInput("give at least one run folder; train.py prints where it writes")
    return args


def read_keys(args):
    """BadInput for flags that nothing would read; then --set as {key: value} and --sweep as
    {key: values}, the keys of the rules of --merge."""
    if not args.merge and args.set + args.sweep:
        raise BadInput("--set and --sweep are for rules: add --merge RULE")
    if args.lam is not None and not args.analyze:
        raise BadInput(f"--lam is for --analyze: for rules give --set lam={args.lam:g}")
    beside = {"by": "", "space": None, "choose": "absolute", "unlabelled": "calib"}
    for flag in [k for k, v in beside.items() if getattr(args, k) != v]:
        if not (args.merge or args.analyze):
            raise BadInput(f"--{flag} is for --merge and --analyze: add one of them")
    if args.jobs > 1 and not args.merge:
        raise BadInput("--jobs is for --merge: add --merge RULE, or leave it out")
    if args.split != "test" and args.analyze:
        raise BadInput(f"--analyze scores on test: leave out --split {args.split}")
    keys = {key: value for rule in args.merge for key, value in merge.options(rule).items()}
    args.set = cli.keywords(args.set, keys, "these rules") if args.merge else {}
    swept, args.sweep = args.sweep, {}
    for key, values in (cli.grid(text, keys) for text in swept):
        if key in args.set | args.sweep:
            raise BadInput(f"--sweep {key}: it has a value already; give --set or --sweep, once")
        args.sweep[key] = values
    if strange := [key for key in args.sweep if args.merge and key not in keys]:
        raise unknown("key for these rules", strange[0], keys)
    if args.all and "lam" not in args.sweep | args.set:
        args.sweep["lam"] = LAMS
    args.curve = args.merge and len(args.sweep.get("lam", ())) > 1        # --merge chooses lam


def check_export(args):
    """BadInput unless --export has one thing to write, and somewhere to write it."""
    from exchange import huggingface
    if args.merge and (len(args.merge) > 1 or args.by or RULES[args.merge[0]].experts):
        raise BadInput("--export writes one merged encoder: give --merge one rule that makes one "
                       "model, without --by")
    if not args.merge and len(args.runs) != 1:
        raise BadInput("--export writes one adapter: give one run, or --merge RULE")
    huggingface.check_new("--export", args.export)


def settings_of(rule, args):
    """The settings of a rule to try: --set fixed, --sweep as a product; a list of dicts."""
    keys = [k for k in sorted(args.sweep, key="lam".__eq__) if k in merge.options(rule)]
    swept = {k: args.sweep[k] for k in keys}                                      # lam fastest
    fixed = {k: v for k, v in args.set.items() if k in merge.options(rule)}
    return [fixed | dict(zip(swept, values)) for values in itertools.product(*swept.values())]


def main():
    """Score the runs one by one, or merged, or look at what merging does."""
    args = arguments()
    if args.list:
        for name, function in RULES.items():
            title, _, formula = function.__doc__.splitlines()[0].partition(".   ")
            print(cli.entry(name, title, formula, merge.options(name)))
        return
    runs, results = [load(folder) for folder in args.runs], {}
    args.by = cli.names(args.by, "--by", run_folder.keys(runs))
    if args.analyze:
        from analysis import protocols
        protocols.check(runs, args)
    if args.export and args.merge:
        from exchange import huggingface
        huggingface.check_merged(runs)
    elif args.export:
        from exchange import peft_folder
        peft_folder.write_adapter(runs[0], args.export)
    if not args.merge and not args.analyze:
        from experiment import alone
        results = alone.own_tasks(runs, args.device, args.limit, args.split)
        print("next: add --merge average,task_arithmetic,ties --sweep lam=0:1:0.05"
              if len(runs) > 1 else f"next: {alone.partners(runs[0])}")
    if args.merge:
        results = merge_runs(runs, args)
    if args.analyze:
        groups = groups_of(runs, args, [*args.by, "adapter"])
        results |= {"analysis": protocols.analyze(groups, args)}
    if args.json:
        run_folder.write_json(results, args.json)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    cli.run(main)
