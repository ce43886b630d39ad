"""The pages as HTML: what a file says of its paper on the left, its code on the right."""

import keyword
import re
from html import escape
from pathlib import Path
from textwrap import dedent

from docs.sources import (FAMILIES, ROOT, address, below, defined, entries, examples, imports, read,
                          site, tables)

FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="python -m docs">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{}</title><link rel="stylesheet" href="style.css"></head><body>{}</body></html>
"""
ARXIV = r"\b\d{4}\.\d{5}\b"
WORD = re.compile(rf"(?P<arxiv>{ARXIV})|(?P<doi>\b10\.\d{{4}}/\S*\w)|[\w/]+\.py\b|"
                  r"(?!a [a-z]{2})\b[A-Za-z_]\w*|[&<>\"']")
TOKEN = re.compile(r'"""[\s\S]*?"""|#.*|"(?:\\.|[^"\\\n])*"|' r"'(?:\\.|[^'\\\n])*'|\w+|[&<>]")


def linked(text, names=None):
    """Escaped text: arXiv ids, DOIs and `names` {word: address} are links, tau_t that of tau."""
    def link(match):
        word, short = match[0], re.sub(r"_\w\w?$", "", match[0])
        to = (f"https://arxiv.org/abs/{word}" if match["arxiv"] else
              f"https://doi.org/{word}" if match["doi"] else
              names and names.get(word, names.get(short)))
        return f'<a href="{to}">{escape(word)}</a>' if to else escape(word)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", WORD.sub(link, text))


def equation(text, names):
    """Mathematics line by line; what stands apart at the right of a line stays in one piece."""
    lines = re.sub(r"\n {30,}", " ", text).rstrip().splitlines()
    apart = lambda line: re.sub(r"(.*\S {4,})(?!=)(\S.*)", r"\1<small>\2</small>", line)
    html = "".join(f"<p>{apart(linked(line, names))}</p>" for line in lines)
    return f'<div class="equation">{html}</div>'


def prose(doc, names, words):
    """A docstring below its title: equations with links to `names`; labelled parts, paragraphs."""
    html = ""
    for paragraph in re.split(r"\n\s*\n", doc)[1:]:
        inner = dedent(paragraph)
        if inner != paragraph and not re.search(r"^\w+ {2,}[^= ].*\n {4,}\S", inner, re.MULTILINE):
            html += equation(inner, names)
            continue
        text, *parts = re.split(r"^([\w+-]+) {2,}(?=\S)", inner, flags=re.MULTILINE)
        html += f"<p>{linked(text, words)}</p>" if text.strip() else ""
        for label, part in zip(parts[::2], parts[1::2]):
            said = (equation(re.sub(r"\n +", "\n", part), names)
                    if label == "Shapes" or re.match(r"\S+ += ", part) else linked(part, words))
            html += f"<dl><dt>{escape(label)}</dt><dd>{said}</dd></dl>"
    return html


def code(path, first, last=9999, anchors=False):
    """Lines of a Python file in a box: strings, comments and keywords marked, imports linked."""
    text, names = read(path).text, imports(path)

    def mark(match):
        token, before = match[0], text[max(0, match.start() - 6):match.start()]
        kind = ("comment" if token[0] == "#" else "doc" if token[:3] == '"""' else
                "string" if token[0] in "\"'" else "keyword" if keyword.iskeyword(token) else
                "def" if before.endswith(("def ", "class ")) else "")
        if kind:
            return "\n".join(f'<b class="{kind}">{s}</b>' for s in escape(token).split("\n"))
        if token in names and not before.endswith("."):
            return f'<a href="{names[token]}">{token}</a>'
        return escape(token)
    lines = [f'<span{f" id=L{n}" * anchors}><i>{n}</i>{line}\n</span>'
             for n, line in enumerate(TOKEN.sub(mark, text).splitlines(), 1) if first <= n <= last]
    return f"<pre><code>{''.join(lines)}</code></pre>"


def table(rows):
    """A table of Markdown cells; the first row is its head."""
    cell = lambda text: linked(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("\\|", "|"))
    lines = ["".join(f"<{'td' if n else 'th'}>{cell(text)}" for text in row)
             for n, row in enumerate(rows)]
    return f'<div class="wide"><table><tr>{"<tr>".join(lines)}</table></div>'


