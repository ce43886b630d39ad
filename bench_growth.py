"""The part of bench.py that doubles one thing at a time: what is linear, and what is not.

    step     an optimizer step of LoRA and of the whole-model L-LoRA, and the bytes kept for its
             backward pass, against rank, depth (blocks) and batch; else rank 8, 4 blocks, batch 32
    merge    a rule on T synthetic task vectors of 2 million parameters

Sizes take turns in every round. The last column is the exponent k of time ~ size^k over the last
doubling: 1 is linear, 0 does not depend on it.
"""

import itertools
import math
import statistics

import torch

import cli
import models
import plots
from bench_merge import task_vectors, turns
from measure import keep_freed_memory
from score import RULES

SIZES = {"rank": (2, 4, 8, 16, 32, 64), "depth": (1, 2, 4, 8, 16), "batch": (4, 8, 16, 32, 64, 128),
         "tasks": (2, 4, 8, 16, 32, 64)}
KINDS = {"LoRA": ("lora", "off"), "L-LoRA": ("l_lora", "model")}


def steps(contender, axis, rounds):
    """{(kind, size): (seconds, bytes kept)} of an optimizer step along one axis.

    contender   the class of bench.py: (adapter, reading, batch, encoder, **hp)
    """
    made = {}
    for (kind, (adapter, reading)), size in itertools.product(KINDS.items(), SIZES[axis]):
        at = dict(rank=8, depth=4, batch=32) | {axis: size}
        torch.manual_seed(0)
        encoder = models.ViT(depth=at["depth"])
        made[kind, size] = contender(adapter, reading, at["batch"], encoder, rank=at["rank"])
        made[kind, size].step()                                                      # warm up
    seconds = turns({key: c.step for key, c in made.items()}, rounds)
    return {key: (statistics.median(seconds[key]), c.kept()) for key, c in made.items()}


def merges(rounds):
    """{(rule, tasks): (seconds, None)}."""
    keep_freed_memory()
    base, make = task_vectors(1.8, 192)
    taus = [make(t) for t in range(max(SIZES["tasks"]))]
    runs = {(rule, T): lambda f=RULES[rule], T=T: f(base, taus[:T])
            for rule in ("average", "ties") for T in SIZES["tasks"]}
    return {key: (statistics.median(s), None) for key, s in turns(runs, rounds).items()}


def growth(contender, rounds, folder):
    """Print the table; draw growth.png into `folder` unless it is None."""
    rows, lines = [], {}
    for axis, sizes in SIZES.items():
        found = merges(rounds) if axis == "tasks" else steps(contender, axis, rounds)
        for kind in dict.fromkeys(kind for kind, _ in found):
            times = [found[kind, size][0] for size in sizes]
            kept = [found[kind, size][1] for size in sizes]
            slope = math.log2(times[-1] / times[-2])
            rows.append([f"{kind}, {axis}", " / ".join(map(str, sizes)),
                         " / ".join(f"{1e3 * t:.0f}" for t in times),
                         " / ".join(f"{b / 2 ** 20:.0f}" for b in kept) if kept[0] else "-",
                         f"{slope:.2f}"])
            lines[f"{kind}, {axis}"] = [(s / sizes[0], t / times[0])
                                        for s, t in zip(sizes, times)]
    print(f"{rounds} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(cli.table(["what grows", "sizes", "ms", "MiB kept", "exponent"], rows))
    if folder:
        lines["linear"] = [(1, 1), (32, 32)]
        plots.curves(lines, "size / smallest size", "time / time of the smallest size",
                     "What a step and a merge cost as things grow",
                     "Both axes are logarithmic; a line as steep as the last one is linear. A step "
                     "hardly depends on the rank; depth, batch and tasks are linear once the size "
                     "outweighs what every step costs anyway.", folder / "growth.png", log=True)
