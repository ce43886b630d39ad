"""What the pages show, found in the repository: definitions, imports, examples, tables."""

import ast
import re
from collections import namedtuple
from functools import cache
from pathlib import Path

import adapters  # noqa: F401  (fills ADAPTERS)
import rules  # noqa: F401  (fills RULES)
from lora import ADAPTERS
from merge import RULES

ROOT = Path(__file__).parents[1]
ARXIV = r"\b\d{4}\.\d{5}\b"
FAMILIES = {"Adapters": ["lora.py", "adapters/*.py"], "Merge rules": ["merge.py", "rules/*.py"],
            "Linearization": ["linearize.py"], "Encoders": ["encoders/*.py"],
            "Preference tuning": ["rlhf/*.py"], "Exercises": ["exercises/stage*.py"]}
WORKED = ["tests/test_papers.py", "tests/test_merge.py", "tests/rules/*.py", "tests/encoders/*.py"]
File = namedtuple("File", "text tree doc title papers")
below = lambda pattern: sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern))
address = lambda path: path.removesuffix("py").replace("/", ".") + "html"       # the page of a file
words = cache(lambda node: {*re.findall(r"'(\w+)'", ast.dump(node))})           # names and strings


@cache
def read(path):
    """The File of a path; `title` is the first paragraph of its docstring, in one line."""
    tree = ast.parse(text := (ROOT / path).read_text())
    doc = ast.get_docstring(tree, clean=False) or ""
    return File(text, tree, doc, " ".join(doc.split("\n\n")[0].split()), {*re.findall(ARXIV, doc)})


@cache
def site():
    """{path: family} of all pages: files that name a paper, every rule and every exercise."""
    return {path: family for family, patterns in FAMILIES.items() for pattern in patterns
            for path in below(pattern) if "__" not in path
            and (read(path).papers or family in ("Merge rules", "Exercises"))}


@cache
def defined(path):
    """{name: line} of what a file defines; of equal names a def, else self.x, else a local one."""
    found = []
    for node in ast.walk(read(path).tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.append((0, node.lineno, name))
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Call(
                    func=ast.Attribute(attr="register_buffer"), args=[ast.Constant(name), _]):
                found.append((1, node.lineno, name))
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                found.append((2, node.lineno, name))
    return {name: line for _, line, name in sorted(found, reverse=True)}


@cache
def imports(path):
    """The files with a page that a file imports from."""
    nodes = [n for n in ast.walk(read(path).tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = [f"{getattr(node, 'module', '')}.{alias.name}.".lstrip(".")
             for node in nodes for alias in node.names]
    return [other for other in site() if any(n.startswith(address(other)[:-4]) for n in names)]


@cache
def registered(path):
    """The names of the adapter or the rules that a file registers."""
    own = re.findall(r"(?m)^(?:def )?(\w+)(?:\(| = )", read(path).text)
    registry = {"Adapters": ADAPTERS, "Merge rules": RULES}.get(site()[path], {})
    return {Path(path).stem, *own} & registry.keys()


def examples(path):
    """[(path, first line, last line)] of tests by hand: of a file, or with what it registers."""
    own = below(f"tests/*/test_{Path(path).stem}.py")
    return [(test, min(part.lineno for part in [node, *node.decorator_list]), node.end_lineno)
            for pattern in WORKED for test in below(pattern) for node in read(test).tree.body
            if isinstance(node, ast.FunctionDef)
            and ("by_hand" in node.name or test == "tests/test_papers.py")
            and (test in own or words(node) & registered(path))]


@cache
def tables(page):
    """[(heading, text from there to the table, rows)] of the tables of a page in Markdown."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", (ROOT / "docs" / page).read_text())
    found = []
    for section in re.split(r"(?m)^(?:#+ |.*<summary>)", text)[1:]:
        heading, said = re.match(r"[^<\n]*", section)[0].strip(" ,"), section.partition("\n|")[0]
        for block in re.findall(r"(?m)(?:^\|.*\n)+", section):
            rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in block.splitlines()]
            found.append((heading, said, [rows[0], *rows[2:]]))
    return found
