"""The course grades right: full marks for the project's own modules, none for blank files, and of
one wrong token a hint that names it.

A solved stage is the text of a module of the project, or of two, and some lines that call it by the
names of the stage. A wrong one is the same text with one token replaced.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "exercises"
STAGES = sorted(path.stem for path in COURSE.glob("stage*.py"))

MODULES = {"stage01_lora": ["lora.py"],
           "stage02_pissa_dora": ["adapters/pissa.py", "adapters/dora.py"],
           "stage03_taylor": ["linearize.py"],
           "stage04_arithmetic": ["rules/arithmetic.py", "analysis/measures.py", "merge.py"],
           "stage05_ties": ["merge.py"],
           "stage06_fisher": ["rules/fisher.py", "rules/coefficients.py"],
           "stage07_adamerging": ["rules/adamerging.py", "rules/coefficients.py"],
           "stage08_simplex": ["rules/fitted.py"],
           "stage09_own": [],                                 # the README's adapter and rule
           "stage10_study": ["exercises/stage10_study.py"]}

LAYER = """
def layer(cls, W, b=None, **hp):
    base = torch.nn.Linear(W.shape[1], W.shape[0], b is not None, dtype=W.dtype)
    base.weight.data = W.detach()
    if b is not None:
        base.bias.data = b.detach()
    return cls(base, **hp)
def put(made, **tensors):
    for name, value in tensors.items():
        getattr(made, name).data = value.detach()
    return made.requires_grad_(False)
"""

CALLS = {"stage01_lora": LAYER + """
def start(W0, rank, generator):
    made = layer(LoRA, W0, rank=rank, generator=generator)
    return made.A.data, made.B.data
def adapter(W0, b, A, B, alpha):
    return put(layer(LoRA, W0, b, rank=len(A), alpha=alpha), A=A, B=B)
def forward(x, *tensors):
    return adapter(*tensors)(x)
def merge(W0, *rest):
    return W0 + adapter(W0, None, *rest).delta_weight()
def unmerge(W0, *rest):
    return W0 - adapter(W0, None, *rest).delta_weight()
def trained(in_features, out_features, rank):
    return layer(LoRA, torch.zeros(out_features, in_features), rank=rank).trainable_count()
""", "stage02_pissa_dora": "import torch\nfrom linearize import method\n" + LAYER + """
def pissa_start(W0, rank, s):
    made = layer(PiSSA, W0, rank=rank, alpha=s * rank)
    return made.A0, made.B0
def pissa_delta(A, B, A0, B0, s):
    made = layer(PiSSA, B0 @ A0, rank=len(A), alpha=s * len(A))
    return put(made, A=A, B=B, A0=A0, B0=B0).delta_weight()
def dora_start(W0):
    return layer(DoRA, W0, rank=1).m.data
def dora_weight(W0, m, A, B, s):
    made = layer(DoRA, W0, rank=len(A), alpha=s * len(A))
    return W0 + method(made, "delta_weight")({"m": m, "A": A, "B": B})
""", "stage03_taylor": """
from functools import reduce
from merge import add
def whole(layers, p0, p, x):
    return taylor(lambda q: reduce(lambda h, layer: layer(q, h), layers, x), p0, p)
def layer_by_layer(layers, p0, p, x):
    return reduce(lambda h, layer: taylor(lambda q: layer(q, h), p0, p), layers, x)
def gap(f, p0, t1, t2):
    change = lambda *taus: f(reduce(add, taus, p0)) - f(p0)
    return change(t1, t2) - change(t1) - change(t2)
""", "stage04_arithmetic": """
def task_vector(base, finetuned):
    return add(finetuned, base, lam=-1)
def forget(base, tau, *, lam=1.0):
    return negation(base, [tau], lam=lam)
def cosine(a, b):
    return cosines([a, b])[0, 1]
""", "stage05_ties": """
mean = disjoint_mean
def disjoint_mean(taus, signs):
    return {k: mean([agreeing(tau[k], signs[k]) for tau in taus]) for k in signs}
""", "stage06_fisher": """
true_fisher = diagonal_fisher
def empirical_fisher(logits, params, x, y):
    nll = lambda i, p: torch.nn.functional.cross_entropy(logits(p, x[i:i + 1]), y[i:i + 1])
    single = [weight_gradient(lambda _, p: nll(i, p), 1, params) for i in range(len(x))]
    return {k: sum(g[k].square() for g in single) / len(x) for k in params}
def log_trace(fisher):
    return merge.flatten(fisher).sum().log()
""", "stage07_adamerging": """
step = descend
def merged(base, taus, lam):
    return combine(base, taus, lam[:, None], group_index(base, "task"))
