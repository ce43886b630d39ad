"""The text suite: deterministic, disjoint, balanced, right by hand, and no bag of words solves it."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import language
import text_suite
from text_suite import TASKS, relation, sample

every_task = pytest.mark.parametrize("task", TASKS)
flat = lambda text: text if isinstance(text, str) else " | ".join(text)


@every_task
def test_texts_are_deterministic_short_balanced_and_in_the_vocabulary(task):
    known, classes = set(language.vocabulary()), TASKS[task][1]
    texts, labels = sample(task, 600, 9)
    again, same = sample(task, 600, 9)
    assert texts == again and np.array_equal(labels, same) and texts != sample(task, 600, 13)[0]
    assert labels.dtype == np.int64 and len(texts) == len(labels) == 600
    counts = np.bincount(labels[:500], minlength=classes)
    assert len(counts) == classes and counts.max() - counts.min() <= 1
    for text in texts:
        for part in (text,) if isinstance(text, str) else text:
            assert set(part.split()) <= known and len(part.split()) <= 16, part
    pairs = {"paraphrase", "entail"}
    assert {type(t) for t in texts} == {tuple if task in pairs else str}


@every_task
def test_a_prefix_is_stable(task):
    short, long = sample(task, 500, 9), sample(task, 1000, 9)
    assert short[0] == long[0][:500] and np.array_equal(short[1], long[1][:500])
    assert long[0][:500] != long[0][500:]
    assert sample(task, 7, 9)[0] == long[0][:7] and len(sample(task, 0, 9)[0]) == 0


@every_task
def test_splits_share_no_text(task):
    splits = [set(sample(task, *data.SPLITS[split])[0]) for split in data.SPLITS]
    assert len(set.union(*splits)) == sum(map(len, splits))
    assert sum(map(len, splits)) > 0.9 * 4000                        # and few texts come twice


# ---- no bag of words -----------------------------------------------------------------------------


def word_counts(texts, words):
    """Counts (n, V), or (n, 2V) of pairs: one half per sentence."""
    index, rows = {w: i for i, w in enumerate(words)}, []
    for text in texts:
        parts = (text,) if isinstance(text, str) else text
        row = np.zeros((len(parts), len(words)))
        for part, counts in zip(parts, row):
            np.add.at(counts, [index[w] for w in part.split()], 1)
        rows.append(row.ravel())
    return torch.tensor(np.stack(rows))


def logistic_regression(x, y, classes, ridge):
    """Weights (K, V + 1) of multinomial logistic regression by L-BFGS."""
    x = F.pad(x, (0, 1), value=1.0)
    W = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([W], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ W.T, y) + ridge / 2 * W.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return W.detach()


def bag_of_words(task):
    """Test accuracy of the best of three ridges on val."""
    words, sets = language.vocabulary(), {}
    for split in ("train", "val", "test"):
        texts, labels = sample(task, *data.SPLITS[split])
        sets[split] = word_counts(texts, words), torch.from_numpy(labels)
    score = lambda W, x, y: ((F.pad(x, (0, 1), value=1.0) @ W.T).argmax(1) == y).double().mean()
    fits = [logistic_regression(*sets["train"], TASKS[task][1], ridge) for ridge in (1e-3, 0.03, 1)]
    return score(max(fits, key=lambda W: score(W, *sets["val"])), *sets["test"]).item()


BOUND = {2: 0.57, 3: 0.39, 4: 0.31}       # chance plus six or seven points


@every_task
def test_a_bag_of_words_stays_near_chance(task):
    assert bag_of_words(task) < BOUND[TASKS[task][1]]


def test_the_bag_of_words_would_find_words_that_tell():
    """The classifier of the test above is no straw man: it learns a label that words give away."""
    texts = [flat(text) for text in sample("entail", 1500, 101)[0]]
    words = [*language.vocabulary(), "|"]
    x, y = word_counts(texts, words), torch.tensor([int("rested" in t or "some" in t) for t in texts])
    W = logistic_regression(x[:1000], y[:1000], 2, 1e-3)
    right = ((F.pad(x[1000:], (0, 1), value=1.0) @ W.T).argmax(1) == y[1000:]).double().mean()
    assert right > 0.97
