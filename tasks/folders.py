"""One's own data, as it lies in a folder. Three forms, each with a training and a test split:

    table      train.csv  test.csv   a column `label`, one text or a pair; in .tsv and .txt: tabs
    arrays     train.npz  test.npz   x and y; or one .npz with x_train, y_train, x_test, y_test
    pictures   train/CLASS/a.png  test/CLASS/b.png   whatever Pillow reads

The test split is the first of TESTS that is there and has labels. Classes are numbered in the
sorted order of train's labels; blanks around a label do not count, capitals do.
"""

import csv
import io
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import BadInput
from tasks import formats
from tasks.archives import named
from tasks.pictures import below, pixels, stack, visible
from tasks.readers import class_name, numbers

TESTS = ("test", "dev", "validation", "valid", "val")    # the first is test, the second is val
LABELS = ("label", "labels", "class", "category", "target")              # the first that is there
TEXTS = ("text", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "question",
         "question1", "question2", "text1", "text2", "answer", "passage", "query")
X, Y = {"x", "images", "image", "data"}, {"y", "labels", "label", "targets", "target"}
TABLE = r"\.(csv|tsv|txt)(\.gz|\.bz2)?"
ACCEPTED = ("train.csv and test.csv (or .tsv) with a header such as text,label; train.npz and "
            "test.npz with x and y, or one .npz with x_train, y_train, x_test, y_test; pictures "
            "such as train/cat/1.png and test/cat/2.png; train-images-idx3-ubyte[.gz] and its "
            "three companions")


class Part(NamedTuple):
    """One split as it was read."""

    source: str             # for messages
    inputs: object
    labels: list            # None: it has none, or they are secret
    like: object            # what test has in common with train: columns of text, a picture's size


def find(folder):
    """("image" or "text", reader) of the data in a folder; None if there is none."""
    names = [path.name.lower() for path in Path(folder).iterdir()]
    if rows := [name for name in names if re.fullmatch("train" + TABLE, name)]:
        if "train" in names:
            raise BadInput(f"{folder} has {rows[0]} and a folder train: keep one of them there")
        return "text", table
    if "train" in names:
        return "image", pictures
    return ("image", arrays) if any(name.endswith((".npz", ".npy")) for name in names) else None


def read(reader, folder):
    """{split: (inputs, class numbers)}; reader is table, arrays or pictures."""
    train = reader(folder, "train", None)
    if train is None or train.labels is None:
        raise BadInput(f"{folder} has no training data with labels: --data wants {ACCEPTED}")
    parts = (reader(folder, split, train) for split in TESTS)
    held = [*islice((part for part in parts if part and part.labels is not None), 2)]
    if not held:
        raise BadInput(f"{folder} has training data, and none with labels that is named "
                       f"{' or '.join(TESTS)}: set some examples of train apart as test")
    classes = sorted(set(train.labels))
    return {split: (part.inputs, numbers(part.labels, classes, part.source))
            for split, part in zip(("train", "test", "val"), (train, *held))}


# ---- table ---------------------------------------------------------------------------------------


def cells(content, source):
    """[(line number, cells)] of a table, the header first, all of one length; no empty lines."""
    text, apart = formats.text_of(content, source), "\t"
    if re.search(r"\.csv(\.gz|\.bz2)?$", source, re.IGNORECASE):
        apart = max(",;\t", key=text.partition("\n")[0].count)
        usual = csv.field_size_limit(len(text) + 1)                    # a text may be a book
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=apart, strict=True)
        try:
            rows = [(lines.line_num, row) for row in lines]
        except csv.Error as error:
            raise BadInput(f"{source} line {lines.line_num} is no csv ({error}): is a quotation "
                           "mark left open, or not doubled inside a text?") from None
        finally:
            csv.field_size_limit(usual)
    else:
        rows = [(n, line.rstrip("\r").split("\t")) for n, line in enumerate(text.split("\n"), 1)]
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise BadInput(f"{source} is empty: it wants a header with label, and a line per example")
    for number, row in rows:
        if len(row) != (needed := len(rows[0][1])):
            mark = {"\t": "a tab", ",": "a comma without quotation marks"}.get(apart, apart)
            raise BadInput(f"{source} line {number} has {len(row)} cells and needs {needed}: "
                           f"it was cut short, or a text contains {mark}")
    return rows