def gradient(loss, base, taus, lam):
    g = weight_gradient(lambda _, theta: loss(theta), 1, merged(base, taus, lam))
    return coefficient_gradient(g, taus, group_index(base, "task"))[:, 0].to(lam)
def descend(loss, base, taus, lam, *, lr, steps):
    lam, share = lam[:, None].detach().clone(), lambda t, theta: loss(theta) / len(taus)
    update = lambda g: lam.sub_(lr * g).clamp_(0, 1)
    return step(base, taus, share, lam, group_index(base, "task"), update, steps)[:, 0]
""", "stage08_simplex": """
project = project_simplex
def search(gradient, tasks, *, lr, steps):
    lam = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
    for _ in range(steps):
        lam = project(lam - lr * gradient(lam))
    return lam
""", "stage09_own": "", "stage10_study": """
import functools
@functools.cache
def study():
    heads, taus = zip(*map(finetune, TASKS))
    model, tests = encoders.load("vit"), [data.load(task, "test", limit=IMAGES) for task in TASKS]
    base = {k: model.get_parameter(k).detach().clone() for k in taus[0]}
    numbers = {}
    for name in ("pretrained", *RULES):
        weights = base if name == "pretrained" else merge.RULES[name](base, list(taus))
        model.load_state_dict(weights, strict=False)
        numbers[name] = sum(accuracy(model, h, *xy) for h, xy in zip(heads, tests)) / len(tests)
    return numbers
