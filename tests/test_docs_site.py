"""The site that `python -m docs` writes: every link, every entry, the code as it is."""

import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import pytest

from docs import __main__ as command
from docs import pages, sources
from lora import ADAPTERS
from merge import RULES
from support import refuses

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"https://arxiv\.org/abs/\d{4}\.\d{5}")
PATHS = sorted(sources.site())


class Page(HTMLParser):
    """What a page links to, its anchors, its words, its equations and its numbered lines."""

    def __init__(self, path):
        super().__init__()
        self.hrefs, self.images, self.ids, self.tags = [], [], [], set()
        self.text, self.equation, self.lines, self.links, self.inside = "", "", {}, {}, []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.inside, f"{path.name} leaves {self.inside} open"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.handle_data("" if tag in ("a", "b", "i") else " ")
        self.hrefs += [attrs["href"]] if "href" in attrs else []
        self.images += [attrs["src"]] if "src" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in ("meta", "link", "img", "br", "td", "th", "tr"):
            self.inside.append((tag, attrs.get("class"), attrs.get("id"), attrs.get("href")))

    def handle_endtag(self, tag):
        assert tag == self.inside.pop()[0]

    def handle_data(self, data):
        self.text += data
        if any(cls == "equation" for _, cls, _, _ in self.inside):
            self.equation += data
            self.links.setdefault(data, self.inside[-1][3])
        for tag, _, line, _ in self.inside:
            if line and tag == "span" and self.inside[-1][0] != "i":
                self.lines[line] = self.lines.get(line, "") + data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{name: Page} of a site that was written without a network."""
    out = tmp_path_factory.mktemp("docs") / "site"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", lambda *args, **keywords: pytest.fail("a socket"))
        command.main(["--out", str(out)])
    assert {p.suffix for p in out.iterdir()} == {".html", ".css", ".png"}
    return out, {path.name: Page(path) for path in out.glob("*.html")}


def packed(text):
    return " ".join(text.split())


def test_every_link_leads_somewhere(site):
    out, parsed = site
    followed = 0
    for name, page in parsed.items():
        assert len(set(page.ids)) == len(page.ids), name
        for href in page.hrefs:
            target, _, anchor = href.partition("#")
            followed += 1
            if not OUTSIDE.fullmatch(href):
                assert not target or (out / target).is_file(), (name, href)
                assert not anchor or anchor in parsed[target or name].ids, (name, href)
        assert all((out / image).is_file() for image in page.images), name
    assert followed > 1000                                       # and the parser sees them


def test_nothing_is_fetched_and_nothing_runs(site):
    out, parsed = site
    for name, page in parsed.items():
        text = (out / name).read_text()
        assert re.findall(r"<link[^>]*>", text) == ['<link rel="stylesheet" href="style.css">']
        assert "script" not in page.tags and not re.search(r'src="\w+:|<[^>]* on\w+=', text)
        assert 'name="viewport"' in text
    style = (out / "style.css").read_text()
    assert not re.search(r"url\(|@import|http", style)
    assert "prefers-color-scheme: dark" in style and "max-content" in style


@pytest.mark.parametrize("path", PATHS)
def test_the_code_is_the_file_without_its_docstring(site, path):
    """To the character, <, > and & included, under the numbers that the lines have in the file."""
    page = site[1][sources.address(path)]
    text = (ROOT / path).read_text().splitlines()
    first = int(min(page.lines, key=lambda line: int(line[1:]))[1:])
    assert page.lines == {f"L{n}": line + "\n" for n, line in enumerate(text, 1) if n >= first}
    assert text[first - 3] == '"""' or text[first - 3].endswith('"""')
    words = lambda said: {*re.findall(r"\w+", said)}
    assert words(sources.read(path).doc) <= words(page.text)


@pytest.mark.parametrize("name", sorted({*ADAPTERS, *RULES}))
def test_every_entry_has_a_page_with_its_equation_and_its_code(site, name):
    parsed = site[1]
    path, = (path for path in PATHS if name in sources.registered(path))
    page, doc = parsed[sources.address(path)], sources.read(path).doc
    for line in re.findall(r"^    (.*)", doc, re.MULTILINE)[:1]:           # a fork may have none
        assert packed(line) in packed(page.equation)
    for label in re.findall(r"^(Shapes|Differs|Note|Trap|Why|Cost) {2,}", doc, re.MULTILINE):
        assert label in page.text
    assert name in re.findall(r"\w+", parsed["index.html"].text)
    assert sources.address(path) in parsed["index.html"].hrefs
    assert f"{name} = variant(" in "".join(page.lines.values()) or re.search(
        rf"def {name}\(|class {ADAPTERS.get(name, Page).__name__}\b", "".join(page.lines.values()))


def test_terms_of_an_equation_lead_to_their_lines(site):
    page = site[1]["adapters.dora.html"]
    for term, line in (("m", "self.m ="), ("V", "V ="), ("n_i", "n ="), ("A", "s, A, B =")):
        assert line in page.lines[page.links[term][1:]], term
    lora = (ROOT / "lora.py").read_text().splitlines()
    assert "self.A = " in lora[sources.defined("lora.py")["A"] - 1]       # and not the local A
    assert page.links.get("W0") is None                          # the code has no name for it
    l_lora = site[1]["adapters.l_lora.html"]
    assert '"A0"' in l_lora.lines[l_lora.links["A0"][1:]]                 # a buffer


def test_what_belongs_to_a_page_stands_on_it(site):
    parsed = site[1]
    dora, ties = (packed(parsed[name].text) for name in ("adapters.dora.html", "merge.html"))
    assert "test_dora_eq_5" in dora and "test_vera_and_dvora" not in dora
    assert "dora 2402.09353 117,504 192 0.001" in dora             # docs/adapters.md
    assert "W, of d x k: columns are outputs W0, transposed" in dora   # docs/notation.md
    assert "test_ties_by_hand" in ties and "test_model_soup_and_task_arithmetic" in ties
    assert dora.endswith("Builds on lora.py What builds on it adapters/dvora.py")
    assert "test_lora_plus_learning_rates" not in parsed["lora.html"].text
    assert "test_entropy_by_hand" in parsed["rules.adamerging.html"].text
    assert '@pytest.mark.parametrize("taus, t"' in parsed["rules.model_stock.html"].text
    assert "adapters.dora.html" in parsed["lora.html"].hrefs
    assert parsed["rlhf.soup.html"].images == ["soup.png"]


def test_an_exercise_stands_on_the_pages_of_its_paper(tmp_path, monkeypatch):
    stage = tmp_path / "stage1.py"
    stage.write_text('"""Stage 1: DoRA. arXiv:2402.09353\n\nWrite m < 1 & n.\n"""\n'
                     "def ties():\n    pass\n")
    site = {**sources.site(), str(stage): "Exercises"}
    for module in (pages, sources):
        monkeypatch.setattr(module, "site", lambda: site)
    link = pages.links([str(stage)])
    assert link in pages.page("adapters/dora.py") and link in pages.page("adapters/dvora.py")
    assert link not in pages.page("adapters/vera.py")
    page = pages.page(str(stage))
    assert "Write m &lt; 1 &amp; n." in page
    assert "Measured" not in page and "by_hand" not in page      # its ties is no rule


def test_a_paper_has_a_page():
    """What names none has no page, unless it is a rule."""
    for path in sources.below("encoders/*.py") + sources.below("rlhf/*.py"):
        names_one = re.search(sources.ARXIV, sources.read(path).doc) and "__" not in path
        assert bool(names_one) == (path in PATHS), path


def test_text_is_escaped(site):
    for path in site[0].glob("*.html"):
        bare = re.search(r"<(?!/?\w|!doctype)|&(?!\w+;|#x27;)", path.read_text(encoding="utf-8"))
        assert not bare, (path.name, bare)
    assert pages.linked('a <b> & "c"') == "a &lt;b&gt; &amp; &quot;c&quot;"
    assert pages.table([["x < y"], ["\\|a\\|"]]).count("&lt;") == 1


def test_only_its_own_folder_is_written_over(site, tmp_path):
    command.checked(site[0])
    (tmp_path / "notes.txt").write_text("mine")
    refuses("is not empty", command.checked, tmp_path)
    index = tmp_path / "index.html"
    index.write_text("<h1>mine</h1>")
    refuses("is not empty", command.checked, tmp_path)
    index.write_text('<meta name="generator" content="python -m docs">')
    assert command.checked(tmp_path) == tmp_path
    (tmp_path / ".git").mkdir()
    (tmp_path / "old.html").write_text("of a page that is gone")
    command.main(["--out", str(tmp_path)])
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / ".git").is_dir()
    assert "mine" not in index.read_text() and not (tmp_path / "old.html").exists()
    assert command.checked(tmp_path / "new") == tmp_path / "new"
