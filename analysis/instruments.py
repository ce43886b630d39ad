"""What merging does to a group of runs: the instruments behind `eval.py --analyze`.

Each takes an `Analysis`, prints a table and returns plain numbers for the JSON file; with a folder
it also draws a figure. The mathematics is in measures.py and corruptions.py. Most instruments look
at theta_0 + sum_t c_t tau_t for many coefficients c (T,), which `scoring.Mixture` makes cheap for a
model linearized as a whole.

Here: the geometry of the task vectors and how two of them interfere; the rest is in protocols.py.
"""

import statistics
from functools import partial

import torch
import torch.nn.functional as F

import merge
from analysis import measures, plots
from encoders.heads import correct
from errors import BadInput
from experiment import tables
from experiment.scoring import RULES, Mixture, along

INSTRUMENTS = {}


def instrument(function):
    """Decorator: the function's name is the word on the command line."""
    INSTRUMENTS[function.__name__] = function
    return function


class Analysis:
    """A group of runs, ready to be looked at.

    space    spaces.Space;  tasks   scoring.Tasks;  method   the group's name; title  in words
    lam      coefficient of task arithmetic where one is needed (chosen on val by `analyze`)
    examples inputs per task, the first of each split;  folder   for figures, or None
    """

    def __init__(self, space, tasks, method, lam, examples=200, folder=None):
        self.space, self.tasks, self.method, self.lam = space, tasks, method, lam
        self.names, self.examples, self.folder = tasks.order, examples, folder
        self.title = plots.words(method)
        if len(set(self.names)) < len(self.names):
            raise BadInput("--analyze needs runs on different tasks: give one run per task")
        self.mixture = Mixture(space, len(self.names), self.at, {})

    def sample(self, task, split):
        inputs, labels = self.tasks.data(split, task)
        return inputs[:self.examples], labels[:self.examples]

    def only(self, members, value=1.0):
        """Coefficients c: value for the tasks in `members`, else 0."""
        return [value if name in members else 0.0 for name in self.names]

    def at(self, c):
        """theta_0 + sum_t c_t tau_t."""
        return merge.task_arithmetic(self.space.base, self.space.taus, lam=1.0,
                                     coefficients=[float(v) for v in c])

    def features(self, c, task, split, mixture=None):
        """Features (n, D) of the inputs of a task at coefficients c, of all runs or a mixture."""
        inputs, _ = self.sample(task, split)
        return (mixture or self.mixture).features(c, (task, split), inputs)

    def score(self, c, task, split, mixture=None):
        """Accuracy on a task at coefficients c."""
        return correct(self.tasks.heads[task], self.features(c, task, split, mixture),
                       self.sample(task, split)[1])

    def path(self, name):
        return self.folder / f"{self.method.replace(' ', '-')}-{name}.png"


class Subset:
    """The runs `members` of an Analysis, merged by a rule. The average and task arithmetic are
    coefficients of the whole group; any other rule runs once, at lam = 1, and is scaled."""

    def __init__(self, a, rule, members):
        self.a, self.rule, self.members, self.line = a, rule, members, None
        self.merged = None
        if rule in ("average", "task_arithmetic"):
            return
        chosen = lambda values: [values[a.names.index(name)] for name in members]
        material = {k: v if callable(v) else chosen(v)
                    for k, v in a.tasks.material(a.space, merge.needs(rule)).items()}
        scale = {"lam": 1.0} if "lam" in merge.options(rule) else {}
        self.merged = RULES[rule](a.space.base, chosen(a.space.taus), **material, **scale)
        self.line = Mixture(a.space, 1, lambda c: along(a.space.base, self.merged, c[0]),
                            a.mixture.at_base)

    def score(self, lam, task, split):
        """Accuracy on a task at the coefficient lam, which the average does not have."""
        if self.line:
            return self.a.score([lam], task, split, self.line)
        value = 1 / len(self.members) if self.rule == "average" else lam
        return self.a.score(self.a.only(self.members, value), task, split)


@instrument
def cosine(a):
    """Cosine similarity of the task vectors, pairwise."""
    c = measures.cosines(a.space.taus)
    off = c[~torch.eye(len(c), dtype=torch.bool)]
    print(tables.table(["cosine", *a.names], [[n, *row] for n, row in zip(a.names, c.tolist())]))
    print(f"off the diagonal: mean {off.mean():.3f}, {off.min():.3f} to {off.max():.3f}")
    if a.folder:
        plots.matrix(c, a.names, f"Cosine similarity of task vectors, {a.title}",
                     f"The mean off the diagonal is {off.mean():.3f}. Near 0, the tasks move the "
                     "weights in unrelated directions.", a.path("cosine"), -0.2, 1.0)
    return {"cosine": c.tolist(), "mean": off.mean().item()}


@instrument
def distance(a):
    """L2 distances between the fine-tuned models, and where the change sits by layer."""
    d = measures.distances([merge.add(a.space.base, tau) for tau in a.space.taus])
    print(tables.table(["L2", *a.names], [[n, *row] for n, row in zip(a.names, d.tolist())]))
    norms = [measures.norms_by_layer(tau) for tau in a.space.taus]
    print(tables.table(["norm", *norms[0]], [[n, *v.values()] for n, v in zip(a.names, norms)]))
    return {"distances": d.tolist(), "norms": dict(zip(a.names, norms))}


