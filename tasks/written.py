"""The built-in text suite: eight small language tasks in the manner of GLUE, written in memory.

    accept      is the sentence grammatical?  word order, or agreement across a clause     2 classes
    sentiment   what is the verdict?  negation, and which clause has the last word         2
    paraphrase  do both sentences say the same?  synonyms and voice, or roles swapped      2, pairs
    entail      entailed, contradicted, neither: quantifiers and narrower nouns            3, pairs
    agent       who did it, a person, an animal or a machine?  all three are there         3
    number      how many of three women did it?  two men are there as well                 4
    order       who acted first, the person or the animal?                                 2
    coref       is the pronoun the one who acted?                                          2

In every task the same words occur under every label, so a linear classifier on word counts stays
near chance (tests/tasks/test_written.py): what counts is order, structure and who is bound to what.

`sample` cuts the stream of a task into chunks of 500 texts, each from its own generator
`default_rng([seed, task, chunk])`: a longer sample begins with the same texts. A text is kept only
if its checksum mod 4 is seed mod 4: the four splits of data.py, whose seeds follow one another,
share no text.
"""

import itertools
import zlib

import numpy as np

from tasks.english import (ANIMALS, INTRANSITIVE, KINDS, MEN, PEOPLE, STATES, TRAITS, TRANSITIVE,
                           WOMEN, WORKS, agree, chance, contrast, did, draw, embedded, near,
                           noun_phrase, opinion, pick, some_did, told)

CHUNK = 500


def accept(rng, y):
    """1: the dogs that the cat chases rest. 0: ... rests, or two words have changed places."""
    plural = chance(rng)
    (n1, n2), aside = draw(rng, PEOPLE + ANIMALS, 2), pick(rng, pick(rng, TRANSITIVE))
    main = pick(rng, pick(rng, INTRANSITIVE))
    first = noun_phrase(rng, n1, pick(rng, TRAITS), plural=plural)
    second = noun_phrase(rng, n2, plural=not plural)
    swapped = y == 0 and chance(rng)
    wrong = y == 0 and not swapped
    verb = agree(main, plural != wrong)
    form = int(rng.random() * 3)
    if form == 0:
        text = f"{first} that {second} {agree(aside, plural == wrong)} {verb}"
    elif form == 1:
        text = f"{first} near {second} {verb}"
    else:
        other = pick(rng, pick(rng, INTRANSITIVE))
        text = f"{first} {verb} but {second} {agree(other, plural == wrong)}"
    words = f"{text} {near(rng)}".split() if chance(rng) else text.split()
    if swapped:
        i = pick(rng, [i for i, w in enumerate(words) if w == "the"])
        j = pick(rng, [j for j in (i - 1, i + 1) if j >= 0])
        words[i], words[j] = words[j], words[i]
    return " ".join(words)


def sentiment(rng, y):
    """1: the verdict is good. The verdict is that of the main clause, or of the one after but."""
    work, other = draw(rng, WORKS, 2)
    if chance(rng):
        text = opinion(rng, work, y == 1)
        return f"{text} {near(rng)}" if chance(rng, 0.8) else text
    return contrast(rng, opinion(rng, work, y == 1), opinion(rng, other, y == 0))


def paraphrase(rng, y):
    """1: the second sentence says what the first does. 0: roles, traits or verbs are exchanged."""
    n1, n2 = draw(rng, PEOPLE + ANIMALS, 2)
    if chance(rng, 1 / 3):                                     # who did which of two things
        v1, v2 = draw(rng, INTRANSITIVE, 2)
        pairs = [(n1, v1), (n2, v2)]
        again = pairs if y else [(n1, v2), (n2, v1)]
        both = lambda pairs: " and ".join(
            f"{noun_phrase(rng, n)} {did(rng, v)}" for n, v in draw(rng, pairs, 2))
        return both(pairs), both(again)
    verb, trait = pick(rng, TRANSITIVE), pick(rng, TRAITS)
    traits = [trait, None] if chance(rng) else [None, trait]
    doer, other = (n1, traits[0]), (n2, traits[1])
    say = lambda doer, other: told(rng, noun_phrase(rng, *doer), verb, noun_phrase(rng, *other))
    first = say(doer, other)
    if y == 0:
        doer, other = (other, doer) if chance(rng) else ((n1, traits[1]), (n2, traits[0]))
    return first, say(doer, other)


def holds(quantifier, narrow, world):
    """Is `quantifier noun verbed` true?  world: the inhabited (in the narrow noun?, verbed?)."""
    verbed = [v for n, v in world if n or not narrow]
    return {"every": all(verbed), "some": any(verbed), "no": not any(verbed),
            "not every": not all(verbed)}[quantifier]


