"""Doubling one thing at a time: what a step and a merge cost in time and memory, and how it grows.

    step     LoRA and the whole-model L-LoRA, and the bytes kept for the backward pass, against
             rank, depth (blocks) and batch; else rank 8, 4 blocks, batch 32
    merge    a rule on T synthetic task vectors of 2 million parameters, and the bytes it holds
             beside the base when they come one by one

Sizes take turns in every round. The exponents k are those of time ~ size^k and bytes ~ size^k over
the last doubling: 1 is linear, 0 does not depend on it.
"""

import itertools
import math
import statistics

import torch

import encoders
from analysis import plots
from bench.merging import task_vectors
from bench.steps import Contender
from bench.turns import conditions, keep_freed_memory, stop_keeping_freed_memory, turns
from experiment import tables
from experiment.measure import Peak
from experiment.scoring import RULES

SIZES = {"rank": (2, 4, 8, 16, 32, 64), "depth": (1, 2, 4, 8, 16), "batch": (4, 8, 16, 32, 64, 128),
         "tasks": (2, 4, 8, 16, 32, 64)}
LINES = {"LoRA": ("lora", "off"), "L-LoRA": ("l_lora", "model")}


def steps(axis, rounds):
    """{(name, size): (seconds, bytes kept)} of an optimizer step along one axis."""
    contenders = {}
    for (name, (adapter, reading)), size in itertools.product(LINES.items(), SIZES[axis]):
        at = dict(rank=8, depth=4, batch=32) | {axis: size}
        torch.manual_seed(0)
        encoder = encoders.ViT(depth=at["depth"])
        contenders[name, size] = Contender(adapter, reading, at["batch"], encoder, rank=at["rank"])
    seconds = turns({key: c.train for key, c in contenders.items()}, rounds)
    return {key: (statistics.median(seconds[key]), c.kept()) for key, c in contenders.items()}


def merges(rounds):
    """{(rule, tasks): (seconds, bytes held)}."""
    base, make = task_vectors(1.8, 192)
    keys, held = list(itertools.product(("average", "ties"), SIZES["tasks"])), {}
    stop_keeping_freed_memory()
    for rule, T in keys:
        with Peak() as peak:
            RULES[rule](base, (make(t) for t in range(T)))
        held[rule, T] = peak.bytes
    keep_freed_memory()
    taus = [make(t) for t in range(max(SIZES["tasks"]))]
    runs = {(rule, T): lambda f=RULES[rule], T=T: f(base, taus[:T]) for rule, T in keys}
    return {key: (statistics.median(s), held[key]) for key, s in turns(runs, rounds).items()}


def exponent(values):
    """k of values ~ size^k over the last doubling of the size; nan where nothing was measured."""
    return math.log2(values[-1] / values[-2]) if all(values) else math.nan


def growth(rounds, folder):
    """Print the table; draw growth.png and growth-memory.png into `folder` unless it is None."""
    rows, relative = [], [{"linear": [(1, 1), (32, 32)]} for _ in ("time", "memory")]
    for axis, sizes in SIZES.items():
        costs = merges(rounds) if axis == "tasks" else steps(axis, rounds)
        for name in dict.fromkeys(name for name, _ in costs):
            both = list(zip(*(costs[name, size] for size in sizes)))       # seconds, bytes
            shown = [" / ".join(f"{v / unit:.0f}" for v in values)
                     for values, unit in zip(both, (1e-3, 2 ** 20))]
            powers = [f"{exponent(values):.2f}" for values in both]
            rows.append([f"{name}, {axis}", " / ".join(map(str, sizes)),
                         *itertools.chain(*zip(shown, powers))])
            for lines, values in zip(relative, both):
                lines[f"{name}, {axis}"] = [(s / sizes[0], v / (values[0] or 1))
                                            for s, v in zip(sizes, values)]
    print(conditions(rounds))
    print(tables.table(["what grows", "sizes", "ms", "exponent", "MiB", "exponent"], rows))
    if not folder:
        return
    for lines, what, name in zip(relative, ("time", "memory"), ("", "-memory")):
        plots.curves(lines, "size / smallest size", f"{what} / that of the smallest size",
                     f"What a step and a merge cost as things grow: {what}",
                     "Both axes are logarithmic; a line as steep as the first is linear. Memory is "
                     "what a step keeps for its backward pass, and a merge beside the base.",
                     folder / f"growth{name}.png", log="xy")
