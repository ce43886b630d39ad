"""A site to read along on, the paper on the left, its code on the right: site/ or --out FOLDER."""

import argparse
import re
import shutil
from pathlib import Path

from docs import pages
from docs.sources import ROOT, address, site
from encoders.safetensors import replacing
from errors import BadInput
from experiment import cli


def checked(out):
    """The folder to write; BadInput unless it is new, empty or made by this command."""
    index = out / "index.html"
    made = index.is_file() and 'content="python -m docs"' in index.read_text(errors="replace")
    if out.exists() and any(out.iterdir()) and not made:
        raise BadInput(f"--out {out} is not empty and no site: give a new or an empty folder")
    return out.absolute()


def main(arguments=None):
    """Write all pages, the stylesheet and the pictures that they show."""
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="default: site")
    out = checked(parser.parse_args(arguments).out)
    html = {"index.html": pages.index()} | {address(path): pages.page(path) for path in site()}
    with replacing(out) as folder:
        folder.mkdir()
        for name, text in html.items():
            (folder / name).write_text(text, encoding="utf-8")
        for picture in re.findall(r'<img src="([^"]+)"', "".join(html.values())):
            shutil.copy(ROOT / "docs" / "figures" / picture, folder)
        shutil.copy(ROOT / "docs" / "style.css", folder)
        for other in [*out.iterdir()] if out.exists() else ():           # .git, CNAME, notes.txt
            if other.is_dir() or other.suffix not in (".html", ".css", ".png"):
                shutil.move(other, folder)
    print(f"{len(html)} pages  ->  {(out / 'index.html').as_uri()}")


if __name__ == "__main__":
    cli.run(main)
