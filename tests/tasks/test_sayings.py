"""Plain sentences: of the language, of every class alike, and true of their class."""

import numpy as np
import pytest
import torch

import data
import encoders
from tasks import english, sayings
from tasks.english import ANIMALS, KINDS, MEN, PEOPLE, WOMEN
from tasks.written import relation


@pytest.fixture(scope="module")
def encode():
    return encoders.load("bert").encode


@pytest.mark.parametrize("task", sayings.TASKS)
def test_every_task_has_sentences_of_every_class(task, encode):
    texts, labels = sayings.sample(task)
    assert np.bincount(labels).tolist() == [sayings.EACH] * data.classes(task)
    known = set(english.vocabulary())
    for text in texts:
        for part in (text,) if isinstance(text, str) else text:
            assert set(part.split()) <= known, part
    ids, again = data.prompts(task, encode)
    assert len(ids) == len(texts) and torch.equal(again, torch.from_numpy(labels))
    assert torch.equal(ids, data.prompts(task, encode)[0])


def words(concepts):
    return {word for concept in concepts for word in concept}


def truth(task, text):
    """The class of a plain sentence, read off its words."""
    said = (text if isinstance(text, str) else text[0]).split()
    if task == "sentiment":
        return {"liked": 1, "loved": 1, "disliked": 0, "hated": 0}[said[1]]
    if task == "number":
        return {"no": 0, "one": 1, "two": 2, "three": 3}[said[0]]
    if task == "order":
        return int(said[2] in words(ANIMALS)) if said[2] in words(ANIMALS + PEOPLE) else None
    if task == "agent":
        return ("person", "animal", "machine").index(said[3])
    if task == "coref":
        doer, other, meant = said[0], said[2], said[4]
        assert (doer in WOMEN) != (other in WOMEN) and {doer, other} <= {*WOMEN, *MEN}
        return int(meant == doer)
    if task == "paraphrase":
        concept = {word: c for c in PEOPLE + ANIMALS for word in c}
        again = text[1].split()
        return int(concept[said[1]] == concept[again[1]])
    if task == "accept":
        if said[0] != "the":
            return 0
        plural = said[1] in {english.ending_s(w) for w in words(PEOPLE + ANIMALS)}
        return int(plural != said[2].endswith("s"))
    if task == "entail":
        said = [part.rsplit(" ", 2) for part in text]
        return relation(*((quantifier, noun not in KINDS) for quantifier, noun, _ in said))


@pytest.mark.parametrize("task", sayings.TASKS)
def test_a_plain_sentence_is_true_of_its_class(task):
    for text, label in zip(*sayings.sample(task)):
        assert truth(task, text) == label, text
