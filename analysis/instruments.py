"""What merging does to a group of runs: the instruments behind `eval.py --analyze`.

Each takes an `Analysis`, prints a table and returns plain numbers for the JSON file; with a folder
it also draws a figure. The mathematics is in measures.py and corruptions.py.

Here: the geometry of the task vectors and how two of them interfere; in protocols.py: what papers
measure over many merged models. Most look at theta_0 + sum_t c_t tau_t for many coefficients c
(T,); `scoring.Mixture` says why that takes T + 1 passes over the inputs for a model linearized as a
whole.
"""

import torch
import torch.nn.functional as F

import merge
from analysis import measures, plots
from encoders.heads import correct
from errors import BadInput
from experiment import cli
from experiment.scoring import RULES, Mixture, along

INSTRUMENTS = {}


def instrument(function):
    """Decorator: the function's name is the word on the command line."""
    INSTRUMENTS[function.__name__] = function
    return function


class Analysis:
    """A group of runs, ready to be looked at.

    space    spaces.Space;  tasks   scoring.Tasks;  method   adapter and reading, for titles
    lam      coefficient of task arithmetic where one is needed (chosen on val by `analyze`)
    examples inputs per task, the first of each split;  folder   for figures, or None
    """

    def __init__(self, space, tasks, method, lam, examples=200, folder=None):
        self.space, self.tasks, self.method, self.lam = space, tasks, method, lam
        self.names, self.examples, self.folder = tasks.order, examples, folder
        if len(set(self.names)) < len(self.names):
            raise BadInput("--analyze needs runs on different tasks: give one run per task")
        self.mixture = Mixture(space, len(self.names), self.at, {})

    def sample(self, task, split):
        inputs, labels = self.tasks.data(split, task)
        return inputs[:self.examples], labels[:self.examples]

    def only(self, members, value=1.0):
        """Coefficients: value for the tasks in `members`, else 0."""
        return [value if name in members else 0.0 for name in self.names]

    def at(self, c):
        """theta_0 + sum_t c_t tau_t."""
        return merge.task_arithmetic(self.space.base, self.space.taus, lam=1.0,
                                     coefficients=[float(v) for v in c])

    def features(self, c, task, split):
        """Features (n, D) of the inputs of a task at coefficients c."""
        return self.mixture.features(c, (task, split), self.sample(task, split)[0])

    def score(self, c, task, split):
        """Accuracy on a task at coefficients c."""
        return correct(self.tasks.heads[task], self.features(c, task, split),
                       self.sample(task, split)[1])

    @torch.no_grad()
    def logits(self, c, task, split):
        """Logits (n, K) of the inputs of a task at coefficients c."""
        return self.tasks.heads[task](self.features(c, task, split))

    def path(self, name):
        return self.folder / f"{self.method}-{name}.png"


class Subset:
    """The runs `members` of an Analysis, merged by a rule of RULES.

    The coefficients of the average and of task arithmetic do not depend on weights: they take the
    short way of the whole group. Other rules run once, at lam = 1.
    """

    def __init__(self, a, rule, members):
        self.a, self.rule, self.members, self.line = a, rule, members, None
        if rule in ("average", "task_arithmetic"):
            return
        at = [a.names.index(name) for name in members]
        material = a.tasks.material(a.space, merge.needs(rule))
        material = {k: v if callable(v) else [v[i] for i in at] for k, v in material.items()}
        scale = {"lam": 1.0} if "lam" in merge.options(rule) else {}
        one = RULES[rule](a.space.base, [a.space.taus[i] for i in at], **material, **scale)
        self.line = Mixture(a.space, 1, lambda c: along(a.space.base, one, c[0]), a.mixture.at_base)

    def score(self, lam, task, split):
        """Accuracy on a task at the coefficient lam, which the average does not have."""
        if self.line is None:
            value = 1 / len(self.members) if self.rule == "average" else lam
            return self.a.score(self.a.only(self.members, value), task, split)
        inputs, labels = self.a.sample(task, split)
        return correct(self.a.tasks.heads[task],
                       self.line.features([lam], (task, split), inputs), labels)


# ---- geometry ------------------------------------------------------------------------------------


@instrument
def cosine(a):
    """Cosine similarity of the task vectors, pairwise."""
    c = measures.cosines(a.space.taus)
    off = c[~torch.eye(len(c), dtype=torch.bool)]
    print(cli.table(["cosine", *a.names], [[n, *row] for n, row in zip(a.names, c.tolist())]))
    print(f"off the diagonal: mean {off.mean():.3f}, {off.min():.3f} to {off.max():.3f}")
    if a.folder:
        plots.matrix(c, a.names, f"Cosine similarity of task vectors, {a.method}",
                     f"A cell compares two task vectors; off the diagonal {off.mean():.3f} on "
                     "average. Near 0, the tasks move the weights in unrelated directions.",
                     a.path("cosine"), -0.2, 1.0)
    return {"cosine": c.tolist(), "mean": off.mean().item()}


@instrument
def distance(a):
    """L2 distances between the fine-tuned models, and where the change sits by layer."""
    d = measures.distances([merge.add(a.space.base, tau) for tau in a.space.taus])
    print(cli.table(["L2", *a.names], [[n, *row] for n, row in zip(a.names, d.tolist())]))
    norms = [measures.norms_by_layer(tau) for tau in a.space.taus]
    print(cli.table(["norm", *norms[0]], [[n, *v.values()] for n, v in zip(a.names, norms)]))
    return {"distances": d.tolist(), "norms": dict(zip(a.names, norms))}


