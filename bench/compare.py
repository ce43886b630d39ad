"""Every adapter at its own learning rate, alone and merged: the table in docs/adapters.md.

    python -m bench.compare --jobs 2           # hours of one core; stop and start it as you like
    python -m bench.compare --adapters dora,vera --jobs 2

For each adapter: a walk over a grid of learning rates at seed 0, on the drawn tasks; then the other
seeds at the smallest rate within a point of the best mean validation accuracy. Only those runs are
read on test, alone and merged. What is finished is not repeated, and runs/compare has all of it.
"""

import argparse
import inspect
import json
import math
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

import adapters  # noqa: F401  (fills lora.ADAPTERS)
import data
import encoders
import lora
from errors import BadInput
from experiment import cli, tables

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
WITHIN = 0.01                               # of the best mean accuracy: the smallest rate is taken
SEEDS = (0, 1, 2)
HERE = Path(__file__).parents[1]


def folder(args, adapter, rate, seed, task):
    return args.out / f"{adapter}-{rate:g}-{task}-s{seed}"


def missing(args, runs):
    """Those of the runs (adapter, rate, seed) that are not finished on every task."""
    return [run for run in runs if not all((folder(args, *run, task) / "result.json").exists()
                                           for task in args.tasks)]


def side_by_side(commands, jobs, title):
    """Run commands, lists of words, `jobs` at a time, one thread each; the last word is where."""
    def one(words):
        return subprocess.run([sys.executable, *map(str, words)], cwd=HERE, capture_output=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True)

    with ThreadPoolExecutor(jobs) as pool:
        for words, done in zip(commands, tqdm(pool.map(one, commands), title, len(commands))):
            if done.returncode:
                pool.shutdown(cancel_futures=True)
                last = (done.stderr.strip() or "no message").splitlines()[-1]
                raise BadInput(f"{words[0]}, {words[-1]}: {last}")


def train(args, runs, title):
    """Make the runs (adapter, rate, seed) that are missing."""
    for path in (folder(args, *run, task) / "config.json" for run in runs for task in args.tasks):
        made = json.loads(path.read_text()) if path.exists() else vars(args)
        if differ := [key for key in ("steps", "model") if made[key] != getattr(args, key)]:
            raise BadInput(f"{path.parent} was made with --{differ[0]} {made[differ[0]]}: "
                           "give another --out")
    commands = [["train.py", "--adapter", run[0], "--lr", run[1], "--task", ",".join(args.tasks),
                 "--seed", run[2], "--steps", args.steps, "--model", args.model, "--resume",
                 "--out", folder(args, *run, "{task}")] for run in missing(args, runs)]
    side_by_side(commands, args.jobs, title)


def results(args, *run):
    """result.json of a run (adapter, rate, seed) on each of the tasks."""
    return [json.loads((folder(args, *run, t) / "result.json").read_text()) for t in args.tasks]


def validation(args, adapter):
    """{rate: mean validation accuracy at seed 0} of the rates that are trained, rising."""
    trained = [rate for rate in sorted(args.rates) if not missing(args, [(adapter, rate, 0)])]
    return {rate: statistics.fmean(result["val"] for result in results(args, adapter, rate, 0))
            for rate in trained}


def untried(args, adapter):
    """The next rates of the walk: first the one nearest to the adapter's default, then up while
    the largest tried is the best, and down while the smallest tried is within a point of it."""
    val, rates = validation(args, adapter), sorted(args.rates)
    if not val:
        cls = lora.ADAPTERS[adapter]
        return [min(rates, key=lambda rate: abs(math.log(rate / cls.lr[cls.linearize])))]
    best = max(val.values())
    up = [rate for rate in rates if rate > max(val)][:val[max(val)] == best]
    down = [rate for rate in rates if rate < min(val)][-1:] if within(val[min(val)], best) else []
    return down + up


def within(accuracy, best):
    return accuracy >= best - WITHIN - 1e-9


def best_rate(args, adapter):
    """The smallest learning rate whose mean validation accuracy at seed 0 is within one point of
    the best: gentle fine-tuning merges better."""
    val = validation(args, adapter)
    return min(rate for rate in val if within(val[rate], max(val.values())))


