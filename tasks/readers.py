"""From a folder to inputs and labels, for every published data set and for folders of one's own.

A reader takes a folder, whose files lie unpacked or in the published archive (archives.py), and
returns {"train": (inputs, labels), "test": ..., perhaps "val"}: inputs uint8 (n, h, w) or
(n, h, w, 3), or a list of texts or pairs; labels (n,) int64 from 0. The labels of GLUE's test files
are secret: `dev` is the test split here.
"""

import bz2
import csv
import io
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tasks import formats
from tasks import texts
from tasks.archives import files, one, several
from errors import BadInput

PARTS = {"train": "train", "test": "t10k"}


# ---- images --------------------------------------------------------------------------------------


def idx(folder, prefix="", archives=(), first=0, transposed=False):
    """The four files of the MNIST family; `first` is the smallest label in the file."""
    out = {}
    for split, part in PARTS.items():
        part = part if not prefix else split
        images, labels = several(folder, [f"{prefix}{part}-images-idx3-ubyte",
                                          f"{prefix}{part}-labels-idx1-ubyte"], archives)
        images, labels = formats.idx(*images, 3), formats.idx(*labels, 1)
        images = images.transpose(0, 2, 1) if transposed else images
        out[split] = images, labels.astype(np.int64) - first
    return out


def cifar(folder, label_bytes, train, test, archives):
    """CIFAR's binary files; the last label byte counts (fine classes)."""
    *parts, test = [formats.records(*file, label_bytes)
                    for file in several(folder, [*train, test], archives)]
    x, y = zip(*parts)
    return {"train": (np.concatenate(x), np.concatenate(y)), "test": test}


def stl10(folder, archives):
    """STL-10: labels 1 to 10, one byte each."""
    names = [f"{split}_{part}.bin" for split in ("train", "test") for part in "Xy"]
    found = several(folder, names, archives)                    # 2.6 GB: once
    return {split: (formats.columns(*found[i]),
                    np.frombuffer(found[i + 1][0], np.uint8).astype(np.int64) - 1)
            for split, i in (("train", 0), ("test", 2))}


def svhn(folder):
    """SVHN: X (32, 32, 3, n), y (n, 1) with 10 for the digit 0."""
    out = {}
    for split in ("train", "test"):
        content, source = one(folder, f"{split}_32x32.mat")
        found = formats.mat(content, source)
        if not {"X", "y"} <= found.keys() or found["X"].shape[:3] != (32, 32, 3):
            raise formats.damaged(source, "has no arrays X (32, 32, 3, n) and y")
        if not np.isin(found["y"], range(1, 11)).all():
            raise formats.damaged(source, "has labels that are not 1 to 10")
        out[split] = found["X"].transpose(3, 0, 1, 2), found["y"].ravel().astype(np.int64) % 10
    return out


def signs(pictures, tables, source, size=32):
    """GTSRB: {entry: bytes} of PPM pictures, and csv tables that name their classes."""
    label = {}
    for entry, content in tables.items():
        for row in csv.DictReader(io.StringIO(content.decode("utf-8", "replace")), delimiter=";"):
            try:
                label[Path(entry).parent.name, row["Filename"]] = int(row["ClassId"])
            except (KeyError, TypeError, ValueError):
                raise formats.damaged(entry, "lacks Filename or ClassId in a line") from None
    images, labels = [], []
    for entry, content in pictures.items():
        key = Path(entry).parent.name, Path(entry).name
        if key not in label:
            raise formats.damaged(source, f"has no label for {entry}")
        x = torch.from_numpy(formats.ppm(content, entry).copy()).permute(2, 0, 1)[None].float()
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        images.append(x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
        labels.append(label[key])
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8), \
        np.array(labels, np.int64)


def gtsrb(folder):
    """German traffic signs, pictures of all sizes resized to 32 x 32."""
    train = ["GTSRB-Training_fixed.zip"]
    ends = lambda end, part: lambda name: name.endswith(end) and part in f"/{name}"
    test = files(folder, ends(".ppm", "/Final_Test/"), ["GTSRB_Final_Test_Images.zip"])
    table = files(folder, ends("GT-final_test.csv", "/"), ["GTSRB_Final_Test_GT.zip"])
    return {"train": signs(files(folder, ends(".ppm", "/Training/"), train),
                           files(folder, ends(".csv", "/Training/"), train), folder),
            # the table of the test pictures lies in another folder than they do
            "test": signs(test, {f"Images/{Path(k).name}": v for k, v in table.items()}, folder)}


