"""The house rules that a parser can hold: imports go one way, only the four packages are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("adapters/*.py")])
OURS = {p.stem for p in ROOT.glob("*.py")} | {"adapters"}
SCRIPTS = {"train", "eval", "pretrain", "bench", "compare", "match"}
PACKAGES = {"torch", "numpy", "tqdm"}


def imported(path):
    """Top-level names of everything a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.partition(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_imports(path):
    names = imported(path)
    assert not names & SCRIPTS
    optional = {"plots.py": {"matplotlib"}, "readers.py": {"PIL"},
                "bench_peft.py": {"peft"}}.get(path.name, set())
    assert names <= OURS | PACKAGES | optional | sys.stdlib_module_names
    if path.parent.name == "adapters" and path.name != "__init__.py":
        assert names & OURS <= {"lora", "linearize", "quantize", "errors", "adapters"}
    if path.name.startswith("merge") or path.name in ("analysis.py", "corruptions.py"):
        rules = {p.stem for p in ROOT.glob("merge*.py")}
        assert names & OURS <= {"errors", "coefficients"} | rules


def test_importing_draws_no_random_number():
    modules = ", ".join(p.stem for p in FILES if p.parent == ROOT)
    code = ("import torch, numpy as np; torch.manual_seed(0); a = torch.get_rng_state(); "
            f"b = np.random.get_state()[1].copy(); import {modules}; "
            "assert torch.equal(a, torch.get_rng_state()); "
            "assert (b == np.random.get_state()[1]).all(); "
            "assert torch.get_default_dtype() == torch.float32")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
