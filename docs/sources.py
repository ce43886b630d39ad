"""What the pages show, found in the repository: definitions, imports, tests, tables."""

import ast
import re
import sys
from collections import namedtuple
from functools import cache
from pathlib import Path

import adapters  # noqa: F401  (fills ADAPTERS)
import lora
import merge
import rules  # noqa: F401  (fills RULES)

ROOT = Path(__file__).parents[1]
FAMILIES = {"Adapters": ("lora.py", "adapters/*.py"), "Linearization": ("linearize.py",),
            "Merge rules": ("merge.py", "rules/*.py"), "Encoders": ("encoders/*.py",),
            "Preference tuning": ("rlhf/*.py",)}
File = namedtuple("File", "text tree doc")
below = lambda pattern: sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern))
address = lambda path: path.removesuffix("py").replace("/", ".") + "html"       # the page of a file


@cache
def site():
    """{path: family} of every file that has a page, in the order of the index."""
    return {path: family for family, patterns in FAMILIES.items() for pattern in patterns
            for path in below(pattern) if "__" not in path}


@cache
def read(path):
    """The File of a path from the root; `doc` is its docstring as it stands there."""
    tree = ast.parse(text := (ROOT / path).read_text())
    return File(text, tree, ast.get_docstring(tree, clean=False) or "")


@cache
def defined(path):
    """{name: line} of what a file defines; of equal names a def, else self.x, else a local one."""
    found = []
    for node in ast.walk(read(path).tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.append((0, node.lineno, name))
            case (ast.Attribute(attr=name, ctx=ast.Store()) |
                  ast.Call(func=ast.Attribute(attr="register_buffer"),
                           args=[ast.Constant(name), _])):
                found.append((1, node.lineno, name))
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                found.append((2, node.lineno, name))
    return {name: line for _, line, name in sorted(found, reverse=True)}


@cache
def imports(path):
    """{name: address} of what a file imports from files that have a page, with the line there."""
    found = {}
    for node in ast.walk(read(path).tree):
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            name, module = alias.name, (getattr(node, "module", None) or "").replace(".", "/")
            whole, module = f"{module}/{name}.py".lstrip("/"), f"{module}.py"
            if whole in site():
                found[alias.asname or name] = address(whole)
            elif module in site() and name in defined(module):
                found[alias.asname or name] = f"{address(module)}#L{defined(module)[name]}"
    return found


def entries(path):
    """{name: (docstring, {key: default})} of the adapter or the rules that a file registers."""
    if site()[path] == "Adapters":
        cls = lora.ADAPTERS[stem := Path(path).stem]
        return {stem: (cls.__doc__, lora.hyperparameters(cls))}
    if site()[path] != "Merge rules":
        return {}
    here = vars(sys.modules[path.removesuffix(".py").replace("/", ".")])
    return {name: (rule.__doc__, merge.options(name)) for name, rule in merge.RULES.items()
            if name in defined(path) and here.get(name) is rule}


@cache
def tests():
    """[(path, test function, the words in it)]; the beginnings of its name are words, too.

    Not in test_papers.py, where test_lora_plus_... is no test of lora.
    """
    found = []
    for path in below("tests/**/test_*.py"):
        for node in read(path).tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                parts = [] if "test_papers" in path else node.name.split("_")[1:]
                words = {"_".join(parts[:n]) for n in range(1, len(parts))}
                found.append((path, node, words | {*re.findall(r"'(\w+)'", ast.dump(node))}))
    return found


def examples(path):
    """[(path, test function)] that work a file by hand, six at most; else two that use it."""
    stem, found, rest = Path(path).stem, [], []
    own = {node.name for node in read(path).tree.body if hasattr(node, "name")}
    for key in [*entries(path), ""]:
        hits = [(test, node) for test, node, words in tests() if key in words or not key and
                words & own and address(path) in str(imports(test).values())]
        found += ([hit for hit in hits if "test_papers" in hit[0]] or
                  [hit for hit in hits if "by_hand" in hit[1].name])
        rest += hits
    rest.sort(key=lambda hit: (not hit[1].name.startswith(f"test_{stem}_")) + (stem not in hit[0]))
    return list(dict.fromkeys(found))[:6] or rest[:2]


@cache
def tables(page):
    """[(heading, text between it and the table, rows)] of the tables of a page in Markdown."""
    text, found = (ROOT / "docs" / page).read_text(), []
    for block in re.finditer(r"(?m)(?:^\|.*\n)+", text):
        *_, heading = re.finditer(r"(?m)(?:^#+ |<summary>)([^<\n]*)", text[:block.start()])
        first, _, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
                           for line in block[0].splitlines()]
        found.append((heading[1].strip(" ,"), text[heading.end():block.start()], [first, *rows]))
    return found
