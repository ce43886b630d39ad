"""What the papers claim, beside what is measured here: tables from the files of bench.tables.

    python -m bench.tables --jobs 2            # hours
    python -m bench.compare --jobs 2           # hours
    python -m bench.claims

An effect is the difference of two numbers of one seed: its mean ± standard deviation over the
seeds. A claim is *confirmed* where every seed agrees and the mean is at least .005 (losses too),
*contradicted* where every seed says the opposite by as much, and else *not seen*. Training losses
are compared task by task, at one learning rate and one seed: there the eight tasks stand for seeds.
"""

import argparse
import csv
import json
import statistics
from pathlib import Path

from bench import compare
from bench.tables import RANKS
from errors import BadInput
from experiment import cli, tables
from tasks.drawn import TASKS

LEAST = 0.005
# of arXiv:2310.04742: L-LoRA has more of this number, merged by this rule
LINEARIZED = [("share", "average"), ("share", "task_arithmetic"), ("share", "ties"),
              ("normalised", "task_arithmetic"), ("absolute", "task_arithmetic")]
# (paper, step of bench.tables, a rule, the rule that it is better than)
BETTER = [("2212.04089", "claim", "task_arithmetic", "average"),
          ("2306.01708", "claim", "ties", "task_arithmetic"),
          ("2310.02575", "claim", "adamerging_layer", "task_arithmetic"),
          ("2310.02575", "rules", "adamerging_layer", "adamerging_task"),
          ("2310.02575", "rules", "adamerging_layer_pp", "adamerging_layer"),
          ("2412.00081", "rules", "tsv", "task_arithmetic"),
          ("2502.04959", "rules", "iso_c", "task_arithmetic"),
          ("2502.04959", "rules", "iso_cts", "iso_c"),
          ("2410.19735", "rules", "knots", "task_arithmetic"),
          ("2503.08099", "rules", "wudi", "task_arithmetic"),
          ("2212.09849", "rules", "regmean", "average"),
          ("2508.03121", "rules", "regmean_pp", "regmean"),
          ("2111.09832", "rules", "fisher", "average"),
          ("2410.02396", "rules", "pcb", "ties"),
          ("2406.11617", "rules", "della", "dare_ties"),
          ("2405.07813", "rules", "consensus", "task_arithmetic"),
          ("2312.06795", "rules", "breadcrumbs", "task_arithmetic"),
          ("2407.06322", "rules", "magmax", "task_arithmetic"),
          ("2405.17461", "rules", "emr", "adamerging_layer"),
          ("2406.15479", "rules", "twin", "adamerging_layer")]


def mean(rows, more, less):
    """Mean over the rows of an instrument of one column minus another."""
    return statistics.fmean(row[more] - row[less] for row in rows)


def kept(found, rule, size, column):
    """A column of the row of a rule and of a number of tasks in what `subsets` found."""
    row, = (row for row in found["rows"] if row[:2] == [rule, size])
    return row[column]


# (paper, claim, step of bench.tables, instrument, what should be above zero)
LOOKED = [
    ("2212.04089", "a task vector subtracted: its task falls", "forget", "forget",
     lambda found: mean(found["rows"], 2, 3)),
    ("2212.04089", "... and by more than the others fall", "forget", "forget",
     lambda found: mean(found["rows"], 2, 3) - mean(found["rows"], 4, 5)),
    ("2212.04089", "an unseen task by analogy: B + C - A > B + C", "analogy", "analogy",
     lambda found: mean(found["rows"], 3, 2)),
    ("2212.04089", "unseen tasks: task_arithmetic > base", "apart", "unseen",
     lambda found: mean(found["rows"], 2, 1)),
    ("2310.02575", "unseen tasks: adamerging_layer > task_arithmetic", "apart", "unseen",
     lambda found: mean(found["rows"], 3, 2)),
    ("2310.02575", "corrupted: adamerging_layer > task_arithmetic", "apart", "corruption",
     lambda found: mean(found["rows"][1:], 4, 3))]
# of arXiv:2310.04742 and 2305.12827, what L-LoRA has more of than LoRA: (claim, step, number)
DIFFERS = [("smaller disentanglement error, [0, 1]^2", "disentangle", lambda found: -found["box"]),
           ("the same, [-1, 2]^2", "disentangle",
            lambda found: -statistics.fmean(map(statistics.fmean, found["xi"]))),
           ("absolute, average of pairs", "subsets", lambda found: kept(found, "average", 2, 4)),
           ("normalised, average of pairs", "subsets", lambda found: kept(found, "average", 2, 5)),
           ("normalised, task arithmetic, 3 to 7 tasks", "subsets", lambda found: statistics.fmean(
               kept(found, "task_arithmetic", size, 5) for size in range(3, 8)))]

FASTER = [("2404.02948", "pissa"), ("2402.09353", "dora"), ("2402.12354", "lora_plus")]
# (paper, adapter, another that it should learn better than, each at its own rate)
ABOVE = [("2404.02948", "pissa", "lora"), ("2402.09353", "dora", "lora"),
         ("2402.12354", "lora_plus", "lora"), ("2312.03732", "rslora", "lora"),
         ("2303.10512", "adalora", "lora"), ("2409.01035", "lora_dash", "lora"),
         ("2409.15371", "bone", "lora"), ("2409.15371", "bat", "bone")]


def losses(name, remedy):
    """[training loss of every step] of eight runs of seed 0; name  their path up to the task."""
    found = []
    for task in TASKS:
        path = Path(f"{name}-{task}-s0") / "log.csv"
        if not path.exists():
            raise BadInput(f"no {path}: python -m bench.{remedy}")
        with path.open() as file:
            found.append([float(row["loss"]) for row in csv.DictReader(file)])
    return found