def relation(premise, hypothesis):
    """0 entailed, 1 contradicted, 2 neither; each is (quantifier, is its noun the narrow one?).

    Goes through all small models: sets of inhabited types in which the narrow noun has a member.
    """
    types = list(itertools.product((False, True), repeat=2))
    worlds = [w for n in range(1, 5) for w in itertools.combinations(types, n)
              if any(narrow for narrow, _ in w)]
    verdicts = {holds(*hypothesis, w) for w in worlds if holds(*premise, w)}
    return 2 if len(verdicts) == 2 else 0 if verdicts == {True} else 1


# label -> (quantifier, narrow?) of both sentences, such that under every label each quantifier is
# as frequent, in the first and in the second sentence
NARROWER = {"every": False, "no": False, "some": True, "not every": True}   # entailment goes there
ENTAIL = {0: [(q, n, q, not n) for q, n in NARROWER.items()],
          1: [(q, n, p, not n) for (q, n), p in
              zip(NARROWER.items(), ("not every", "some", "no", "every"))],
          2: [(q, not n, q, n) for q, n in NARROWER.items()]}


def entail(rng, y):
    """0 entailed: no animal rested, no old dog rested. 1 contradicted. 2 neither."""
    q1, narrow, q2, _ = pick(rng, ENTAIL[y])
    kind = pick(rng, list(KINDS))
    noun, trait, verb = pick(rng, KINDS[kind]), pick(rng, TRAITS), pick(rng, INTRANSITIVE)
    place = f" {near(rng)}" if chance(rng, 0.3) else ""
    if chance(rng):
        small, large = (noun, trait), (noun,)
    else:
        small, large = (noun, trait if chance(rng, 0.3) else None), ((kind,),)
    say = lambda q, narrow: (f"{noun_phrase(rng, *(small if narrow else large), article=q)} "
                             f"{did(rng, verb)}{place}")
    return say(q1, narrow), say(q2, not narrow)


def agent(rng, y):
    """The kind of the doer of the main verb: 0 person, 1 animal, 2 machine."""
    kinds = list(KINDS)
    doer = kinds.pop(y)
    other, aside = draw(rng, kinds, 2)
    phrases = [noun_phrase(rng, pick(rng, KINDS[k])) for k in (doer, other, aside)]
    v1, v2 = draw(rng, TRANSITIVE, 2)
    if chance(rng, 0.25):
        return f"{told(rng, phrases[0], v1, phrases[1])} near {phrases[2]}"
    return embedded(rng, phrases[0], v1, phrases[1], v2, phrases[2])[0]


def number(rng, y):
    """y of the three women did it; two men are there too."""
    women, men = draw(rng, WOMEN, 3), draw(rng, MEN, 2)
    k = 1 + int(rng.random() * 2) if y == 0 else int(rng.random() * (2 if y == 3 else 3))
    who, others = women[:y] + men[:k], women[y:] + men[k:]
    return some_did(rng, draw(rng, who, 5), draw(rng, others, 5), pick(rng, INTRANSITIVE))


def order(rng, y):
    """Who acted first: 0 the person, 1 the animal."""
    v1, v2 = draw(rng, INTRANSITIVE, 2)
    acts = [f"{noun_phrase(rng, pick(rng, nouns), pick(rng, TRAITS) if chance(rng, 0.3) else None)}"
            f" {did(rng, v)}" for nouns, v in ((PEOPLE, v1), (ANIMALS, v2))]
    first, then = acts[y], acts[1 - y]
    return pick(rng, (f"{first} before {then}", f"{then} after {first}",
                      f"{first} and later {then}", f"{then} but earlier {first}"))


def coref(rng, y):
    """1: anna helped bruno because she was tired. 0: the pronoun is not the one who acted."""
    woman_acts = chance(rng)
    woman, man = pick(rng, WOMEN), pick(rng, MEN)
    doer, other = (woman, man) if woman_acts else (man, woman)
    pronoun = "she" if woman_acts == (y == 1) else "he"
    reason = f"because {pronoun} was {pick(rng, pick(rng, STATES))}"
    return f"{doer} {did(rng, pick(rng, TRANSITIVE))} {other} {reason}"


TASKS = {"accept": (accept, 2), "sentiment": (sentiment, 2), "paraphrase": (paraphrase, 2),
         "entail": (entail, 3), "agent": (agent, 3), "number": (number, 4), "order": (order, 2),
         "coref": (coref, 2)}


def bucket(text):
    """Which of four disjoint quarters of all texts (or pairs) this one is in."""
    return zlib.crc32((text if isinstance(text, str) else "\t".join(text)).encode()) % 4


def sample(task, n, seed):
    """n texts (str) or pairs (str, str) of a task, and labels (n,) int64, balanced."""
    write, classes = TASKS[task]
    texts, labels = [], []
    for chunk in range(-(-n // CHUNK)):
        rng = np.random.default_rng([seed, list(TASKS).index(task), chunk])
        y = rng.permutation(np.arange(CHUNK) % classes)
        for label in y.tolist():
            while bucket(text := write(rng, label)) != seed % 4:
                pass
            texts.append(text)
        labels.append(y)
    return texts[:n], np.concatenate(labels or [np.zeros(0)])[:n].astype(np.int64)
