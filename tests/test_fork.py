"""The promise of the README: a new file in adapters/ or rules/ is all it takes to add a method."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"^`([\w/]+\.py)`\n```py(?:thon)?\n(.*?)^```", re.MULTILINE | re.DOTALL)

ALL = """
import glob, runpy, shlex, sys, pytest
for line in open("commands"):
    sys.argv = [path for word in shlex.split(line) for path in sorted(glob.glob(word)) or [word]]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, line
sys.exit(pytest.main(["tests/adapters/test_adapters.py", "tests/test_linearize.py",
                      "tests/test_merge.py", "-k",
                      "scalar or median or both_sides or parallel or by_gain"]))
"""
TRAIN = "train.py --model {tiny} --steps 4 --limit 40 --task digits,shapes --adapter "
COMMANDS = f"""
train.py --list
eval.py --list
{TRAIN}scalar --set gain=2 --linearize layer
{TRAIN}both_sides
{TRAIN}parallel --set width=3
eval.py runs/tiny-scalar.layer-digits-s0 runs/tiny-both_sides-shapes-s0 --merge median --limit 20
eval.py runs/tiny-parallel-*-s0 --merge by_gain --sweep lam=1,2 --set examples=7 --limit 20
pictures.py
""".lstrip()


def commands(page, tiny):
    """The lines of COMMANDS, and those that a page has for its pictures, on the tiny encoder."""
    pictures = [line.removeprefix("python ").replace("vit-", "tiny-") + " --limit 40"
                for line in re.findall("^python .*mine.*", page, re.MULTILINE)]
    short = [f"{line} --model {tiny} --steps 4" if "train.py" in line else line
             for line in pictures]
    return COMMANDS.replace("{tiny}", str(tiny)) + "\n".join([*short, "to_csv.py"])


def test_a_new_file_is_a_new_method(tiny, tmp_path):
    """The files of the README and of docs/fork.md are listed, train, take --set, merge, and go
    through the tests; the pictures become a table."""
    tree = tmp_path / "fork"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__"))
    text = (ROOT / "README.md").read_text().partition("## Fork it")[2]
    page = (ROOT / "docs" / "fork.md").read_text()
    adapter, rule = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    files = {"adapters/scalar.py": adapter, "rules/median.py": rule, **dict(NAMED.findall(page))}
    for path, code in files.items():
        (tree / path).write_text(code)
    (tree / "commands").write_text(commands(page, tiny))
    done = subprocess.run([sys.executable, "-c", ALL], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for entry in ("scalar\n    Scalar: one number per layer", "median\n    Median, no paper",
                  "both_sides\n    Both sides: one factor", "parallel\n    Parallel: a small MLP",
                  "by_gain\n    Gain, no paper", "trainable 12,", "| median", "| by_gain",
                  "space adapter"):
        assert entry in done.stdout, entry
    table = (tree / "mine" / "scores.csv").read_text().splitlines()
    assert table[0] == "model,place,slope"
    assert [line.partition(",")[0] for line in table[1:]] == ["base", "single", "average", "ties"]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 80
