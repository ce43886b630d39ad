"""Plain sentences for every class of the written tasks: what a class is, without a text of it.

The prompts of CLIP (2103.00020) for texts: the simplest sentences that belong to a class, such as
"two women rested" for the class 2 of `number`. `--head prompts` makes the classifier of a task from
their features (encoders/heads.py). Long subjects, passives, negations and bystanders are what
fine-tuning learns.

Every function writes one text, or a pair, for a label.
"""

import numpy as np

from tasks.english import (ANIMALS, INTRANSITIVE, KINDS, MEN, PEOPLE, STATES, TRANSITIVE, WOMEN,
                           WORKS, agree, chance, did, draw, noun_phrase, pick)
from tasks.written import ENTAIL, TASKS

SEED, EACH = 106, 40                                # of the stream; sentences of a class
MANY = ("no women", "one woman", "two women", "three women")


def accept(rng, y):
    """1: the dogs rest. 0: the dogs rests, or dogs the rest."""
    plural, swapped = chance(rng), y == 0 and chance(rng)
    noun, verb = pick(rng, PEOPLE + ANIMALS), pick(rng, pick(rng, INTRANSITIVE))
    the, noun = noun_phrase(rng, noun, plural=plural).split()
    subject = f"{noun} {the}" if swapped else f"{the} {noun}"
    return f"{subject} {agree(verb, plural == (y == 1 or swapped))}"


def sentiment(rng, y):
    """1: anna liked the film. 0: hated it."""
    felt = pick(rng, ("liked", "loved") if y else ("disliked", "hated"))
    return f"{pick(rng, ('everybody', *WOMEN, *MEN))} {felt} the {pick(rng, pick(rng, WORKS))}"


def paraphrase(rng, y):
    """1: the boy called the cat, twice. 0: the second time the cat called the boy."""
    (n1, n2), verb = draw(rng, PEOPLE + ANIMALS, 2), pick(rng, TRANSITIVE)
    say = lambda one, two: f"{noun_phrase(rng, one)} {did(rng, verb)} {noun_phrase(rng, two)}"
    return say(n1, n2), say(n1, n2) if y else say(n2, n1)


def entail(rng, y):
    """0: every animal rested, every dog rested. 1: not every dog did. 2: the first two, swapped."""
    q1, narrow, q2, _ = pick(rng, ENTAIL[y])
    kind, verb = pick(rng, list(KINDS)), pick(rng, INTRANSITIVE)
    noun = pick(rng, KINDS[kind])
    say = lambda q, narrow: f"{q} {pick(rng, noun) if narrow else kind} {did(rng, verb)}"
    return say(q1, narrow), say(q2, not narrow)


def agent(rng, y):
    """it was the person that called the dog."""
    kinds = list(KINDS)
    doer, other = kinds.pop(y), pick(rng, kinds)
    return f"it was the {doer} that {did(rng, pick(rng, TRANSITIVE))} the {other}"


def number(rng, y):
    """two women rested."""
    return f"{MANY[y]} {did(rng, pick(rng, INTRANSITIVE))}"


def order(rng, y):
    """0: first the boy rested. 1: first the dog rested."""
    return (f"first {noun_phrase(rng, pick(rng, ANIMALS if y else PEOPLE))} "
            f"{did(rng, pick(rng, INTRANSITIVE))}")


def coref(rng, y):
    """1: anna helped bruno because anna was tired. 0: because bruno was."""
    doer, other = draw(rng, [pick(rng, WOMEN), pick(rng, MEN)], 2)
    return (f"{doer} {did(rng, pick(rng, TRANSITIVE))} {other} "
            f"because {doer if y else other} was {pick(rng, pick(rng, STATES))}")


PROMPTS = {"accept": accept, "sentiment": sentiment, "paraphrase": paraphrase, "entail": entail,
           "agent": agent, "number": number, "order": order, "coref": coref}


def sample(task):
    """Texts or pairs of all classes of a task, EACH of one, and their labels (n,)."""
    rng = np.random.default_rng([SEED, list(TASKS).index(task)])
    labels = np.arange(TASKS[task][1]).repeat(EACH)
    return [PROMPTS[task](rng, y) for y in labels.tolist()], labels
