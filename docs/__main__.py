"""Write a site to read along on: the paper on the left, its code on the right.

    python -m docs                    # into site/ of the repository
    python -m docs --out FOLDER
"""

import argparse
import re
import shutil
import time
from pathlib import Path

from docs import pages, sources
from encoders.safetensors import replacing
from errors import BadInput
from experiment import cli


def checked(out):
    """The folder to write; BadInput unless it is new, empty or made by this command."""
    index, inside = out / "index.html", sorted(out.iterdir()) if out.exists() else []
    made = index.is_file() and 'content="python -m docs"' in index.read_text(errors="replace")
    if strange := [p.name for p in inside if not made or p.suffix not in (".html", ".css", ".png")]:
        raise BadInput(f"--out {out} has {strange[0]} in it, which this command has not written: "
                       "give a new or an empty folder")
    return out.absolute()


def write(folder):
    """All pages, the stylesheet and the pictures that they show; returns the number of pages."""
    folder.mkdir()
    html = {sources.address(path): pages.page(path) for path in sources.site()}
    for name, text in {"index.html": pages.index(), **html}.items():
        (folder / name).write_text(text, encoding="utf-8")
        for picture in re.findall(r'<img src="([^"]+)"', text):
            shutil.copy(sources.ROOT / "docs" / "figures" / picture, folder)
    shutil.copy(sources.ROOT / "docs" / "style.css", folder)
    return len(html) + 1


def main(arguments=None):
    """Write the site and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=sources.ROOT / "site", help="default: site")
    out, start = checked(parser.parse_args(arguments).out), time.perf_counter()
    with replacing(out) as folder:
        count = write(folder)
    print(f"{count} pages in {time.perf_counter() - start:.1f} s  ->  {out}\n"
          f"open {(out / 'index.html').as_uri()}")


if __name__ == "__main__":
    cli.run(main)