NUMBERS = study()
ANSWER = f"{max(RULES, key=NUMBERS.get)} comes first, by less than the standard error."
"""}

TURNS = 8
ERRORS = {              # stage: (what stands in it, the mistake, the hint); turn i takes [i::TURNS]
    "stage01_lora": [
        ("plus(y, self.scale, u, self.B)", "plus(y, -self.scale, u, self.B)", "forward: the sign"),
        ("self.scale = alpha / rank", "self.scale = alpha", "yours is alpha$"),
        ("return W0 - adapter", "return W0 + adapter", "unmerge: the sign"),
        ("generator=generator) * 2 - 1", "generator=generator) * 2", "entries of A have one sign"),
        ("weight.new_zeros(out_features", "weight.new_ones(out_features", "B is not zero"),
        ("rank=rank).trainable_count()", "rank=rank).trainable_count() / 1", "an int, not 18.0"),
        ("return W0 - adapter(W0, None, *rest).delta_weight()",
         "return W0.sub_(adapter(W0, None, *rest).delta_weight())", "unmerge changes W0")],
    "stage02_pissa_dora": [
        ("(S / self.scale).sqrt()", "S.sqrt()", "S_r is not divided by s"),
        ("self.B @ self.A - self.B0", "self.B @ self.A + self.B0", "the sign of s B0 A0 is wrong"),
        ("self.square.sqrt())", "self.square)", "dora_start: the root is missing"),
        ("self.square + 2 * s * cross + s * s * own", "self.square", "of V, not of W0"),
        ("detach=True", "detach=False", "it goes through n, detach n"),
        ("t[..., :rank]", "t[..., -rank:]", "the smallest singular values"),
        ("(S / self.scale).sqrt()", "(self.scale / S).sqrt()", "yours is s / S_r"),
        ("(S / self.scale).sqrt()", "(S / S).sqrt()", "has s, the argument, become")],
    "stage03_taylor": [
        ("return value + tangent", "return value - tangent", "the sign of p - p0 is wrong"),
        ("t2) - change(t1)", "t2) + change(t1)", "the sign of the first part is wrong"),
        ("return value + tangent", "return tangent", r"the value f\(p0\) is missing"),
        ("jvp(f, (p0,)", "jvp(f, (p,)", "value and Jacobian are taken at p"),
        ("f(reduce(add, taus, p0)) - f(p0)", "f(reduce(add, taus, p0))", r"f\(p0\) is forgotten"),
        ("layers, x), p0, p)", "layers, x), p0, p0)", "this is the network at p0")],
    "stage04_arithmetic": [
        ("(finetuned, base, lam=-1)", "(finetuned, base, lam=1)", "task_vector: this is a sum"),
        ("taus, [1 / len(taus)]", "taus, [1]", "average: this is the sum, divide by T"),
        ("[lam * float(v) for", "[-lam * float(v) for", "arithmetic: the sign is wrong"),
        ("taus, lam=-lam)", "taus, lam=lam)", "forget: the sign is wrong"),
        ("out[k] = torch.add(v, ", "out[k] = v.add_(", "average changes base"),
        ("(gram / torch.outer", "(-gram / torch.outer", "cosine: the sign"),
        ("lam=0.3, coeff", "lam=0.4, coeff", "arithmetic: lam = 0.3 by default: right shape"),
        ("tau, *, lam=1.0", "tau, *, lam=0.9", "forget: lam = 1 by default: right shape")],
    "stage05_ties": [
        ("{k: v.sign() for", "{k: -v.sign() for", "elect: the sign is wrong"),
        ("values * sign > 0", "values * sign < 0", "the entries that oppose the sign"),
        ("[trim(tau, density) for", "[trim(tau, 1.0) for", "ties: nothing is trimmed"),
        ("sum(v != 0 for v in values).clamp(min=1)", "len(values)", "it is divided by T"),
        ("largest(flat.abs()", "largest(flat", "the sign counts"),
        ("torch.where(values * sign > 0, values, 0)", "values.mul_(values * sign > 0)",
         "disjoint_mean changes taus"),
        ("density=0.2, agg", "density=0.3, agg", "ties: density = 0.2 and lam = 1 by default"),
        (">= 0 else -1.0", "<= 0 else -1.0", "yours is the opposite"),
        (".clamp(min=1)", "", "disjoint_mean has NaN"),
        ("== 0, majority, sign", "== 0, 1.0 if sign.sum() >= 0 else -1.0, sign", "one majority"),
        ("sign.sum() for sign in signs", "v.sum() for v in total(taus)", "yours is the opposite"),
        ("round(density * len(flat))", "int(density * len(flat))", r"\(0.7 \* 5\) is 4 .* keep 3")],
    "stage06_fisher": [
        ("J[k].square())", "J[k])", "the square comes before the mean over the classes"),
        (".sum().log()", ".sum().log().neg()", "log_trace: the sign"),
        ("sum(g[k].square()", "sum(-g[k]", "empirical_fisher.*the square is missing$"),
        ("logp.exp(), J", "logp, J", r"it is p\(c\|x\)"),
        (".sum().log()", ".log().sum()", "log_trace: logs are added up"),
        ("v / len(x)", "v", "true_fisher.*: it is the sum over the examples"),
        ("v / len(x)", "v / len(x) / logp.shape[1]", "it is divided by n C"),
        ("logp.exp(), J", "logp.exp().square(), J", r"p\(c\|x\) is squared"),
        ("merge.flatten(fisher).sum().log()", "sum(v.sum().log() for v in fisher.values())",
         "log_trace: logs of tensors are added up"),
        ("logp.exp(), J", "logp.exp().round(), J", "one class alone counts")],
    "stage07_adamerging": [
        ("return -(logp.exp()", "return (logp.exp()", "entropy: the sign"),
        ("out[t, index[k]] += ", "out[t, index[k]] -= ", r"dL/dlam_t is \+ <dL/dtheta, tau_t>"),
        ("alpha=row[", "alpha=-row[", "merged: the sign"),
        ("sub_(lr * g)", "add_(lr * g)", "descend: the sign is wrong, it climbs"),
        ("lr * g).clamp_(0, 1)", "lr * g).clamp_(0)", "lam is above 1"),
        ("1, merged(base, taus, lam))", "1, base)", "taken at theta_0"),
        ("[:, 0].to(lam)", "[:, 0]", "gradient is torch.float64 for a lam of torch.float32"),
        ("merged(base, taus, lam))", "merged({k: v.requires_grad_() for k, v in base.items()}, "
         "taus, lam))", "gradient changes base"),
        (".clamp_(0, 1)\n    return step(base, taus, share, lam,", "\n    return (lambda *a: "
         "step(*a).clamp(0, 1))(base, taus, share, lam,", "clipped after the last step alone"),
        ("logp).sum(-1)", "logp).mean(-1)", "the mean over the classes"),
        ("logp).sum(-1)", "logp).sum(-1).detach()", "entropy: its gradient: it is zero, detach"),
        ("return combine(base, taus, lam[:, None], group_index(base, \"task\"))",
         "return {k: v + sum(c * tau[k] for c, tau in zip(lam, taus)) for k, v in base.items()}",
         "merged: it has a graph, detach lam")],
    "stage08_simplex": [
        ("lam - lr * gradient", "lam + lr * gradient", "search, one step: the sign"),
        ("(v - excess", "(v + excess", "the sign of the shift"),
        ("/ rho).clamp(min=0)", "/ rho)", r"take max\(., 0\)"),
        ("project(lam - lr * gradient(lam))", "lam - lr * gradient(lam)", "is not projected"),
        ("excess).sum(0, keepdim=True)", "excess).sum(0, keepdim=True) - 1", "yours is 1"),
        ("gather(0, rho - 1) / rho", "gather(0, rho - 1) / (rho - 1)", "rho counts from 1"),
        ("1 / tasks, dtype=torch.float64", "1 / tasks", "search must return float64")],
    "stage09_own": [
        (".values for k in base}, lam)", ".values for k in base}, -lam)", "one task.*: the sign"),
        ("new_zeros(())", "new_ones(())", "W_eff is not W0 at the start"),
        ("return 1", "return 2", "trainable_count: it says 2, 1 numbers are trained"),
        (".median(0).values", ".mean(0)", "is average or task arithmetic"),
        ("@register", "", "no class has @lora.register"),
        ("in base}, lam)", "in base}, 1)", "lam is not used")],
    "stage10_study": [
        ("max(RULES", "min(RULES", "ANSWER names .* first, but"),
        ("def finetune(task):", "def finetune(task)", "SyntaxError: expected ':'")]}


def solved(stage):
    """The text of a stage file that solves it."""
    if stage == "stage09_own":
        fork = (ROOT / "README.md").read_text().partition("## Fork it")[2]
        return "".join(re.findall(r"^```python\n(.*?)^```", fork, flags=re.M | re.S))
    return "".join((ROOT / name).read_text() for name in MODULES[stage]) + CALLS[stage]


def graded(folder, graders=("exercises",)):
    """{stage number: (points, of, hints)} of the files in a folder, and the printed total."""
    done = subprocess.run([sys.executable, "-m", "pytest", *graders, "--solutions", folder],
                          cwd=ROOT, capture_output=True, text=True)
    parts = re.findall(r"^stage (\d+): (\d+) of (\d+)\n((?:    .*\n)*)", done.stdout, re.M)
    assert parts and done.stdout.count("total: ") == 1, done.stdout + done.stderr
    return ({int(n): (int(a), int(b), hints) for n, a, b, hints in parts},
            re.search(r"^total: (.*)$", done.stdout, re.M)[1])


def number(stage):
    return int(stage[5:7])


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The grades of the solved stages, in a copy of the whole course."""
    folder = shutil.copytree(COURSE, tmp_path_factory.mktemp("solved") / "exercises")
    for stage in STAGES:
        (folder / f"{stage}.py").write_text(solved(stage))
    return graded(folder)