@instrument
def pca(a):
    """Principal components of the task vectors."""
    scores, share = measures.pca(a.space.taus, components=min(2, len(a.names)))
    axes = [f"component {i + 1} ({s:.0%} of the variance)" for i, s in enumerate(share.tolist())]
    print(tables.table(["PCA", *axes], [[n, *row] for n, row in zip(a.names, scores.tolist())]))
    if a.folder and len(axes) == 2:
        plots.points(scores.tolist(), a.names, axes, f"Task vectors, {a.title}",
                     "In units of the weights. Of unrelated vectors of one length, each component "
                     f"explains 1/(T - 1) = {1 / (len(a.names) - 1):.0%}.", a.path("pca"))
    return {"scores": scores.tolist(), "share": share.tolist()}


@instrument
def spectrum(a, at=(1, 2, 4, 8, 16, 32, 64, 128)):
    """Share of the task vectors, and of their sum, in the first k singular directions."""
    each = [measures.energy(tau).tolist() for tau in a.space.taus]
    whole = measures.energy(merge.total(a.space.taus)).tolist()
    found = {"single": dict(zip(a.names, each)), "sum": whole}
    at = [k for k in at if k <= min(map(len, [*each, whole]))]
    if not at:
        print("a task vector has no matrix, or moved none: nothing to decompose")
        return found
    rows = [[n, *(e[k - 1] for k in at)] for n, e in zip([*a.names, "sum"], [*each, whole])]
    print(tables.table(["first k directions", *map(str, at)], rows))
    if a.folder:
        single = [(k, statistics.fmean(v), min(v), max(v))
                  for k, v in ((k, [e[k - 1] for e in each]) for k in at)]
        plots.curves({"single tasks": single, "their sum": [(k, whole[k - 1]) for k in at]},
                     "first k singular directions", "share of the squared length",
                     f"Singular values of task vectors, {a.title}",
                     "Mean over matrices; bars from the lowest task to the highest. A low curve "
                     "spreads over many directions.", a.path("spectrum"))
    return found


def coordinates(a, names):
    """The first tasks as a problem in their coefficients, dicts {"c": c}: base, taus and, for each
    task, a function params -> its logits on test."""
    def logits_of(task, params):
        c = [*params["c"].tolist(), *[0.0] * (len(a.names) - len(names))]
        return a.tasks.heads[task](a.features(c, task, "test")).cpu()

    logits = [partial(logits_of, task) for task in names]
    return {"c": torch.zeros(len(names))}, [{"c": e} for e in torch.eye(len(names))], logits


@instrument
def disentangle(a, lams=tuple(i / 4 for i in range(-4, 9))):
    """Weight disentanglement error of the first two runs over a grid of coefficients."""
    pair = a.names[:2]
    base, taus, logits = coordinates(a, pair)
    xi = measures.disentanglement(base, *taus, logits, lams)
    inside = [i for i, lam in enumerate(lams) if 0 <= lam <= 1]
    box = xi[inside][:, inside]
    print(f"disentanglement error of {pair[0]} and {pair[1]}: {box.mean():.3f} in the mean over "
          f"[0, 1]^2, {xi.mean():.3f} over [{lams[0]:g}, {lams[-1]:g}]^2 (0 to 2)")
    if a.folder:
        plots.planes({a.title: xi.numpy()}, lams, pair, "Weight disentanglement error",
                     "Share of test inputs whose class the other task vector changes, of both "
                     f"tasks (0 to 2; in [0, 1]^2 {box.mean():.3f}). Light: each vector acts on "
                     "its own task only.", a.path("disentangle"), 0, 1.5)
    return {"lams": lams, "pair": pair, "xi": xi.tolist(), "box": box.mean().item()}


@instrument
def landscape(a, lams=tuple(i / 8 for i in range(-4, 13))):
    """Sum of the two tasks' losses over the plane of the first two task vectors."""
    pair = a.names[:2]
    base, taus, logits = coordinates(a, pair)
    losses = [lambda p, f=f, task=task: F.cross_entropy(f(p), a.sample(task, "test")[1])
              for f, task in zip(logits, pair)]
    L = measures.landscape(base, *taus, losses, lams)
    i, j = divmod(int(L.argmin()), len(lams))
    print(f"loss of {pair[0]} + {pair[1]}: least {L.min():.3f} at ({lams[i]:g}, {lams[j]:g}), "
          f"{L[lams.index(1.0), lams.index(1.0)]:.3f} at (1, 1)")
    if a.folder:
        plots.planes({a.title: L.numpy()}, lams, pair, "Loss of two tasks",
                     f"Sum of both test losses, least at ({lams[i]:g}, {lams[j]:g}). Where (1, 1) "
                     "is light too, the two task vectors can simply be added.",
                     a.path("landscape"), high=3 * L.min().item())
    return {"lams": lams, "pair": pair, "loss": L.tolist()}


@instrument
def entropy(a, lams=(0, 0.1, 0.2, 0.3, 0.5, 0.75, 1)):
    """Does entropy rank merged models as the loss does? Spearman over models, per task."""
    base, taus, logits = coordinates(a, a.names)
    labels = [a.sample(task, "test")[1] for task in a.names]
    H, L, rho = measures.entropy_and_loss(base, taus, logits, labels, lams)
    print(tables.table(["Spearman of entropy and loss", *a.names], [["over lam", *rho.tolist()]]))
    if a.folder:
        plots.curves({n: sorted(zip(H[:, t].tolist(), L[:, t].tolist()))
                      for t, n in enumerate(a.names)}, "mean entropy (nats)",
                     "mean cross entropy (nats)", f"Entropy and loss of merged models, {a.title}",
                     f"A point is theta_0 + lam sum tau, lam in {list(lams)}. Where a line rises, "
                     "less entropy, which AdaMerging seeks, is less loss.", a.path("entropy"))
    return {"lams": lams, "entropy": H.tolist(), "loss": L.tolist(), "spearman": rho.tolist()}
