"""What rules cost on large task vectors.

Time     every round also reads each number of the task vectors once (a sum), for a ratio. Freed
         memory is kept for the next result, as in a loop over settings.
Memory   the most held beside the base, in task vectors, when these come one by one.
Recipes  two rules beside the way they are usually written: TIES on a (T, n) matrix, its threshold
         by sorting or by selection, and the gradient of AdaMerging's coefficients with the merged
         weights inside the graph, built once or anew for every task.
"""

import statistics

import torch
from torch.func import functional_call
from tqdm import tqdm

from bench.turns import conditions, keep_freed_memory, ratio, stop_keeping_freed_memory, turns
from encoders import ViT
from experiment import tables
from experiment.measure import Peak
from experiment.scoring import RULES
from merge import flatten, unflatten
from rules.adamerging import entropy
from rules.coefficients import coefficient_gradient, combine, group_index, weight_gradient


def task_vectors(millions, width=384):
    """(base, make): zeros with the shapes of a ViT of `millions` parameters, and task vector t."""
    block = {f"{n}.weight": (width, width) for n in ("q", "k", "v", "out")}
    block |= {"fc1.weight": (4 * width, width), "fc2.weight": (width, 4 * width)}
    depth = max(1, round(millions * 1e6 / (12 * width ** 2)))
    shapes = {f"blocks.{i}.{k}": shape for i in range(depth) for k, shape in block.items()}

    def make(t):
        generator = torch.Generator().manual_seed(t)
        return {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}

    return {k: torch.zeros(shape) for k, shape in shapes.items()}, make


def sort(size, keep):
    """The `keep`-th largest number of every row, (T, 1), by sorting the rows."""
    return size.sort(1, descending=True).values[:, keep - 1:keep]


def kthvalue(size, keep):
    """The same by selection."""
    return size.kthvalue(size.shape[1] - keep + 1, 1, keepdim=True).values


def ties_by(threshold, base, taus, density=0.2):
    """TIES as it is usually written, on one (T, n) matrix; `threshold` is sort or kthvalue."""
    stack = torch.stack([flatten(tau) for tau in taus])
    trimmed = torch.where(stack.abs() >= threshold(stack.abs(), round(density * stack.shape[1])),
                          stack, 0)
    sign = trimmed.sum(0).sign()
    sign[sign == 0] = 1.0 if sign.sum() >= 0 else -1.0
    agreeing = torch.where(trimmed * sign > 0, trimmed, 0)
    mean = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    return {k: base[k] + v for k, v in unflatten(mean, base).items()}


def rules(names, millions, rounds, count=8):
    """Print seconds of every rule, also against reading, and the task vectors it holds."""
    base, make = task_vectors(millions)
    size, held, rows = sum(v.numel() for v in base.values()), {}, []
    stop_keeping_freed_memory()
    for name in tqdm(names, desc="memory"):
        peaks = []
        for _ in range(3):                   # the least: huge pages add slack, now and then
            with Peak() as peak:
                RULES[name](base, (make(t) for t in range(count)))
            peaks.append(peak.bytes / (4 * size))
        held[name] = f"{min(peaks):.1f}"
    keep_freed_memory()
    taus = [make(t) for t in range(count)]
    contenders = {"reading": lambda: [v.sum() for tau in taus for v in tau.values()]}
    contenders |= {name: lambda f=RULES[name]: f(base, taus) for name in names}
    if "ties" in names:
        contenders |= {f"ties by {f.__name__}": lambda f=f: ties_by(f, base, taus)
                       for f in (sort, kthvalue)}
    seconds = turns(contenders, rounds)
    for name in seconds:
        middle = statistics.median(seconds[name])
        rows.append([name, f"{middle:.3f}", f"{1e9 * middle / size:.1f}",
                     f"{ratio(seconds, name, 'reading'):.2f}", held.get(name, "-")])
    print(f"{count} task vectors of {size / 1e6:.1f} million parameters, {conditions(rounds)}")
    print(tables.table(["rule", "s", "ms / million", "/ reading once", "vectors held"], rows))
    if "ties" in names:
        print("  ".join(f"ties / {name} {ratio(seconds, 'ties', name):.2f}"
                        for name in seconds if name.startswith("ties by")))


def adamerging(millions, rounds, batch, count=8):
    """Print time and memory of one gradient of AdaMerging's coefficients, ours and in the graph.

    batch   images of each of the `count` tasks
    """
    keep_freed_memory()
    torch.manual_seed(0)
    base, make = task_vectors(millions)
    encoder = ViT(width=384, depth=len(base) // 6, heads=6, hidden=1536).requires_grad_(False)
    base = {k: encoder.get_parameter(k) for k in base}
    taus = [{k: 1e-3 * v for k, v in make(t).items()} for t in range(count)]
    images = torch.rand(count, batch, 1, 28, 28)
    index = group_index(base, "tensor")
    lam = torch.full((count, len(base)), 0.3, dtype=torch.float64)
    loss = lambda t, theta: entropy(functional_call(encoder, theta, (images[t],))[:, :10]).mean()

    def ours():
        theta = combine(base, taus, lam, index)
        return coefficient_gradient(weight_gradient(loss, count, theta), taus, index)

    def in_graph(again):
        leaf = lam.float().requires_grad_()
        build = lambda: {k: v + sum(leaf[t, index[k]] * tau[k] for t, tau in enumerate(taus))
                         for k, v in base.items()}
        theta = build()
        sum(loss(t, build() if again else theta) for t in range(count)).backward()
        return leaf.grad

    contenders = {"weights as leaves (ours)": ours, "in the graph": lambda: in_graph(False),
                  "in the graph, per task": lambda: in_graph(True)}
    gradients = [run() for run in contenders.values()]
    difference = max((g - gradients[0]).abs().max().item() for g in gradients)
    seconds, rows = turns(contenders, rounds), []
    stop_keeping_freed_memory()                                  # last: it slows everything down
    for name, run in contenders.items():
        with Peak() as peak:
            run()
        rows.append([name, f"{statistics.median(seconds[name]):.2f}",
                     f"{ratio(seconds, name, 'in the graph'):.2f}", f"{peak.bytes / 2 ** 20:.0f}"])
    size = sum(v.numel() for v in base.values())
    print(f"coefficients of {count} task vectors of {size / 1e6:.1f} million parameters, {batch} "
          f"images a task, {conditions(rounds)}; the gradients differ by at most {difference:.0e}")
    print(tables.table(["dL/dlam", "s", "/ in the graph", "MiB"], rows))