def merge(args, names):
    """{adapter: {seed: {row: its numbers}}} of eval.py: the runs of a seed by two rules."""
    rates = {a: best_rate(args, a) for a in names}
    paths = {a: args.out / f"{a}-{rates[a]:g}-{'+'.join(args.tasks)}.json" for a in names}
    side_by_side([["eval.py", *(folder(args, a, rates[a], s, t) for s in SEEDS for t in args.tasks),
                   "--by", "seed", "--merge", "average,task_arithmetic",
                   "--sweep", "lam=0.1,0.2,0.3,0.4,0.6,0.8,1", "--limit", 500, "--json", path]
                  for a, path in paths.items() if not path.exists()], args.jobs, "merges")
    return {a: {seed: group["rows"] for seed, group in json.loads(path.read_text()).items()}
            for a, path in paths.items()}


def lines_of_code(cls):
    """Lines of the adapter's file without blanks, comments and docstrings; for LoRA its class."""
    module = sys.modules[cls.__module__]
    source = inspect.getsource(cls if module is lora else module)
    source = re.sub(r'""".*?"""', "", source, flags=re.DOTALL)
    return sum(bool(line.strip()) and not line.strip().startswith("#")
               for line in source.splitlines())


def step_times(args, names):
    """{adapter: step time relative to LoRA}, measured alone and once."""
    path = args.out / "bench.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    if not {r["adapter"] for r in rows} >= {*names}:
        subprocess.run([sys.executable, "-m", "bench", "--json", str(path)], cwd=HERE, check=True)
        rows = json.loads(path.read_text())
    return {r["adapter"]: r["time"] for r in rows
            if r["linearize"] == lora.ADAPTERS[r["adapter"]].linearize}


def row(args, adapter, merged, times):
    """One line of the table; rank is the largest that the change of a layer can have."""
    cls, rate = lora.ADAPTERS[adapter], best_rate(args, adapter)
    arxiv = re.search(r"\d{4}\.\d{5}", lora.paper(cls))
    trained = results(args, adapter, rate, 0)
    scores = [[rows[name]["absolute"] for rows in merged[adapter].values()]
              for name in ("single", "average", "task_arithmetic")]
    encoder = encoders.load(args.model)
    lora.inject(encoder, adapter, generator=torch.Generator())
    return [adapter, arxiv.group() if arxiv else "-", f"{trained[0]['trainable']:,}",
            max(layer.rank_bound() for layer in lora.adapters(encoder).values()), f"{rate:g}",
            *(f"{statistics.fmean(s):.3f} ± {statistics.stdev(s):.3f}" for s in scores),
            f"{times[adapter]:.2f}", lines_of_code(cls)]


def main():
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--adapters", help="comma-separated (default: all)")
    add("--tasks", default="all", help="comma-separated (default: all of the model's kind)")
    add("--rates", type=lambda text: [float(v) for v in text.split(",")], default=RATES)
    add("--steps", type=int, default=200)
    add("--model", default="vit")
    add("--jobs", type=int, default=1, help="runs or merges at a time, one thread each")
    add("--out", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()
    cli.check_numbers(args)
    names = cli.names(args.adapters or ",".join(sorted(lora.ADAPTERS)), "adapter", lora.ADAPTERS)
    known = list(data.suite(encoders.kind(args.model)).TASKS)
    args.tasks = known if args.tasks == "all" else cli.names(args.tasks, "task", known)
    args.out = args.out.absolute()
    if encoders.find(args.model) == Path(args.model):               # as train.py has it
        args.model = os.path.abspath(args.model)
    cli.check_place("--out", args.out / "bench.json")
    while todo := [(a, rate, 0) for a in names for rate in untried(args, a)]:
        train(args, todo, "learning rates")
    train(args, [(a, best_rate(args, a), seed) for a in names for seed in SEEDS[1:]], "seeds")
    merged, times = merge(args, names), step_times(args, names)
    print(f"{args.steps} steps; mean test accuracy of {len(args.tasks)} tasks, {len(SEEDS)} seeds")
    print(tables.table(["adapter", "arXiv", "trainable", "rank", "lr", "single", "average",
                        "task_arithmetic", "step / lora", "lines"],
                       [row(args, name, merged, times) for name in names]))


if __name__ == "__main__":
    cli.run(main)
