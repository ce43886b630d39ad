"""Tasks: where images and labels come from, and how they are split.

    train   fine-tuning, and the class prototypes of the head
    val     every choice: learning rate, coefficient, rule
    calib   unlabelled (labels are -1), for rules that look at data
    test    reported once

The generated tasks of drawn.py (images) and written.py need no file. With `--data FOLDER` a task
is one of the published sets of published.py, or whatever the folder holds (readers.py). There, test
is the official test split, or the labelled `dev` where test labels are secret; calib, and val where
the set has none, are cut from its training examples in a fixed random order. The four splits are
disjoint.
"""

from functools import lru_cache

import numpy as np
import torch

from tasks import published
from tasks import drawn
from tasks import written
from errors import BadInput, unknown

SPLITS = {"train": (2000, 101), "val": (500, 102), "test": (1000, 103), "calib": (500, 104)}
TASKS = drawn.TASKS | written.TASKS


def check(task, folder=None):
    """Raise BadInput unless `task` is built in, or `folder` holds a data set that can be read."""
    if folder is None and task not in TASKS:
        raise unknown("task", task, [*TASKS, "all", "or any name with --data FOLDER"])
    if folder is not None and task in TASKS:
        raise BadInput(f"{task} is a generated task: leave out --data, or name the task otherwise")
    if folder is not None:
        published.read(task, folder)


def classes(task, folder=None):
    """Number of classes."""
    return TASKS[task][1] if folder is None else published.read(task, folder)[1]


def kind(task, folder=None):
    """"image" or "text": which models a task is for."""
    if folder is not None:
        return published.entry(task, folder).kind
    return "text" if task in written.TASKS else "image"


def load(task, split, folder=None, limit=None, encode=None):
    """Inputs and labels (n,) int64 of one split; images (n, C, h, w) float32 in [0, 1].

    folder   where the files of a data set are; None for the generated tasks
    limit    at most this many examples
    encode   a list of texts or pairs -> ids (n, T) int64, the inputs of text tasks
    """
    source = generated(task, split) if folder is None else from_folder(task, split, folder)
    inputs, labels, rows = *source[:2], source[2][:limit]
    labels = torch.from_numpy(labels[rows] if split != "calib" else np.full(len(rows), -1))
    if kind(task, folder) == "text":
        if encode is None:
            raise BadInput(f"{task} is a task of texts: give it a text model")
        return encode([inputs[i] for i in rows]), labels
    images = torch.from_numpy(inputs[rows])
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return (images if images.is_floating_point() else images.float() / 255), labels


@lru_cache(maxsize=64)
def generated(task, split):
    """(inputs, labels, all rows) of a built-in task; drawn once per process."""
    n, seed = SPLITS[split]
    sample = written.sample if task in written.TASKS else drawn.sample
    return *sample(task, n, seed), np.arange(n)


def from_folder(task, split, folder):
    """(inputs, labels, rows of the split) of a data set in a folder.

    calib, and val where there is none, are a tenth of the training examples, at most 1000.
    """
    parts, _ = published.read(task, folder)
    if split in parts and split != "train":
        return *parts[split], np.arange(len(parts[split][1]))
    inputs, labels = parts["train"]
    order = np.random.default_rng(0).permutation(len(labels))
    held = min(1000, len(labels) // 10)
    cuts = {"val": 0 if "val" in parts else held, "calib": held}
    at = {"val": order[:cuts["val"]], "calib": order[cuts["val"]:cuts["val"] + held],
          "train": order[cuts["val"] + held:]}
    return inputs, labels, at[split]
