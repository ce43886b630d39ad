"""The house: imports go one way, in no circle, and only the four packages are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for p in ROOT.rglob("*.py") if p.relative_to(ROOT).parts[0] != "tests")
FLOORS = (("errors",), ("encoders", "tasks", "lora", "merge"),
          ("linearize", "adapters", "rules", "data"), ("experiment",),
          ("train", "eval", "analysis", "exchange", "pretrain", "bench"))
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
OPTIONAL = {"matplotlib": "analysis/plots.py", "PIL": "tasks/readers.py",
            "peft": "bench/peft_library.py"}


def name_of(path):
    """adapters/dora.py -> adapters.dora; encoders/__init__.py -> encoders."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


OURS = {name_of(p): p for p in FILES}


def imported(path, everywhere=True):
    """Dotted names of what a file imports, anywhere in it or when it is imported itself."""
    tree = ast.parse(path.read_text())
    names = []
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [part if part in OURS else node.module for part in parts]
    return sorted(set(names))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_four_packages(path):
    for name in {name.partition(".")[0] for name in imported(path)} - FLOOR.keys():
        here = OPTIONAL.get(name) == path.relative_to(ROOT).as_posix()
        assert name in sys.stdlib_module_names or name in ("torch", "numpy", "tqdm") or here


def test_importing_draws_no_random_number():
    modules = ", ".join(name for name in OURS if not name.endswith("__main__"))
    code = ("import torch, numpy as np; torch.manual_seed(0); a = torch.get_rng_state(); "
            f"b = np.random.get_state()[1].copy(); import {modules}; "
            "assert torch.equal(a, torch.get_rng_state()); "
            "assert (b == np.random.get_state()[1]).all(); "
            "assert torch.get_default_dtype() == torch.float32")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
