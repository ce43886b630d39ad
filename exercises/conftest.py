"""Grades the stages: a score by stage, with hints in place of tracebacks (--tb=short shows both).

--solutions FOLDER grades the stage files of another folder; one that it lacks counts as blank.
"""

import contextlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from grader import hint, lines

HERE = Path(__file__).parent


def pytest_addoption(parser):
    with contextlib.suppress(ValueError):     # FOLDER has a copy of this file, the other was first
        parser.addoption("--solutions", type=Path, default=HERE, help="a folder of stage files")


def pytest_configure(config):
    if not config.option.solutions.is_dir():
        raise pytest.UsageError(f"--solutions {config.option.solutions}: there is no such folder")
    config.option.reportchars = ""
    config.option.tbstyle = {"auto": "no"}.get(config.option.tbstyle, config.option.tbstyle)


@pytest.fixture(scope="module")
def stage(request):
    """The stage file that a grader belongs to, as a module: test_stage01_lora -> stage01_lora."""
    name = request.path.stem.removeprefix("test_")
    files = [folder / f"{name}.py" for folder in (request.config.option.solutions, HERE)]
    spec = importlib.util.spec_from_file_location(name, next(f for f in files if f.exists()))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call):
    report = yield
    report.hint = hint(call.excinfo) if report.failed else ""
    return report


def pytest_terminal_summary(terminalreporter, config):
    stages, write, stats = {}, terminalreporter.write_line, terminalreporter.stats
    for report in [r for kind in ("passed", "failed", "error") for r in stats.get(kind, [])]:
        if not hasattr(report, "hint"):                # a grader that cannot even be imported
            write(report.longreprtext)
        elif (config.rootpath / report.nodeid.partition("::")[0]).parent == HERE:
            stages.setdefault(int(re.search(r"stage(\d+)", report.nodeid)[1]), []).append(report)
    for number, points in sorted(stages.items()):
        score = f"stage {number}: {sum(point.passed for point in points)} of {len(points)}"
        write("\n    ".join([score, *lines(number, points)]))
    if every := sum(stages.values(), []):
        write(f"total: {sum(point.passed for point in every)} of {len(every)}")
