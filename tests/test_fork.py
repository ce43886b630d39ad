"""The promise of the README: one new file in adapters/ is all it takes to add a method."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

NEW = '''"""Scalar: one number per layer scales the whole weight. No paper, an example.

    W_eff = (1 + a) W0          a trained, starts at 0
"""

from torch import nn

from lora import Adapter, register


@register
class Scalar(Adapter):
    """W0 times 1 + gain * a.  gain (1) multiplies the trained number."""

    def __init__(self, base, *, gain=1.0):
        super().__init__(base)
        self.gain, self.a = gain, nn.Parameter(base.weight.new_zeros(()))

    def delta_weight(self):
        return self.gain * self.a * self.base.weight

    def trainable_count(self):
        return 1
'''


ALL = """
import runpy, sys, pytest
for words in ["train.py --list",
              "train.py --adapter scalar --set gain=2 --linearize layer --model {model} --steps 4 "
              "--limit 40", "eval.py runs/tiny-scalar.layer-digits-s0 --limit 20"]:
    sys.argv = words.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        assert not stop.code
sys.exit(pytest.main("tests/adapters/test_adapters.py tests/test_linearize.py -k scalar".split()))
"""


def test_a_new_file_is_a_new_adapter(tiny, tmp_path):
    """It is listed, trains with its own key under a linearization, is scored, and is tested."""
    tree = tmp_path / "fork"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "runs", "__pycache__"))
    (tree / "adapters" / "scalar.py").write_text(NEW)
    done = subprocess.run([sys.executable, "-c", ALL.replace("{model}", str(tiny))], cwd=tree,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scalar\n    Scalar: one number per layer" in done.stdout
    assert "trainable 12," in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 15
