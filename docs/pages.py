"""The pages as HTML: what a file says of its paper on the left, its code on the right."""

import keyword
import re
from html import escape
from pathlib import Path

from docs.sources import (ARXIV, ROOT, address, below, defined, examples, imports, read,
                          registered, site, tables)

FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="python -m docs">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{}</title><link rel="stylesheet" href="style.css"></head><body>{}</body></html>
"""
WORD = re.compile(r"(?!a [a-z]{2})\b[A-Za-z_]\w*|[&<>\"']")                   # no article a
TOKEN = re.compile(r'(?P<doc>"""[\s\S]*?""")|(?P<comment>#.*)|'
                   r"""(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|"""
                   rf"(?P<keyword>\b(?:{'|'.join(keyword.kwlist)})\b)")
links = lambda paths: " · ".join(f'<a href="{address(path)}">{path}</a>' for path in paths)


def linked(text, names=None):
    """Escaped text: arXiv ids and `names` {word: line} are links, tau_t that of tau."""
    def link(match):
        word, lines = match[0], names or {}
        line = lines.get(word) or lines.get(re.sub(r"_\w\w?$", "", word))
        return f'<a href="#L{line}">{word}</a>' if line else escape(word)
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", WORD.sub(link, text))
    return re.sub(ARXIV, r'<a href="https://arxiv.org/abs/\g<0>">\g<0></a>', html)


def equation(text, names):
    """Mathematics, a paragraph per line, with links to `names`."""
    lines = re.sub(r"\n {30,}", " ", text).rstrip().splitlines()         # a remark of two lines
    html = "".join(f"<p>{linked(line, names)}</p>" for line in lines)
    return f'<div class="equation">{html}</div>'


def prose(doc, names):
    """A docstring below its title: equations, labelled parts, paragraphs."""
    html = ""
    for paragraph in re.split(r"\n\s*\n", doc)[1:]:
        if paragraph.startswith("    "):
            html += equation(re.sub("(?m)^    ", "", paragraph), names)
            continue
        text, *parts = re.split(r"^([\w+-]+) {2,}(?=\S)", paragraph, flags=re.MULTILINE)
        html += f"<p>{linked(text)}</p>" if text.strip() else ""
        for label, part in zip(parts[::2], parts[1::2]):
            formal = label == "Shapes" or " = " in part.partition("\n")[0]
            said = equation(re.sub(r"\n +", "\n", part), names) if formal else linked(part)
            html += f"<dl><dt>{label}</dt><dd>{said}</dd></dl>"
    return html


def code(path, first, last=9999, anchor=""):
    """Lines of a Python file in a box; `anchor` begins the id of a line."""
    mark = lambda match: re.sub("(?m)^.*$", rf'<b class="{match.lastgroup}">\g<0></b>', match[0])
    lines = TOKEN.sub(mark, escape(read(path).text, quote=False)).splitlines()
    spans = [f'<span{anchor and f" id={anchor}{n}"}><i>{n}</i>{line}\n</span>'
             for n, line in enumerate(lines, 1) if first <= n <= last]
    return f"<pre><code>{''.join(spans)}</code></pre>"


def table(rows):
    """A table of Markdown cells."""
    lines = "".join("<tr>" + "".join(f"<td>{linked(cell)}" for cell in row) for row in rows)
    return f'<div class="wide"><table>{lines}</table></div>'.replace("\\|", "|")


def sections(path):
    """(heading, HTML) of what belongs to a file; the HTML is empty where there is nothing."""
    yield "Worked by hand", "".join(f"<p>{test}</p>{code(test, first, last)}"
                                    for test, first, last in examples(path))
    html = ""
    for heading, _, (first, *rest) in tables("adapters.md") + tables("rules.md"):
        rows = [row for row in rest if {*re.findall(r"\w+", row[0])} & registered(path)]
        html += f"<p>{linked(heading)}</p>{table([first, *rows])}" if rows else ""
    yield "Measured", html
    pictures = re.findall(rf"!\[([^]]*)\]\(figures/({Path(path).stem}[-.][^)]*)\)",
                          "".join((ROOT / page).read_text() for page in below("docs/*.md")))
    yield "Drawn", "".join(f'<figure><img src="{name}" alt="{escape(said)}">'
                           f"<figcaption>{escape(said)}</figcaption></figure>"
                           for said, name in dict.fromkeys(pictures))
    yield "Exercise", links(other for other in site() if site()[other] == "Exercises"
                            and read(path).papers & read(other).papers and path != other)
    yield "Builds on", links(imports(path))
    yield "What builds on it", links(other for other in site() if path in imports(other))


def page(path):
    """The page of a file."""
    file, lines = read(path), defined(path)
    name, *full = re.split("[:.] ", file.title, maxsplit=1)
    symbols = [rows for _, said, rows in tables("notation.md") if f"`{path}`" in said]
    rest = "".join(f"<section><h2>{heading}</h2> {html}</section>"
                   for heading, html in sections(path) if html)
    return FRAME.format(escape(name), f"""
<nav><a href="index.html">All pages</a><span>{path}</span></nav>
<header><h1>{linked(name)}</h1><p>{linked("".join(full))}</p></header>
<main><article>{prose(file.doc, lines)}{"".join(map(table, symbols))}</article>
{code(path, file.tree.body[0].end_lineno + 2, anchor="L")}</main>
{rest}""")


def index():
    """The list of all pages by family: the file, its paper, what it registers."""
    row = lambda path: (f"<li>{links([path])}<span>{linked(read(path).title)}</span>"
                        f"<span>{' · '.join(sorted(registered(path)))}</span></li>")
    lists = [f"<h2>{family}</h2><ul>{''.join(row(p) for p in site() if site()[p] == family)}</ul>"
             for family in dict.fromkeys(site().values())]
    return FRAME.format("Read along", "<header><h1>Read along</h1><p>The paper on the left, its "
                        f"code on the right.</p></header>{''.join(lists)}")
