"""Score runs on their own tasks, and merge them into one model that is scored on every task.

    python eval.py runs/vit-lora-*-s0                        # each run by itself
    python eval.py runs/vit-lora-*-s0 --merge average,task_arithmetic,ties --sweep lam=0:1:0.05
    python eval.py runs/vit-*-s0 --merge all --by adapter    # every rule, one table per adapter
    python eval.py runs/vit-lora-*-s? --by seed --merge average      # mean and spread over seeds
    python eval.py --list                                    # every rule and its keys

Coefficients are chosen on val, by the mean accuracy over the tasks; the chosen one is scored once.
The scores are explained in score.py.
"""

import argparse
import itertools
import statistics

from tqdm import tqdm

import adapters  # noqa: F401  (fills lora.ADAPTERS)
from experiment import cli
from exchange import peft_folder
from exchange import huggingface
import merge
import encoders
from analysis import plots
from analysis import protocols  # noqa: F401  (fills INSTRUMENTS)
from experiment import run_folder
from experiment import spaces
from errors import BadInput, unknown
from analysis.instruments import INSTRUMENTS, Analysis
from experiment.jobs import spread
from experiment.scoring import RULES, Bench, Tasks, obstacle, prepared, row, split_joint, summarize

LAM = "lam=0.1,0.2,0.3,0.5,1"                    # what --merge all sweeps unless told otherwise
TRIVIAL = ("negation", "layerwise")              # not in all: the opposite, and the average again


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
    add("--by", default="", metavar="adapter,seed",
        help="merge the runs of each adapter, each seed apart; report mean and spread over seeds")
    add("--unlabelled", choices=["calib", "test"], default="calib",
        help="inputs for rules that use them without labels; test is what AdaMerging's paper does")
    add("--analyze", default="", metavar="WHAT,...",
        help=f"instruments, or all: {', '.join(INSTRUMENTS)}")
    add("--lam", type=float, help="coefficient of task arithmetic for --analyze (default: by val)")
    add("--plot", metavar="FOLDER", help="also draw the figures of --analyze (needs matplotlib)")
    add("--export", metavar="FOLDER",
        help="one run: as a PEFT adapter; with --merge RULE: the merged encoder, Hugging Face form")
    add("--split", choices=["val", "test"], default="test")
    add("--limit", type=int, metavar="N", help="at most N examples per split")
    add("--jobs", type=int, default=1, metavar="N", help="rules at a time, for --merge")
    add("--device", default="auto")
    add("--json", metavar="FILE", help="also write every number to a file")
    add("--list", action="store_true", help="list the rules and stop")
    args = p.parse_args()
    args.all = args.merge == "all"
    args.merge = [r for r in RULES if r not in TRIVIAL] if args.all else \
        cli.names(args.merge, "rule", RULES)
    args.by = cli.names(args.by, "--by", ["adapter", "seed"])
    args.analyze = list(INSTRUMENTS) if args.analyze == "all" else \
        cli.names(args.analyze, "instrument", INSTRUMENTS)
    if args.all and not any(s.startswith("lam=") for s in args.sweep + args.set):
        args.sweep.append(LAM)
    if args.export:
        check_export(args)
    cli.positive(args, "jobs", "limit")
    args.device = cli.device(args.device)
    args.plot = plots.folder(args.plot) if args.plot else None
    if not args.runs and not args.list:
        raise BadInput("give at least one run folder; train.py prints where it writes")
    return args


def check_export(args):
    """BadInput unless --export has one thing to write, and somewhere to write it."""
    if args.merge and (len(args.merge) > 1 or args.by or RULES[args.merge[0]].experts):
        raise BadInput("--export writes one merged encoder: give --merge one rule that makes one "
                       "model, without --by")
    if not args.merge and len(args.runs) != 1:
        raise BadInput("--export writes one adapter: give one run, or --merge RULE")
    huggingface.check_new(args.export)


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
    swept = {k: swept[k] for k in sorted(swept, key="lam".__eq__) if k in known}  # lam fastest
    fixed = {k: v for k, v in fixed.items() if k in known and k not in swept}
    return [fixed | dict(zip(swept, values)) for values in itertools.product(*swept.values())]