def usps(folder):
    """USPS: 16 x 16 values in [-1, 1], labels 1 to 10 for the digits 0 to 9."""
    out = {}
    for split, name in (("train", "usps"), ("test", "usps.t")):
        found = files(folder, lambda entry: entry in (name, f"{name}.bz2"))
        if not found:
            raise BadInput(f"{folder} has no {name}.bz2: give --data the folder that has it")
        entry, content = next(iter(found.items()))
        try:
            content = bz2.decompress(content) if entry.endswith(".bz2") else content
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(f"{folder}/{entry} cannot be unpacked ({error}): fetch it again") \
                from None
        x, y = formats.libsvm(content, f"{folder}/{entry}", 256)
        out[split] = (np.round((x + 1) * 127.5).clip(0, 255).astype(np.uint8).reshape(-1, 16, 16),
                      y - 1)
    return out


def medmnist(folder, name):
    """A set of MedMNIST: an npz with images and labels of three splits."""
    content, source = one(folder, f"{name}.npz")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            parts = {split: (file[f"{split}_images"], file[f"{split}_labels"])
                     for split in ("train", "val", "test")}
            return {split: (x, y.reshape(len(x)).astype(np.int64)) for split, (x, y) in
                    parts.items()}
    except Exception as error:                       # numpy, zip and zlib each have their own
        raise formats.damaged(source, f"cannot be read ({error})") from None


def pictures(folder):
    """Any pictures in train/CLASS/ and test/CLASS/, by Pillow; all in the size of the first."""
    try:
        from PIL import Image
    except ImportError:
        raise BadInput(f"{folder} holds pictures, which need Pillow: pip install pillow") from None
    classes = sorted(p.name for p in Path(folder, "train").glob("[!.]*") if p.is_dir())
    out, size = {}, None
    for split in ("train", "test"):
        images, labels = [], []
        for path in sorted(p for p in Path(folder, split).rglob("[!.]*") if p.is_file()):
            if path.parent.name not in classes:
                raise BadInput(f"{path}: train/ has no class {path.parent.name}, it has "
                               f"{', '.join(classes[:8])}")
            try:
                picture = Image.open(path).convert("RGB")
            except OSError as error:
                raise BadInput(f"{path} is no picture ({error}): remove or replace it") from None
            size = size or picture.size
            images.append(np.asarray(picture.resize(size)))
            labels.append(classes.index(path.parent.name))
        if not images:
            raise BadInput(f"{folder}/{split} holds no pictures: it wants {split}/CLASS/*.png")
        out[split] = np.stack(images), np.array(labels, np.int64)
    return out


# ---- texts ---------------------------------------------------------------------------------------


def split_texts(folder, columns, classes, train=("train.tsv",), test=("dev.tsv",), header=True,
          archives=()):
    """train and test files of tab-separated columns, the label last; classes None: those of train,
    sorted."""
    out, own = {}, classes is None
    for split, names in (("train", train), ("test", test)):
        there = lambda name: files(folder, lambda e: f"/{e}".endswith(f"/{name}"), archives)
        name = next(filter(there, names[:-1]), names[-1])     # an archive is read once
        content, source = one(folder, name, archives)
        rows = texts.tsv(content, source, columns, header, exact=own)
        classes = classes or sorted({row[-1] for row in rows})
        x, y = texts.labelled(rows, classes, source)
        out[split] = x, np.array(y, np.int64)
    return out


def ag_news(folder):
    """AG News: four classes, 1 to 4 in the file."""
    out = {}
    for split in ("train", "test"):
        content, source = one(folder, f"{split}.csv")
        x, y = texts.labelled(texts.ag_news(content, source), "1234", source)
        out[split] = x, np.array(y, np.int64)
    return out


def stsb(folder):
    """STS-B scores sentences from 0 to 5; accuracy is not defined for it."""
    raise BadInput("stsb is a regression task, the heads here are classifiers: choose another task")


def by_content(folder):
    """(kind, reader) of a folder whose task name is not in the table, or BadInput."""
    path = Path(folder)
    if any(path.rglob("*idx3-ubyte*")):
        return "image", idx
    if (path / "train.tsv").is_file():
        return "text", partial(split_texts, columns=("sentence", "label"), classes=None,
                               test=("test.tsv", "dev.tsv"))
    if (path / "train").is_dir() and (path / "test").is_dir():
        return "image", pictures
    raise BadInput(f"{folder} has no train-images-idx3-ubyte[.gz], no train.tsv and no train/ and "
                   "test/ of pictures: --data wants one of these, or name the task of a known set")