def read(folder, file):
    """FILE.json of a step of bench.tables."""
    path = folder / f"{file}.json"
    if not path.exists():
        raise BadInput(f"no {path}: python -m bench.tables {file.partition('-')[0]}")
    return json.loads(path.read_text())


def looked(folder, kind, step, instrument, number):
    """[number(what the instrument found)] of every seed, from STEP-KIND.json."""
    found = read(folder, f"{step}-{kind}")["analysis"]
    return [number(found[key]) for key in sorted(found) if key.endswith(f" {instrument}")]


def verdict(effects):
    """confirmed, contradicted or not seen, from the effect of every seed."""
    for word, sign in (("confirmed", 1), ("contradicted", -1)):
        effect = round(sign * statistics.fmean(effects), 9)          # .005 of accuracies is .005
        if min(sign * e for e in effects) > 0 and effect >= LEAST:
            return word
    return "not seen"


def cells(effects):
    """[effect, verdict] of a claim, from the effect of every seed."""
    spread = f" ± {statistics.stdev(effects):.3f}" if len(effects) > 1 else ""
    return [f"{statistics.fmean(effects):+.3f}{spread}", verdict(effects)]


def differences(folder, more, less):
    """The effect of every seed; more, less  (file, row, number): the first should be larger."""
    high, low = ({seed: group["rows"][row][number] for seed, group in read(folder, file).items()}
                 for file, row, number in (more, less))
    return [high[seed] - low[seed] for seed in high]


def linearized(folder):
    """Rows of what L-LoRA should have more of."""
    for number, rule in LINEARIZED:
        ours = ("claim-l_lora.model", rule, number)
        pairs = [differences(folder, ours, (f"claim-{other}", rule, number))
                 for other in ("lora", "lora_gentle", "lora_large")]
        yield [f"{number}, {rule.replace('_', ' ')}", *(c for pair in pairs for c in cells(pair))]
    for claim, step, number in DIFFERS:
        ours, theirs = (looked(folder, kind, step, step, number)
                        for kind in ("l_lora.model", "lora"))
        yield [claim, *cells([a - b for a, b in zip(ours, theirs)]), *["-"] * 4]


def better(folder):
    """Rows of the rules that should be better than others."""
    for paper, step, more, less in BETTER:
        row = [f"{more} > {less}", paper]
        for kind in ("full", "lora"):
            file = f"{step}-{kind}"
            row += cells(differences(folder, (file, more, "absolute"), (file, less, "absolute")))
        yield row


def others(folder):
    """Rows of what --analyze looks at."""
    for paper, claim, step, instrument, number in LOOKED:
        row = [claim, paper]
        for kind in ("full", "lora"):
            row += cells(looked(folder, kind, step, instrument, number))
        yield row


def early(name, remedy, steps=100):
    """Mean training loss of the first steps, of each of eight runs."""
    return [statistics.fmean(loss[:steps]) for loss in losses(name, remedy)]


def faster(runs, rate):
    """Rows of the adapters that should train faster than LoRA at the same learning rate."""
    loss = lambda name: early(runs / f"{name}-{rate:g}", f"compare --adapters {name}")
    plain = loss("lora")
    for paper, name in FASTER:
        yield [f"{name} < lora", paper, *cells([a - b for a, b in zip(plain, loss(name))])]
    gains = {}
    for name in ("lora", "rslora"):
        low, high = (early(runs / f"{name}-r{rank}", "tables ranks") for rank in RANKS)
        gains[name] = [a - b for a, b in zip(low, high)]
    yield [f"rslora: rank {RANKS[1]} < rank {RANKS[0]}", "2312.03732", *cells(gains["rslora"])]
    yield ["... and by more than in lora", "2312.03732",
           *cells([a - b for a, b in zip(gains["rslora"], gains["lora"])])]


def alone(runs, adapter):
    """Mean test accuracy of single models, of every seed, at the adapter's own learning rate."""
    args = argparse.Namespace(out=runs, tasks=list(TASKS), rates=compare.RATES)
    walked = not compare.untried(args, adapter)
    own = [(adapter, compare.best_rate(args, adapter), s) for s in compare.SEEDS] if walked else []
    if not walked or compare.missing(args, own):
        raise BadInput(f"{runs} lacks runs: python -m bench.compare --adapters {adapter}")
    return [statistics.fmean(r["test"] for r in compare.results(args, *run)) for run in own]


def above(runs):
    """Rows of the adapters whose single models should be better than another's."""
    names = dict.fromkeys(name for row in ABOVE for name in row[1:])
    accuracy = {name: alone(runs, name) for name in names}
    for paper, more, less in ABOVE:
        yield [f"{more} > {less}", paper,
               *cells([a - b for a, b in zip(accuracy[more], accuracy[less])])]


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m bench.claims", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/tables"), help="of bench.tables")
    add("--runs", type=Path, default=Path("runs/compare"), help="of bench.compare")
    add("--lr", type=float, default=1e-3, help="at which training losses are compared")
    args = parser.parse_args()
    both = ["paper", "full fine-tuning", "here", "LoRA", "here"]
    for header, rows in [
            (["L-LoRA has more", "than LoRA", "here", "than LoRA, lr 3e-4", "here",
              "than LoRA, lr 1e-2", "here"], linearized(args.folder)),
            (["accuracy", *both], better(args.folder)), (["claim", *both], others(args.folder)),
            (["accuracy alone", "paper", "own rates", "here"], above(args.runs)),
            (["training loss, steps 1 to 100", "paper", f"over tasks, lr {args.lr:g}", "here"],
             faster(args.runs, args.lr))]:
        print(tables.table(header, list(rows)), end="\n\n")


if __name__ == "__main__":
    cli.run(main)
