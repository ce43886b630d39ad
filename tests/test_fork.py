"""The promise of the README: a new file in adapters/ or rules/ is all it takes to add a method."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

ALL = """
import runpy, sys, pytest
for words in ["train.py --list", "eval.py --list",
              "train.py --adapter scalar --set gain=2 --linearize layer --model {model} --steps 4 "
              "--limit 40 --task digits,shapes",
              "eval.py runs/tiny-scalar.layer-digits-s0 runs/tiny-scalar.layer-shapes-s0 "
              "--merge median --limit 20"]:
    sys.argv = words.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        assert not stop.code
sys.exit(pytest.main(["tests/adapters/test_adapters.py", "tests/test_linearize.py",
                      "tests/test_merge.py", "-k", "scalar or median"]))
"""


def test_a_new_file_is_a_new_method(tiny, tmp_path):
    """The README's two files are listed, train, take --set, merge, and go through the tests."""
    tree = tmp_path / "fork"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__"))
    text = (ROOT / "README.md").read_text().partition("## Fork it")[2]
    adapter, rule = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    (tree / "adapters" / "scalar.py").write_text(adapter)
    (tree / "rules" / "median.py").write_text(rule)
    done = subprocess.run([sys.executable, "-c", ALL.replace("{model}", str(tiny))], cwd=tree,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scalar\n    Scalar: one number per layer" in done.stdout
    assert "median\n    Median, no paper" in done.stdout
    assert "trainable 12," in done.stdout and "| median" in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 25
