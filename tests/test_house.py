"""The house: imports go one way, in no circle, and only the four packages are used.

`python tests/test_house.py` prints the figures that the tests hold to.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for p in ROOT.rglob("*.py")
               if p.relative_to(ROOT).parts[0] not in ("tests", "shared", "exercises"))
FLOORS = (("errors",), ("encoders", "tasks", "lora", "merge"),
          ("linearize", "adapters", "rules", "data"), ("experiment",),
          ("train", "eval", "analysis", "exchange", "pretrain", "rlhf", "bench",
           "docs"))
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
BESIDE = {                        # (file, room on its own floor): why it may look there
    ("encoders.published", "tasks.downloads"): "a checkpoint is downloaded as a data set is",
    ("adapters.l_lora", "linearize"): "its closed form says of which adapter it is the expansion",
    ("train", "exchange"): "--init starts from a PEFT folder",
    ("eval", "exchange"): "--export writes a folder, and a run may be one",
    ("eval", "analysis"): "--analyze and --plot",
    ("bench.__main__", "analysis.plots"): "--plot asks for the folder before anything is timed",
    ("bench.growth", "analysis.plots"): "--plot draws the curves",
    ("bench.figures", "analysis"): "it draws",
    ("bench.preference", "rlhf"): "it times the steps of preference tuning",
    ("rlhf.preferences", "pretrain"): "prompts are openings of what the GPT has read",
    ("rlhf.__main__", "analysis.plots"): "--plot asks for the folder before anything is trained",
    ("rlhf.figures", "analysis.plots"): "--plot draws the curves",
    ("analysis.match", "exchange"): "the matched encoder is written as others read it"}
OPTIONAL = {"matplotlib": "analysis/plots.py", "PIL": "tasks/pictures.py",
            "peft": "bench/peft_library.py"}
LIMITS = {"train": (15, 2080), "eval": (21, 2915)}      # files and lines that an import reaches
ALL_LINES = 13800


def name_of(path):
    """adapters/dora.py -> adapters.dora; encoders/__init__.py -> encoders."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name):
    return name.partition(".")[0]


OURS = {name_of(p): p for p in FILES}


def statements(tree):
    """The statements that an import runs: whatever is outside functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            yield node
            yield from statements(node)


def imported(path, everywhere=True):
    """Dotted names of what a file imports, anywhere in it or when it is imported itself."""
    tree = ast.parse(path.read_text())
    names = []
    for node in ast.walk(tree) if everywhere else statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [part if part in OURS else node.module for part in parts]
    return sorted(set(names))


def reach(name):
    """The files that an import of `name` runs, adapters and rules not counted."""
    found, todo = set(), [name]
    while todo:
        name = todo.pop()
        if name in OURS and name not in found and room_of(name) not in ("adapters", "rules"):
            found.add(name)
            todo += [*imported(OURS[name], everywhere=False), name.rpartition(".")[0]]
    return found


def lines(names):
    return sum(len(OURS[name].read_text().splitlines()) for name in names)


# ---- what may be imported ------------------------------------------------------------------------

@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_four_packages(path):
    for name in {room_of(name) for name in imported(path)} - FLOOR.keys():
        here = OPTIONAL.get(name) == path.relative_to(ROOT).as_posix()
        assert name in sys.stdlib_module_names or name in ("torch", "numpy", "tqdm") or here


def test_imports_go_down():
    """To a lower floor, into the own package, or along a way that BESIDE gives a reason for."""
    used = set()
    for name, path in OURS.items():
        for other in imported(path):
            if room_of(other) not in FLOOR or room_of(other) == room_of(name):
                continue
            if FLOOR[room_of(other)] >= FLOOR[room_of(name)]:
                way = (name, other) if (name, other) in BESIDE else (name, room_of(other))
                assert way in BESIDE, f"{name} imports {other}"
                used.add(way)
    assert used == BESIDE.keys()                                   # and no reason is left over


def test_nothing_imports_in_a_circle():
    """Imports inside functions count, too."""
    names = set(OURS)
    ways = {name: set(imported(path)) & names for name, path in OURS.items()}
    while leaves := {name for name in names if not ways[name] & names}:
        names -= leaves
    assert not names


def test_commands_are_imported_by_nobody():
    for name, path in OURS.items():
        commands = [n for n in imported(path) if n in ("train", "eval") or "__main__" in n]
        assert not commands, f"{name} imports {commands}"


@pytest.mark.parametrize("name", ["lora", "merge"])
def test_the_two_contracts_stand_alone(name):
    assert set(imported(OURS[name])) & OURS.keys() <= {"errors"}


# ---- how much there is to read -------------------------------------------------------------------

@pytest.mark.parametrize("name", LIMITS)
def test_a_command_reaches_few_files(name):
    found = reach(name)
    files, most = LIMITS[name]
    assert len(found) <= files and lines(found) <= most, sorted(found)


def test_all_of_it():
    assert lines(OURS) <= ALL_LINES


def test_importing_draws_no_random_number():
    modules = ", ".join(name for name in OURS if not name.endswith("__main__"))
    code = ("import torch, numpy as np; torch.manual_seed(0); a = torch.get_rng_state(); "
            f"b = np.random.get_state()[1].copy(); import {modules}; "
            "assert torch.equal(a, torch.get_rng_state()); "
            "assert (b == np.random.get_state()[1]).all(); "
            "assert torch.get_default_dtype() == torch.float32")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def figures():
    """Print what the tests above compare with their limits."""
    for name, (files, most) in LIMITS.items():
        found = reach(name)
        print(f"{name}.py reaches {len(found)} files of {files}, {lines(found)} lines of {most}")
        for part in sorted(found, key=lambda part: -lines([part])):
            print(f"  {lines([part]):5} {part}")
    print(f"{len(OURS)} files, {lines(OURS)} lines of {ALL_LINES}")


if __name__ == "__main__":
    figures()
