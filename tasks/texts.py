"""Text files with labels: a table of lines and tab-separated columns, or AG News' csv.

Columns are addressed by the names in the header line. A line is split at tabs and nowhere else, and
quotation marks are text: the sets of GLUE are written that way.
"""

import csv
import io

from errors import BadInput


def lines_of(content, source):
    """The lines of a file as text; UTF-8 with or without a byte order mark."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{source} is not UTF-8 text ({error.reason} at byte {error.start}): "
                       "convert it first") from None
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]


def tsv(content, source, columns, header=True, exact=False):
    """The named columns of every line, a list of tuples of str.

    columns   names in the header line; without header, numbers from 0
    exact     a line has as many cells as the header: a tab in a text would shift the label
    BadInput for a column that is not there, a line with too few, and an empty label (the last).
    """
    lines, rows = lines_of(content, source), []
    if not lines:
        raise BadInput(f"{source} is empty: fetch it again")
    at = columns
    if header:
        names = lines[0].split("\t")
        if missing := [c for c in columns if c not in names]:
            raise BadInput(f"{source} has no column {missing[0]!r}, its header is "
                           f"{', '.join(names[:8])}: is it the right file?")
        at = [names.index(c) for c in columns]
    for number, line in enumerate(lines[header:], 1 + header):
        cells = line.split("\t")
        if len(cells) <= max(at):
            raise BadInput(f"{source} line {number} has {len(cells)} columns and needs "
                           f"{max(at) + 1}: it was cut short or is damaged")
        if exact and len(cells) != len(names):
            raise BadInput(f"{source} line {number} has {len(cells)} cells, the header "
                           f"{len(names)}: a text must not contain a tab")
        rows.append(tuple(cells[i] for i in at))
        if not rows[-1][-1].strip():
            raise BadInput(f"{source} line {number} has no label: is it a test file?")
    return rows


def ag_news(content, source):
    """(title and description, class) of every line of AG News' csv."""
    try:
        records = list(csv.reader(io.StringIO("\n".join(lines_of(content, source)))))
    except csv.Error as error:
        raise BadInput(f"{source} is no csv ({error}): fetch it again") from None
    for number, cells in enumerate(records, 1):
        if len(cells) != 3:
            raise BadInput(f"{source} record {number} has {len(cells)} fields, not class, title "
                           "and description: it was cut short or is damaged")
    return [(f"{title} {description}", label) for label, title, description in records]


def labelled(rows, classes, source):
    """Texts (or pairs) and their class numbers from rows (text, ..., label); labels by position."""
    known = {name: i for i, name in enumerate(classes)}
    if odd := [row[-1] for row in rows if row[-1] not in known]:
        raise BadInput(f"{source} has the label {odd[0]!r}, the task knows "
                       f"{', '.join(map(str, list(known)[:8]))}: correct it or leave it out")
    texts = [row[0] if len(row) == 2 else row[:-1] for row in rows]
    return texts, [known[row[-1]] for row in rows]