def text_columns(header, rows, label, source):
    """Names of the columns of text: one, or the two of a pair.

    Of several, those are none that hold nothing but numbers, as an index does, or that say the
    label once more, such as label_text.
    """
    found = [i for i in range(len(header)) if i != label]
    if len(found) > 1:
        number = re.compile(r"\s*[-+]?[\d.]*\s*").fullmatch
        found = [i for i in found if header[i] not in LABELS and "label" not in header[i]
                 and not all(number(row[i]) for _, row in rows)]
    usual = [i for i in found if header[i] in TEXTS]
    if len(found) == 2 and len(usual) < 2:
        raise BadInput(f"{source} has {' and '.join(header[i] for i in found)}: leave one out, or "
                       "name both texts of a pair as usual, such as sentence1,sentence2")
    found = usual if len(found) > 2 else found
    if label is None or len(found) not in (1, 2):
        raise BadInput(f"{source} has the columns {', '.join(header)[:100]}: it wants one named "
                       "label, and a text or the two of a pair, such as text,label")
    return [header[i] for i in found]


def table(folder, split, train):
    """Texts or pairs with their labels; None if the split is not there."""
    there = sorted(path.name for path in Path(folder).iterdir()
                   if re.fullmatch(split + TABLE, path.name, re.IGNORECASE))
    if not there:
        return None
    if len(there) > 1:
        raise BadInput(f"{folder} has {there[0]} and {there[1]}: keep one of them there")
    (content, source), = named(folder, there)
    (_, header), *rows = cells(content, source)
    header = [name.strip().lower() for name in header]
    label = next((header.index(name) for name in LABELS if name in header), None)
    texts = train.like if train else text_columns(header, rows, label, source)
    labels = None if label is None else [class_name(row[label]) for _, row in rows]
    if labels is None or rows and set(labels) <= {"", "-1", "?"}:
        return Part(source, None, None, texts)
    if "" in labels:
        raise BadInput(f"{source} line {rows[labels.index('')][0]} has no label: give it one, "
                       "or leave it out")
    if missing := [name for name in texts if name not in header]:
        raise BadInput(f"{source} has no column {missing[0]!r}, train has: name both alike")
    at = [header.index(name) for name in texts]
    inputs = [tuple(row[i] for i in at) if len(at) == 2 else row[at[0]] for _, row in rows]
    return Part(source, inputs, labels, texts)


# ---- arrays --------------------------------------------------------------------------------------


def arrays(folder, split, train):
    """x and y, by words in the names of arrays and files; None if the split is not there."""
    words = lambda name: set(re.split(r"[^a-z]+", name.lower()))
    found = {}
    for path in sorted(Path(folder).glob("*.np[yz]")):
        try:
            held = np.load(path, mmap_mode="r", allow_pickle=False)
            for key in getattr(held, "files", [""]):                             # "" in an .npy
                name = words(key)
                name |= set() if name & {"train", *TESTS} else words(path.stem)
                what = "x" if name & X else "y" if name & Y else None
                if what and len(name & {"train", *TESTS}) > 1:
                    raise ValueError(f"{key or path.stem} names two splits")
                if split in name and what in found:
                    raise ValueError(f"it has a second {what} of {split}")
                if split in name and what:
                    found[what] = np.asarray(held[key] if key else held)
        except Exception as error:                     # numpy has no one kind for a damaged file
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise BadInput(f"{path} cannot be used ({reason}): write it with numpy.savez, "
                           "x (n, h, w) or (n, h, w, 3) and y (n,)") from None
    if "x" not in found:
        return None
    y = found.get("y", np.array([-1]))
    if (y == -1).all():
        return Part(f"{folder}: {split}", None, None, None)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.dtype.kind not in "iubU" or y.ndim != 1:
        raise BadInput(f"{folder}: y of {split} is {y.dtype} of shape {y.shape}: give one whole "
                       "number or name for each picture")
    labels = [class_name(label) for label in y.tolist()] if y.dtype.kind == "U" else y.tolist()
    return Part(f"{folder}: {split}", pixels(found["x"], f"{folder}: x of {split}"), labels, None)


# ---- pictures ------------------------------------------------------------------------------------


def pictures(folder, split, train):
    """Pictures in the folders of their classes; None if the split is not there."""
    place = next((p for p in visible(folder) if p.name.lower() == split and p.is_dir()), None)
    classes = [path for path in visible(place) if path.is_dir()] if place else []
    if not classes:
        return None
    if loose := [path for path in visible(place) if path not in classes]:
        raise BadInput(f"{loose[0]} is in no folder of a class: put it into one, or remove it")
    files = {path: below(path) for path in classes}
    if empty := [path for path in classes if not files[path]] if train is None else []:
        raise BadInput(f"{empty[0]} holds no pictures: add some, or remove the folder")
    if not any(files.values()):
        raise BadInput(f"{place} holds no pictures: it wants some such as {split}/CLASS/1.png")
    images = stack(sum(files.values(), []), train and train.like)
    labels = [class_name(path.name) for path in classes for _ in files[path]]
    return Part(str(place), images, labels, images.shape[2:0:-1])