def kind_of(run):
    """lora, l_lora.model, dora.nf4, ...: what a table is about."""
    s = run["setting"]
    parts = [s["adapter"], s["linearize"] if s["linearize"] != "off" else None, s["quantize"]]
    return ".".join(part for part in parts if part)


def chosen(row):
    """The settings of a row, as text."""
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                     for k, v in row.get("chosen", {}).items() if v is not None)


def report(results, tasks, costs):
    """The table of one or several seeds: mean, and the spread where there are several.

    costs   False: a column per task; True: the worst task, seconds and memory of each rule
    """
    def cell(values, form="{:.3f}"):
        if len(values) == 1:
            return form.format(values[0])
        return f"{form} ± {form}".format(statistics.fmean(values), statistics.stdev(values))

    out = []
    for name in results[0]:
        rows = [r[name] for r in results]
        line = [name, " / ".join(dict.fromkeys(map(chosen, rows))) or "-"]
        if not costs:
            line += [f"{statistics.fmean(r['scores'][t] for r in rows):.3f}" for t in tasks]
        line += [cell([r[k] for r in rows]) for k in ("absolute", "normalised", "share")]
        if costs:
            worst = rows[0]["worst"]
            line.append(f"{worst} {statistics.fmean(r['scores'][worst] for r in rows):.3f}")
            line += [f"{statistics.fmean(r[k] for r in rows) / unit:.1f}" if k in rows[0] else "-"
                     for k, unit in (("seconds", 1), ("bytes", 2 ** 20))]
        out.append(line)
    header = ["model", "chosen on val", *([] if costs else tasks), "absolute", "normalised",
              "share", *(["worst task", "s", "MiB"] if costs else [])]
    return cli.table(header, out)


def own_task(group, args):
    """The table without --merge: every run on its own tasks."""
    rows = []
    for run in tqdm(group, desc="runs"):
        model = run_folder.rebuild(run, run_folder.base_encoder(run, args.device))
        s, tasks = run["setting"], Tasks([run], args.device, args.limit)
        for task in tasks.runs:
            rows.append([run["folder"].name, s["adapter"], s["linearize"], task,
                         *[tasks.score(model, split, task) for split in ("val", "test")]])
    return cli.table(["run", "adapter", "linearize", "task", "val", "test"], rows)


def groups_of(loaded, by):
    """{(kind, seed): runs}, by what is asked for; else one group."""
    groups = {}
    for run in loaded:
        key = (kind_of(run) if "adapter" in by else None,
               run["setting"]["seed"] if "seed" in by else None)
        groups.setdefault(key, []).append(run)
    return groups


def plan(group, args, told):
    """(space, {rule: settings to choose from}) of a group; `all` leaves out what does not apply.

    told   set of what was already said to be left out, of other groups; grows
    """
    space, rules = args.space or spaces.default(group), {}
    _, single = split_joint(group)
    for rule in args.merge:
        if why := obstacle(rule, space, len(single)):
            if not args.all:
                raise BadInput(f"{why}: leave it out or give other runs")
            if why not in told:
                tqdm.write(f"left out: {why}")
            told.add(why)
            continue
        rules[rule] = settings_of(rule, args)
    return space, rules


