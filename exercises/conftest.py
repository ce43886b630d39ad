"""Grades the stages: a score by stage, with hints in place of tracebacks (--tb=short shows both).

--solutions FOLDER grades the stage files of another folder; one that it lacks counts as blank.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from grader import hint

HERE = Path(__file__).parent


def pytest_addoption(parser):
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


def pytest_terminal_summary(terminalreporter):
    stages, write, stats = {}, terminalreporter.write_line, terminalreporter.stats
    for report in [r for kind in ("passed", "failed", "error") for r in stats.get(kind, [])]:
        if hasattr(report, "hint"):
            number = int(re.search(r"test_stage(\d+)", report.nodeid)[1])
            stages.setdefault(number, []).append(report)
        else:                                          # a grader that cannot even be imported
            write(report.longreprtext)
    for number, points in sorted(stages.items()):
        write(f"stage {number}: {sum(point.passed for point in points)} of {len(points)}")
        for line in dict.fromkeys(point.hint for point in points if point.failed):
            write(f"    {line}")
    every = sum(stages.values(), [])
    write(f"total: {sum(point.passed for point in every)} of {len(every)}")