@instrument
def pca(a):
    """Principal components of the task vectors."""
    scores, share = measures.pca(a.space.taus, components=min(2, len(a.names)))
    axes = [f"component {i + 1} ({s:.0%} of the variance)" for i, s in enumerate(share.tolist())]
    print(cli.table(["PCA", *axes], [[n, *row] for n, row in zip(a.names, scores.tolist())]))
    if a.folder and len(axes) == 2:
        plots.points(scores.tolist(), a.names, axes,
                     f"Task vectors, {a.method}", "Task vectors on their first two principal "
                     "components, in units of the weights. With T unrelated vectors of one length "
                     f"each component explains 1/(T - 1) = {1 / (len(a.names) - 1):.0%}.",
                     a.path("pca"))
    return {"scores": scores.tolist(), "share": share.tolist()}


# ---- interference --------------------------------------------------------------------------------


def coordinates(a):
    """Two task vectors as a two-dimensional problem: base, tau_a, tau_b and the two tasks."""
    zero, eye = {"c": torch.zeros(2)}, torch.eye(2)
    pair = a.names[:2]
    spread = lambda c: [*c.tolist(), *[0.0] * (len(a.names) - 2)]
    logits = [lambda p, x, task=task: a.logits(spread(p["c"]), task, "test") for task in pair]
    return zero, {"c": eye[0]}, {"c": eye[1]}, pair, logits


@instrument
def disentangle(a, lams=tuple(i / 4 for i in range(-4, 9))):
    """Weight disentanglement error of the first two runs over a grid of coefficients."""
    base, one, two, pair, logits = coordinates(a)
    xi = measures.disentanglement(base, one, two, logits, [torch.zeros(1)] * 2, lams)
    inside = [i for i, lam in enumerate(lams) if 0 <= lam <= 1]
    box = xi[inside][:, inside]
    print(f"disentanglement error of {pair[0]} and {pair[1]}: {box.mean():.3f} in the mean over "
          f"[0, 1]^2, {xi.mean():.3f} over [{lams[0]:g}, {lams[-1]:g}]^2 (0 to 2)")
    if a.folder:
        plots.plane(xi, lams, pair, f"Weight disentanglement error, {a.method}",
                    "Share of test inputs whose class the other task vector changes, summed over "
                    f"the two tasks (0 to 2; mean over [0, 1]^2: {box.mean():.3f}). Light is good: "
                    "each task vector acts on its own task only.", a.path("disentangle"), 0, 1.5)
    return {"lams": lams, "pair": pair, "xi": xi.tolist(), "box": box.mean().item()}


@instrument
def landscape(a, lams=tuple(i / 8 for i in range(-4, 13))):
    """Sum of the two tasks' losses over the plane of the first two task vectors."""
    base, one, two, pair, logits = coordinates(a)
    losses = [lambda p, f=f, task=task: F.cross_entropy(f(p, None).cpu(), a.sample(task, "test")[1])
              for f, task in zip(logits, pair)]
    L = measures.landscape(base, one, two, losses, lams)
    i, j = divmod(int(L.argmin()), len(lams))
    print(f"loss of {pair[0]} + {pair[1]}: least {L.min():.3f} at ({lams[i]:g}, {lams[j]:g}), "
          f"{L[lams.index(1.0), lams.index(1.0)]:.3f} at (1, 1)")
    if a.folder:
        plots.plane(L, lams, pair, f"Loss of two tasks, {a.method}",
                    "Cross entropy of both tasks on test, added. The least is at "
                    f"({lams[i]:g}, {lams[j]:g}); a wide light basin around (1, 1) means that the "
                    "two task vectors can simply be added.", a.path("landscape"),
                    high=3 * L.min().item())
    return {"lams": lams, "pair": pair, "loss": L.tolist()}


@instrument
def entropy(a, lams=(0, 0.1, 0.2, 0.3, 0.5, 0.75, 1)):
    """Does entropy rank merged models as the loss does? Spearman over models, per task."""
    zero, ones = {"c": torch.zeros(len(a.names))}, torch.eye(len(a.names))
    functions = [lambda p, x, task=task: a.logits(p["c"], task, "test").cpu() for task in a.names]
    labelled = [(None, a.sample(task, "test")[1]) for task in a.names]
    H, L, rho = measures.entropy_and_loss(zero, [{"c": one} for one in ones], functions, labelled,
                                          lams).values()
    print(cli.table(["Spearman of entropy and loss", *a.names], [["over lam", *rho.tolist()]]))
    if a.folder:
        plots.curves({n: sorted(zip(H[:, t].tolist(), L[:, t].tolist()))
                      for t, n in enumerate(a.names)}, "mean entropy (nats)",
                     "mean cross entropy (nats)", f"Entropy and loss of merged models, {a.method}",
                     f"A point is theta_0 + lam sum tau for lam in {list(lams)}. AdaMerging lowers "
                     "the entropy and hopes for the loss: it may where the lines rise.",
                     a.path("entropy"))
    return {"lams": lams, "entropy": H.tolist(), "loss": L.tolist(), "spearman": rho.tolist()}
