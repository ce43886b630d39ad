"""Tasks: where inputs and labels come from, and how they are split.

    train   fine-tuning, and what the head is fitted to
    val     every choice: learning rate, coefficient, rule
    calib   unlabelled (labels are -1), for rules that look at data
    test    reported once

The generated tasks need no file. With `--data FOLDER` a task is one of the sets of published.py, or
what folders.py finds there: test is the official test split, or a labelled `dev` where test labels
are secret; calib, and val where there is none, are a tenth of the training examples, at most 1000,
in a fixed random order. The four splits are disjoint.
"""

from functools import lru_cache
from zlib import crc32

import numpy as np
import torch

from errors import BadInput, unknown

SPLITS = {"train": (2000, 101), "val": (500, 102), "test": (1000, 103), "calib": (500, 104)}


def suite(kind):
    """The module of the generated tasks of "image" or "text"; its TASKS has their names."""
    if kind == "image":
        from tasks import drawn
        return drawn
    from tasks import written
    return written


def about(task, folder=None):
    """(kind, classes, parts) of a task; parts is {split: (inputs, labels)} for a task of a folder,
    None for a generated one."""
    if folder is not None:
        from tasks import published
        return published.read(task, folder)
    for kind in ("image", "text"):
        if task in suite(kind).TASKS:
            return kind, suite(kind).TASKS[task][1], None
    raise unknown("task", task, [*suite("image").TASKS, *suite("text").TASKS, "all",
                                 "or any name with --data FOLDER"])


def check(task, folder=None):
    """Raise BadInput unless `task` is generated, or `folder` holds a data set that can be read."""
    if folder is not None and (task in suite("image").TASKS or task in suite("text").TASKS):
        raise BadInput(f"{task} is a generated task: leave out --data, or name the task otherwise")
    parts = about(task, folder)[2]
    if parts is not None and (n := len(parts["train"][1])) < 10:
        raise BadInput(f"{folder} has {n} training examples: give at least 10, of which a tenth "
                       "each becomes val and calib")


def kind(task, folder=None):
    """"image" or "text": which models a task is for."""
    return about(task, folder)[0]


def mark(task, folder):
    """{split: crc32 of its labels}, by which a run knows the data set of a folder again."""
    return {split: crc32(labels.tobytes()) for split, (_, labels) in about(task, folder)[2].items()}


def classes(task, folder=None):
    """Number of classes."""
    return about(task, folder)[1]


def load(task, split, folder=None, limit=None, encode=None):
    """Inputs and labels (n,) int64 of one split; images (n, C, h, w) float32 in [0, 1].

    folder   where the files of a data set are; None for the generated tasks
    limit    at most this many examples, the first
    encode   a list of texts or pairs -> ids (n, T) int64, the inputs of text tasks
    """
    kind, _, parts = about(task, folder)
    inputs, labels, rows = cut(parts, split) if parts else generated(task, split, kind)
    rows = rows[:limit]
    labels = torch.from_numpy(labels[rows] if split != "calib" else np.full(len(rows), -1))
    if kind == "text":
        if encode is None:
            raise BadInput(f"{task} is a task of texts: give it a text model")
        return encode([inputs[i] for i in rows]), labels
    images = torch.from_numpy(inputs[rows])
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return (images if images.is_floating_point() else images.float() / 255), labels


def prompts(task, encode=None):
    """Clean drawings of every class of a drawn task (n, 1, 28, 28), or the ids (n, T) of plain
    sentences for a written task, and their labels (n,)."""
    from tasks import prompts as drawings
    from tasks import sayings
    if task in drawings.PROMPTS:
        images, labels = drawings.sample(task)
        return torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    texts, labels = sayings.sample(task)
    return encode(texts), torch.from_numpy(labels)


@lru_cache(maxsize=64)
def generated(task, split, kind):
    """(inputs, labels, all rows) of a generated task, made once per process."""
    n, seed = SPLITS[split]
    return *suite(kind).sample(task, n, seed), np.arange(n)


def cut(parts, split):
    """(inputs, labels, rows of the split) of a data set {split: (inputs, labels)}, in a random
    order, always the same: files may be sorted by class, and some users take the first few."""
    inputs, labels = parts[split if split in parts else "train"]
    order, held = np.random.default_rng(0).permutation(len(labels)), min(1000, len(labels) // 10)
    if split in parts and split != "train":
        return inputs, labels, order
    val = 0 if "val" in parts else held
    rows = {"val": order[:val], "calib": order[val:val + held], "train": order[val + held:]}
    return inputs, labels, rows[split]
