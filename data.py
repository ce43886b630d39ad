"""Tasks: where images and labels come from, and how they are split.

    train   fine-tuning, and the class prototypes of the head
    val     every choice: learning rate, coefficient, rule
    calib   unlabelled (labels are -1), for rules that look at data
    test    reported once

The eight generated tasks of suite.py need no file. A folder of IDX files (the MNIST family: MNIST,
Fashion-MNIST, KMNIST, ...) is a task with `--data FOLDER`; val and calib are cut from its training
file in a fixed random order. The four splits are disjoint.

IDX file: bytes 0 0 8 d (unsigned bytes in d dimensions), d big-endian uint32 sizes, the values.
Four of them, gzipped or not: {train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz].
"""

import gzip
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

import suite
import text_suite
from errors import BadInput, unknown

SPLITS = {"train": (2000, 101), "val": (500, 102), "test": (1000, 103), "calib": (500, 104)}
TASKS = suite.TASKS | text_suite.TASKS
IDX_CLASSES = {"mnist": 10, "mnist5k": 10, "fashion_mnist": 10, "kmnist": 10}


def check(task, folder=None):
    """Raise BadInput unless `task` is built in, or `folder` holds its IDX files; quick."""
    if folder is None and task not in TASKS:
        raise unknown("task", task, [*TASKS, "all", "or any name with --data FOLDER"])
    if folder is not None and task in TASKS:
        raise BadInput(f"{task} is a generated task: leave out --data, or name the task otherwise")
    if folder is not None:
        for part in ("train", "t10k"):
            idx_path(folder, f"{part}-images-idx3-ubyte")
            idx_path(folder, f"{part}-labels-idx1-ubyte")


def classes(task, folder=None):
    """Number of classes."""
    return TASKS[task][1] if folder is None else idx_folder(task, folder)["classes"]


def kind(task, folder=None):
    """"image" or "text": which models a task is for."""
    return "text" if folder is None and task in text_suite.TASKS else "image"


def load(task, split, folder=None, limit=None, encode=None):
    """Images (n, 1, h, w) float32 in [0, 1] and labels (n,) int64 of one split.

    encode   list of texts or pairs -> ids (n, T) int64, what text tasks give in place of images
    folder   where the IDX files are; None for the generated tasks
    limit    at most this many examples
    """
    if folder is not None:
        images, labels = idx_split(task, split, folder)
    elif kind(task) == "image":
        images, labels = generated(task, split)
    else:
        texts, labels = generated_texts(task, split)
        images, labels = encode(texts[:limit]), labels[:limit]
    return images[:limit], labels[:limit]


@lru_cache(maxsize=64)
def generated(task, split):
    """A split of a built-in task; drawn once per process."""
    n, seed = SPLITS[split]
    images, labels = suite.sample(task, n, seed)
    images, labels = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    return images, labels if split != "calib" else -torch.ones_like(labels)


@lru_cache(maxsize=64)
def generated_texts(task, split):
    """The same of a text task: list of texts or pairs, labels (n,)."""
    n, seed = SPLITS[split]
    texts, labels = text_suite.sample(task, n, seed)
    labels = torch.from_numpy(labels)
    return texts, labels if split != "calib" else -torch.ones_like(labels)


# ---- IDX files -----------------------------------------------------------------------------------


def idx_path(folder, stem):
    """The file `stem` of a folder, gzipped or not."""
    for name in (f"{stem}.gz", stem):
        if (path := Path(folder) / name).is_file():
            return path
    raise BadInput(f"{folder} has no {stem}[.gz]: "
                   "--data wants the four IDX files of the MNIST family")


def read_idx(path, dimensions):
    """An IDX file as a uint8 array; BadInput on a wrong magic number or a wrong number of bytes."""
    try:
        data = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} cannot be unpacked ({error}): fetch it again") from None
    if data[:4] != bytes([0, 0, 8, dimensions]):
        raise BadInput(f"{path} starts with {data[:4].hex()}, "
                       f"an IDX file of {dimensions} dimensions with 0000080{dimensions}: "
                       "is it the right file?")
    head = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:head]) if len(data) >= head else (0,)
    if len(data) - head != np.prod(shape, dtype=np.int64):
        held = max(len(data) - head, 0)
        raise BadInput(f"{path} promises {shape} values and holds {held} bytes: "
                       "it was cut short or is damaged, fetch it again")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


@lru_cache(maxsize=8)
def idx_folder(task, folder):
    """{"train": (images, labels), "test": ..., "classes": K} of a folder of IDX files."""
    out = {}
    for split, part in (("train", "train"), ("test", "t10k")):
        images = read_idx(idx_path(folder, f"{part}-images-idx3-ubyte"), 3)
        labels = read_idx(idx_path(folder, f"{part}-labels-idx1-ubyte"), 1)
        if not len(labels):
            raise BadInput(f"{folder}: the {part} files hold no examples")
        if len(images) != len(labels):
            raise BadInput(f"{folder}: {len(images)} {part} images but {len(labels)} labels")
        out[split] = images, labels.astype(np.int64)
    out["classes"] = IDX_CLASSES.get(task, int(out["train"][1].max()) + 1)
    for split in ("train", "test"):
        if (worst := int(out[split][1].max())) >= out["classes"]:
            raise BadInput(f"{folder}: label {worst} in the {split} file, but {task} has "
                           f"{out['classes']} classes: 0 to {out['classes'] - 1}")
    return out


def idx_split(task, split, folder):
    """A split of a folder: val and calib are a tenth of its training file each, at most 1000."""
    images, labels = idx_folder(task, folder)["test" if split == "test" else "train"]
    if split != "test":
        order = np.random.default_rng(0).permutation(len(images))
        held = min(1000, len(images) // 10)
        rows = {"val": order[:held],
                "calib": order[held:2 * held],
                "train": order[2 * held:]}[split]
        images, labels = images[rows], labels[rows]
    if split == "calib":
        labels = np.full_like(labels, -1)
    return torch.from_numpy(images.astype(np.float32) / 255)[:, None], torch.from_numpy(labels)
