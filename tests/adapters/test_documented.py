"""What a docstring or a page says of every adapter is what the class has."""

import re
from pathlib import Path

import lora
from lora import ADAPTERS
from support import every_adapter

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()


def rows(heading):
    """The rows below the table head that starts with `heading`: lists of cells."""
    table = PAGE.partition(f"| {heading}")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


@every_adapter
def test_the_docstring_has_every_key_with_its_default(name):
    """A line `rank  (8)  what it is` for every keyword of the constructor, in its order."""
    told = re.findall(r"^ +(\w+) +\(([^)]*)\) ", ADAPTERS[name].__doc__, re.MULTILINE)
    assert told == [(k, f"{v:g}" if type(v) in (int, float) else str(v))
                    for k, v in lora.hyperparameters(ADAPTERS[name]).items()]


def readings():
    """{adapter: its learning rates} by the table of docs/adapters.md on linearization."""
    out = {}
    for adapters, plain, linear, _ in rows("adapter | lr plain"):
        names = re.findall(r"`(\w+)`", adapters)
        plain = [float(v) for v in plain.split(", ")]
        linear = plain if linear == "the same" else [float(v) for v in linear.split(", ")]
        for i, name in enumerate(names):
            rate = linear[i % len(linear)]
            out[name] = {"off": plain[i % len(plain)], "layer": rate, "model": rate}
    return out


@every_adapter
def test_learning_rates_are_those_of_the_tables(name):
    """A published accuracy holds at the published rate. L-LoRA has no plain reading."""
    own, told = ADAPTERS[name].lr, readings()[name]
    assert own == {reading: told[reading] for reading in own}
    (row,) = (row for row in rows("adapter    |") if row[0] == name)
    assert float(row[4]) == own.get("off", own["model"])


@every_adapter
def test_the_paper_of_the_table_is_that_of_the_file(name):
    (row,) = (row for row in rows("adapter    |") if row[0] == name)
    number = re.search(r"arXiv:([\d.]+\d)", lora.paper(ADAPTERS[name]))
    assert row[1] == (number[1] if number else "-")