def test_full_marks(full):
    grades, total = full
    assert [n for n, (got, of, hints) in grades.items() if got < of or hints] == [], grades
    assert sorted(grades) == [number(stage) for stage in STAGES]
    points = sum(of for _, of, _ in grades.values())
    assert total == f"{points} of {points}"


def test_the_readme_tells_the_points(full):
    rows = re.findall(r"^\| (\d+) \|.*\| (\d+) \|$", (COURSE / "README.md").read_text(), re.M)
    assert [(int(n), int(of)) for n, of in rows] == [(n, of) for n, (_, of, _) in full[0].items()]


def test_blank_files_get_nothing(full, tmp_path):
    """And say so in short lines. An empty folder: what it lacks counts as blank."""
    grades, total = graded(tmp_path)
    assert total == "0 of " + full[1].split()[-1]
    for n, (got, of, hints) in grades.items():
        assert got == 0 and of == full[0][n][1] and len(hints.splitlines()) <= of, hints
        assert "stage" in hints and max(map(len, hints.splitlines())) < 100


@pytest.mark.parametrize("turn", range(TURNS))
def test_a_wrong_token_is_named(turn, tmp_path):
    """Two of one stage stand in functions of which neither hides the other's mistake."""
    wrong = {stage: errors[turn::TURNS] for stage, errors in ERRORS.items() if errors[turn:]}
    for stage, errors in wrong.items():
        text = solved(stage)
        for old, new, _ in errors:
            assert text.count(old) == 1, f"{stage}: {old!r} stands {text.count(old)} times"
            text = text.replace(old, new)
        (tmp_path / f"{stage}.py").write_text(text)
    grades, _ = graded(tmp_path, [f"exercises/test_{stage}.py" for stage in wrong])
    for stage, errors in wrong.items():
        got, of, hints = grades[number(stage)]
        assert got <= of - len(errors), f"{stage}: {got} of {of} for {errors}"
        for _, new, hint in errors:
            assert re.search(hint, hints, re.M), f"{stage}: of {new!r} it says\n{hints}"
        general = re.findall("(?<!by default: )right shape, wrong values", hints)
        assert not general, f"{stage}: {errors} have consequences:\n{hints}"


def test_every_blank_is_short():
    """The whole course is small."""
    for stage in STAGES:
        text = (COURSE / f"{stage}.py").read_text()
        assert len(text.splitlines()) <= 60 and text.count(': blank")') >= 1
    lines = {path.name: len(path.read_text().splitlines()) for path in COURSE.iterdir()
             if path.is_file()}
    assert lines["README.md"] <= 50 and lines["conftest.py"] <= 60
    assert sum(n for name, n in lines.items() if name.startswith("stage")) <= 450