def left(path):
    """The paper's side: the docstring, what the file registers with its keys, the symbols."""
    files = {name: address(other) for other in site() for name in (other, Path(other).name)
             if name == other or site()[other] == site()[path]}
    names = files | {name: f"#L{line}" for name, line in defined(path).items()}
    defs = {*files, *(node.name for node in read(path).tree.body if hasattr(node, "name"))}
    words = {name: to for name, to in names.items()
             if name in defs or len(name) > 2 and re.search("[A-Z_]", name)}
    html = prose(read(path).doc, names, words)
    for name, (doc, keys) in entries(path).items():
        said, _, formula = doc.splitlines()[0].partition("   ")
        keys = escape("  ".join(f"{key}={value}" for key, value in keys.items()))
        html += (f'<dl class="entry"><dt>{linked(name, names)}</dt><dd>{linked(said, words)}'
                 f"{equation(formula, names)}<code>{keys}</code></dd></dl>")
    return html + "".join(table(rows) for _, said, rows in tables("notation.md")
                          if f"`{path}`" in said)


def sections(path):
    """(heading, HTML) of what belongs to a file; the HTML is empty where there is nothing."""
    own, stem = entries(path), Path(path).stem
    html = ""
    for test, node in examples(path):
        first = min(part.lineno for part in [node, *node.decorator_list])
        html += f"<p>{test}</p>{code(test, first, node.end_lineno)}"
    yield "Worked by hand", html

    html = ""
    for page in ("adapters.md", "rules.md"):
        for heading, _, (first, *rest) in tables(page):
            rows = [row for row in rest if {*re.findall(r"\w+", row[0])} & {*own}]
            html += f"<p>{linked(heading)}</p>{table([first, *rows])}" if rows else ""
    yield "Measured", html

    html = ""
    for page in below("docs/*.md"):
        for said, name in re.findall(r"!\[([^]]*)\]\(figures/([^)]*)\)", (ROOT / page).read_text()):
            if re.split(r"[-.]", name)[0] == stem and name not in html:
                html += (f'<figure><img src="{name}" alt="{escape(said)}">'
                         f"<figcaption>{escape(said)}</figcaption></figure>")
    yield "Drawn", html

    ids = {*re.findall(ARXIV, read(path).doc + str(own))}
    yield "Exercise", "".join(f"<p>{other}</p>{prose(read(other).doc, {}, {})}"
                              for other in below("exercises/stage*.py")
                              if ids & {*re.findall(ARXIV, read(other).doc)})

    uses = {other: {to.partition("#")[0] for to in imports(other).values()} for other in site()}
    link = lambda others: " · ".join(f'<a href="{address(other)}">{other}</a>' for other in others)
    yield "Builds on", link(other for other in uses if address(other) in uses[path])
    yield "What builds on it", link(other for other in uses if address(path) in uses[other])


def title(path):
    """The first paragraph of a docstring in one line: name, title, where it was published."""
    return " ".join(read(path).doc.partition("\n\n")[0].split())


def page(path):
    """The page of a file."""
    name, _, published = title(path).rstrip(".").partition(". ")
    name, _, full = name.partition(": ")
    rest = "".join(f"<section><h2>{heading}</h2> {html}</section>"
                   for heading, html in sections(path) if html)
    start = read(path).tree.body[0].end_lineno + 2            # a blank line after the docstring
    return FRAME.format(escape(name), f"""
<nav><a href="index.html">All pages</a><span>{path}</span></nav>
<header><h1>{linked(name)}</h1><p>{linked(full)}</p><p>{linked(published)}</p></header>
<main><article>{left(path)}</article>{code(path, start, anchors=True)}</main>
{rest}""")


def index():
    """The list of all pages by family: name, paper, one line."""
    html = ""
    for family in FAMILIES:
        html += f"<h2>{family}</h2><ul>"
        for path in (path for path in site() if site()[path] == family):
            for name, (doc, _) in (entries(path) or {Path(path).stem: ("\n", {})}).items():
                said, gap, formula = doc.splitlines()[0].partition("   ")
                paper, line = (said, f"`{formula}`") if gap else (title(path), said)
                html += (f'<li><a href="{address(path)}">{name}</a><span>{linked(paper)}</span>'
                         f"<span>{linked(line)}</span></li>")
        html += "</ul>"
    return FRAME.format("Read along", "<header><h1>Read along</h1><p>The paper on the left, its "
                        f"code on the right.</p></header>{html}")
