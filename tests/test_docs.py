"""What the pages say: their Python runs and prints what they show, and no link leads nowhere."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "exercises" / "README.md",
         *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)[^)]*\)|(?:href|src)=\"([^\"]+)\"")


def blocks(page):
    """[(language, code)] of a page's fenced blocks."""
    return FENCE.findall(page.read_text())


def anchors(page):
    """The anchors that GitHub gives the headings of a page, and those that it sets itself."""
    text, found = FENCE.sub("", page.read_text()), []
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", text, re.MULTILINE):
        heading = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)               # a link's text
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = found.count(slug)
        found.append(slug if not again else f"{slug}-{again}")
    return {*found, *re.findall(r"(?:id|name)=\"([^\"]+)\"", text)}


def close(printed, shown):
    """The same text, and numbers that differ by at most .03: processors round differently."""
    number = r"-?\d+\.?\d*"
    pairs = list(zip(re.findall(number, printed), re.findall(number, shown)))
    return re.sub(number, "#", printed.strip()) == re.sub(number, "#", shown.strip()) and all(
        abs(float(a) - float(b)) <= 0.03 for a, b in pairs)


def test_close():
    assert close("ties [0.72, 0.9]\n", "ties [0.7, 0.88]") and not close("a 0.5", "a 0.6")
    assert not close("a 0.5", "b 0.5") and not close("[0.5]", "[0.5, 0.5]")


@every_page
def test_python_prints_what_the_page_shows(page, tmp_path, monkeypatch, trained):
    """The blocks of a page share their names; ```text after one is what it prints.

    What a page reads from runs/ are short runs of the tiny encoder.
    """
    for entry in ROOT.iterdir():                        # as from the root, but writing elsewhere
        if entry.name not in ("runs", ".git"):
            os.symlink(entry, tmp_path / entry.name)
    (tmp_path / "runs").mkdir()
    for run in trained("--adapter", "lora", "--task", "digits,shapes"):
        os.symlink(run, tmp_path / "runs" / f"vit-{run.name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python"])
    names, parts = {"__name__": "__main__"}, blocks(page)
    for (language, code), (after, shown) in zip(parts, [*parts[1:], ("", "")]):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, page.name, "exec"), names)
            assert after != "text" or close(out.getvalue(), shown), out.getvalue()


@every_page
def test_links_lead_somewhere(page):
    for link in filter(None, sum(LINK.findall(FENCE.sub("", page.read_text())), ())):
        if not re.match(r"\w+:", link):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