def merged_tables(loaded, args):
    """Merge every group and print one table per kind of adapter."""
    prepared.cache_clear()                              # runs may have been trained again since
    groups, units, owner = groups_of(loaded, args.by), [], []
    told = set()
    plans = {key: plan(group, args, told) for key, group in groups.items()}
    for key, (space, rules) in plans.items():
        folders = tuple(str(run["folder"]) for run in groups[key])
        bench = Bench(folders, space, args.split, args.device, args.limit, args.unlabelled)
        units += [(bench, rule, rules.get(rule), args.export) for rule in (None, *rules)]
        owner += [key] * (1 + len(rules))
    with tqdm(total=sum(len(choices or [0]) for _, _, choices, _ in units), desc="rules") as bar:
        rows = spread(row, units, args.jobs, bar)
    found = {key: {} for key in groups}
    for key, made in zip(owner, rows):
        found[key] |= made
    for made in found.values():
        summarize(made)
    for kind in dict.fromkeys(kind for kind, _ in groups):
        keys = [key for key in groups if key[0] == kind]
        first = groups[keys[0]][0]["setting"]
        print(f"\n{sum(len(groups[k]) for k in keys)} runs in {len(keys)} group(s), adapter "
              f"{first['adapter']}, linearize {first['linearize']}, space {plans[keys[0]][0]}, "
              f"unlabelled inputs from {args.unlabelled}, scored on {args.split}")
        results = [found[key] for key in keys]
        print(report(results, list(results[0]["base"]["scores"]), args.all))
    named = lambda key: " ".join(str(part) for part in key if part is not None) or "all"
    return {named(key): {"space": plans[key][0], "rows": rows} for key, rows in found.items()}


def check_analyses(loaded, args):
    """BadInput for an instrument that these runs are nothing for; `all` leaves it out."""
    texts = any(encoders.kind(run["setting"]["model"]) == "text" for run in loaded)
    few = len({run["setting"]["task"] for run in loaded if len(run_folder.tasks(run)) == 1}) < 4
    everything = args.analyze == list(INSTRUMENTS)
    for name, unfit, why in (
            ("corruption", texts, "corruption is for images and these runs are on texts"),
            ("analogy", few, "analogy needs runs on four tasks or more")):
        if unfit and name in args.analyze:
            if not everything:
                raise BadInput(f"{why}: leave it out of --analyze")
            tqdm.write(f"left out: {why}")
            args.analyze.remove(name)


def analyzed(loaded, args):
    """Run the instruments on every group."""
    found = {}
    for (kind, seed), group in groups_of(loaded, [*args.by, "adapter"]).items():
        _, group = split_joint(group)
        tasks = Tasks(group, args.device, args.limit, args.unlabelled)
        space_name = args.space or spaces.default(group)
        space = spaces.vectors(group, space_name, args.device)
        a = Analysis(space, tasks, kind, args.lam or 0.0, folder=args.plot)
        if args.lam is None:
            a.lam = max((i / 20 for i in range(1, 21)), key=lambda lam: statistics.fmean(
                a.score(a.only(a.names, lam), n, "val") for n in a.names))
        title = f"{kind}, space {space_name}, {len(group)} tasks, lam {a.lam:g}"
        print(f"\n{title}, first {min(a.examples, args.limit or a.examples)} examples of a split")
        for name in args.analyze:
            print(f"\n{name}: {INSTRUMENTS[name].__doc__.splitlines()[0]}")
            found[f"{kind} {name}" if seed is None else f"{kind} {seed} {name}"] = \
                INSTRUMENTS[name](a)
    if not args.plot:
        print("\nfigures: add --plot FOLDER (needs matplotlib, see requirements-figures.txt)")
    return found


def main():
    """Score the runs one by one, or merged, or look at what merging does."""
    args = arguments()
    if args.list:
        for name, function in RULES.items():
            title, _, formula = function.__doc__.splitlines()[0].partition(".   ")
            print(cli.entry(name, title, formula, merge.options(name)))
        return
    loaded, found = [peft_folder.load(folder) for folder in args.runs], {}
    check_analyses(loaded, args)
    if args.export and args.merge:
        huggingface.check_merged(loaded)
    elif args.export:
        peft_folder.write_adapter(loaded[0], args.export)
    if not args.merge and not args.analyze:
        print(own_task(loaded, args))
        print("next: add --merge average,task_arithmetic,ties --sweep lam=0:1:0.05")
    if args.merge:
        found = merged_tables(loaded, args)
    if args.analyze:
        found |= {"analysis": analyzed(loaded, args)}
    if args.json:
        run_folder.write_json(found, args.json)
        print(f"wrote {args.json}")


if __name__ == "__main__":
    cli.run(main)
