"""The course grades right: full marks for the project's own modules, none for blank files, and of
one wrong token a hint that names it.

A solved stage is the text of a module of the project, or of two, and some lines that call it by the
names of the stage. A wrong one is the same text with one token replaced (mistakes.py).
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mistakes import ERRORS, TURNS

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
