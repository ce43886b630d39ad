"""Draw the figures of docs/ that join several results, or that explain.

    python -m bench.figures                    # all of them, to docs/figures
    python -m bench.figures suite schemes      # some; these two need no results

bars, text, landscape and spectrum read the files of `python -m bench.tables claim text look`,
losses and adapters the runs of `python -m bench.compare`. The others come from eval.py and bench.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

import lora
from analysis import plots
from analysis import schemes as lecture
from bench import claims, compare
from bench.tables import KINDS, THREE, WRITTEN
from experiment import cli
from tasks import drawn, sheet

FIGURES = {}
RULES = ("average", "ties", "task_arithmetic", "adamerging_layer", "single")
FACTORS = ("lora", "lora_plus", "rslora", "dora", "pissa", "milora")


def figure(function):
    """Decorator: the function's name is the word on the command line."""
    FIGURES[function.__name__] = function
    return function


@figure
def suite(args):
    """Examples and prompts of every drawn task, a row each."""
    plots.sheet(sheet.pictures(), list(drawn.TASKS), args.out / "suite.png")


def levels(args, step, kinds, title, file):
    """Accuracy of the pretrained, the merged and the single models, by kind of fine-tuning."""
    heights, base = {}, 0.0
    for kind in kinds:
        groups = claims.read(args.folder, f"{step}-{kind}").values()
        base = next(iter(groups))["rows"]["base"]["absolute"]
        heights[plots.words(kind)] = [[g["rows"][rule]["absolute"] for g in groups]
                                      for rule in RULES]
    plots.bars(heights, [rule.replace("_", "\n") for rule in RULES], "mean test accuracy", title,
               "Mean of eight tasks and three seeds, with the lowest and the highest seed. Bars "
               "start at the pretrained encoder. single: a model for each task, which the rules on "
               "the left merge into one.", args.out / file, base)


@figure
def bars(args):
    """The drawn tasks: base, merged and single, six kinds of fine-tuning."""
    levels(args, "claim", KINDS, "Eight tasks in one model", "bars.png")


@figure
def text(args):
    """The same of the written tasks."""
    levels(args, "text", WRITTEN, "Eight written tasks in one model", "text.png")


@figure
def landscape(args):
    """The loss of two tasks over the plane of their task vectors, three methods on one scale."""
    found = {kind: claims.looked(args.folder, kind, "look", "landscape", dict)[0]
             for kind in THREE}
    losses = {plots.words(kind): np.array(v["loss"]) for kind, v in found.items()}
    low = min(loss.min() for loss in losses.values())
    one = next(iter(found.values()))
    plots.planes(losses, one["lams"], one["pair"], "Loss of two tasks over their task vectors",
                 "Sum of both test losses, one scale for all. Where the blue square is as light as "
                 "the best, the two task vectors can simply be added.",
                 args.out / "landscape.png", low, 3 * low)


@figure
def spectrum(args):
    """How many singular directions the task vectors need, alone and summed."""
    lines = {}
    for kind in THREE[:2]:
        found, = claims.looked(args.folder, kind, "look", "spectrum", dict)
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= len(found["sum"])]
        single = [statistics.fmean(e[k - 1] for e in found["single"].values()) for k in ks]
        lines[f"{plots.words(kind)}, one task"] = list(zip(ks, single))
        lines[f"{plots.words(kind)}, sum of eight"] = [(k, found["sum"][k - 1]) for k in ks]
    plots.curves(lines, "first k singular directions", "share of the squared length",
                 "Singular values of task vectors", "Mean over the matrices, for one task also "
                 "over the tasks. LoRA of rank 8 has at most 8 directions a task and 64 in the "
                 "sum.", args.out / "spectrum.png", log="x")


@figure
def losses(args):
    """Training loss of LoRA and of methods that promise a faster start, all at one rate."""
    lines = {}
    for name in FACTORS:
        curve = np.array(claims.losses(args.runs / f"{name}-{args.lr:g}",
                                       f"compare --adapters {name}")).mean(0)
        curve = curve.reshape(-1, 10).mean(1)
        lines[plots.words(name)] = [(10 * i + 5, loss) for i, loss in enumerate(curve.tolist())]
    plots.curves(lines, "step", "training loss", f"Training loss at learning rate {args.lr:g}",
                 "Mean over the eight tasks and over ten steps, seed 0.", args.out / "losses.png",
                 log="y")


@figure
def adapters(args):
    """Every adapter at its own rate: merged by two rules, and single."""
    tasks, names = list(drawn.TASKS), sorted(lora.ADAPTERS)
    setting = argparse.Namespace(out=args.runs, tasks=tasks, rates=compare.RATES, jobs=1)
    for name in names:
        claims.alone(args.runs, name)                          # BadInput where runs are missing
    rules = ("average", "task_arithmetic", "single")
    rows = {name: [statistics.fmean(seed[rule]["absolute"] for seed in seeds.values())
                   for rule in rules] for name, seeds in compare.merge(setting, names).items()}
    rows = dict(sorted(rows.items(), key=lambda row: row[1][1]))
    plots.dots(rows, [rule.replace("_", " ") for rule in rules], "mean test accuracy",
               "Every adapter, alone and merged", "Mean of eight tasks and three seeds, each "
               "adapter at its own learning rate. single: a model for each task, which the rules "
               "merge into one.", args.out / "adapters.png")


@figure
def schemes(args):
    """W0 + BA, the tangent, and theta_0 + sum lam tau."""
    lecture.draw(args.out / "schemes.png")


def main():
    """Draw what is named, or everything."""
    parser = argparse.ArgumentParser("python -m bench.figures", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("figures", nargs="*", metavar="FIGURE", help=", ".join(FIGURES))
    add("--folder", type=Path, default=Path("runs/tables"), help="of bench.tables")
    add("--runs", type=Path, default=Path("runs/compare"), help="of bench.compare")
    add("--lr", type=float, default=1e-3, help="of `losses`")
    add("--out", type=Path, default=Path("docs/figures"))
    args = parser.parse_args()
    args.out = plots.folder(args.out)
    for name in cli.names(",".join(args.figures), "figure", FIGURES) if args.figures else FIGURES:
        FIGURES[name](args)


if __name__ == "__main__":
    cli.run(main)
