"""Make checkpoints/bert from nothing: a BERT that fills in words of a generated English.
arXiv:1810.04805

    loss = cross entropy of the hidden words,  logits = LN(gelu(W z_t + c)) E^T + b
    mask     z = encoder(a text), a fifth of its words hidden         three batches in four
    recall   z = z' + MLP([z'; f]),  z' = encoder(second sentence), two fifths hidden,
             f = feature of the first sentence, (D,)                  one in four

E (V, D) is the encoder's own word embedding; the heads are thrown away. Of the hidden words 80 %
become [MASK], 10 % another word, 10 % stay as they are.

The text is single sentences and discourses of two, in the grammar of english.py. To fill in a word
of the second sentence, the encoder has to find out from the first who did what to whom. No label of
written.py is used, no sentence is wrong and none contradicts the one before; but some second
sentences say in words what a task asks: who did it, how many did, who was tired.

Differs  No next-sentence prediction, which longer pretraining dropped (RoBERTa, arXiv:1907.11692).
         In its place `recall`, as in skip-thoughts (arXiv:1506.06726): the mean over the tokens has
         to carry what the next sentence says, since the tasks start from that feature.
"""

import string

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from encoders.bert import BERT
from encoders.tokenizer import SPECIAL, WordPiece
from pretrain.optimizer import OneCycle
from tasks import english
from tasks.english import (ANIMALS, BAD, GOOD, INTRANSITIVE, KINDS, MEN, PEOPLE, STATES, TRAITS,
                           TRANSITIVE, WOMEN, WORKS, chance, did, draw, noun_phrase, pick)

HIDDEN, AFTER = 0.2, 0.4                           # share of the words hidden; in second sentences
ROUND = 20_000                                     # discourses drawn at a time, each seen once
POSITIONS = 48
RARE = 0.25                    # negations among opinions; pronouns that do not mean the doer
ANYONE = PEOPLE + ANIMALS
FELT = {True: ("liked", "loved"), False: ("disliked", "hated")}              # after an opinion
NUMBERS = ("nobody", "one", "two", "three", "four")


def present(rng):
    """Two plural or singular subjects in the present tense, each verb agreeing with its own."""
    (n1, n2), (v1, v2) = draw(rng, ANYONE, 2), draw(rng, INTRANSITIVE, 2)
    p1, p2 = chance(rng), chance(rng)
    first = noun_phrase(rng, n1, pick(rng, TRAITS) if chance(rng) else None, plural=p1)
    second = noun_phrase(rng, n2, plural=p2)
    verb, last = english.agree(pick(rng, v1), p1), english.agree(pick(rng, v2), p2)
    aside = pick(rng, pick(rng, TRANSITIVE))
    text = pick(rng, (f"{first} {verb}", f"{first} near {second} {verb}",
                      f"{first} {verb} but {second} {last}", f"{first} {verb} and {second} {last}",
                      f"{first} that {second} {english.agree(aside, p2)} {verb}",
                      f"{first} that {english.agree(aside, p1)} {second} {verb}"))
    return f"{text} {english.near(rng)}" if chance(rng, 0.4) else text


def again(rng):
    """An event, and the same event in other words."""
    (n1, n2), verb = draw(rng, ANYONE, 2), pick(rng, TRANSITIVE)
    t1, t2 = (pick(rng, TRAITS) if chance(rng, 0.4) else None for _ in range(2))
    say = lambda: english.told(rng, noun_phrase(rng, n1, t1), verb, noun_phrase(rng, n2, t2))
    return say(), say()


def detail(rng):
    """An event with a bystander, and one of the facts in it again."""
    nouns = draw(rng, [n for kind in KINDS.values() for n in kind], 3)
    d, o, b = (noun_phrase(rng, noun) for noun in nouns)
    verb, aside = draw(rng, TRANSITIVE, 2)
    text, beside = english.embedded(rng, d, verb, o, aside, b)
    if beside is not None and chance(rng):
        return text, english.told(rng, beside[0], aside, beside[1])
    return text, english.told(rng, d, verb, o)


def answer(rng):
    """An event, and who did it: the kind of the doer."""
    kinds = draw(rng, list(KINDS), 2)
    d, o = (noun_phrase(rng, pick(rng, KINDS[k])) for k in kinds)
    verb = pick(rng, TRANSITIVE)
    by = f"it was the {kinds[0]} that {did(rng, verb)} the {kinds[1]}"
    return english.told(rng, d, verb, o), by


def both(rng):
    """Two subjects did two things, told again in any order."""
    (n1, n2), (v1, v2) = draw(rng, ANYONE, 2), draw(rng, INTRANSITIVE, 2)
    say = lambda: " and ".join(f"{noun_phrase(rng, n)} {did(rng, v)}"
                               for n, v in draw(rng, [(n1, v1), (n2, v2)], 2))
    return say(), say()


def word(rng):
    """What a word means: every hound is an animal; anna is a woman."""
    if chance(rng, 0.3):
        woman = chance(rng)
        return f"{pick(rng, WOMEN if woman else MEN)} is a {'woman' if woman else 'man'}"
    kind = pick(rng, list(KINDS))
    article = "an" if kind == "animal" else "a"
    return f"every {pick(rng, pick(rng, KINDS[kind]))} is {article} {kind}"


def rule(rng):
    """A quantified sentence, and one that follows from it."""
    kind = pick(rng, list(KINDS))
    noun, trait, verb = pick(rng, KINDS[kind]), pick(rng, TRAITS), pick(rng, INTRANSITIVE)
    wide, narrow = (((kind,), None), (noun, None)) if chance(rng) else ((noun, None), (noun, trait))
    say = lambda q, noun: f"{noun_phrase(rng, *noun, article=q)} {did(rng, verb)}"
    q = pick(rng, english.QUANTIFIERS)
    then = {"every": pick(rng, ("every", "some")), "no": pick(rng, ("no", "not every"))}.get(q, q)
    first, second = (wide, narrow) if q in ("every", "no") else (narrow, wide)
    return say(q, first), say(then, pick(rng, (first, second)))


def opinion(rng):
    """What was said of one or two works, and the verdict again or who shared it."""
    work, other = draw(rng, WORKS, 2)
    positive = chance(rng)
    text = english.opinion(rng, work, positive, RARE)
    if chance(rng, 0.6):
        text = english.contrast(rng, text, english.opinion(rng, other, not positive, RARE))
    if chance(rng, 0.3):
        return text, english.opinion(rng, work, positive, RARE)
    name = pick(rng, WOMEN + MEN)
    felt = pick(rng, FELT[positive])
    return text, f"so {name} {felt} {pick(rng, ('it', f'the {pick(rng, work)}'))}"


def verdict(rng):
    """Two adjectives of one judgement, or one denied and its opposite; or who shared an opinion."""
    work, positive = pick(rng, WORKS), chance(rng)
    if chance(rng, 1 / 3):
        felt = pick(rng, FELT[positive])
        return english.opinion(rng, work, positive), f"so {pick(rng, WOMEN + MEN)} {felt} it"
    one, two = (pick(rng, c) for c in draw(rng, GOOD if positive else BAD, 2))
    denied = pick(rng, pick(rng, BAD if positive else GOOD))
    return f"the {pick(rng, work)} was " + pick(rng, (f"{one} and {two}", f"not {denied} but {one}",
                                                       f"{one} and not {denied}"))


def number(rng):
    """Who did something and who did not; how many did, or how many women, or one of them."""
    n = 2 + int(rng.random() * 4)
    names, verb = draw(rng, WOMEN + MEN, n), pick(rng, INTRANSITIVE)
    k = 1 + int(rng.random() * (n - 1))
    text = english.some_did(rng, names[:k], names[k:], verb)
    if chance(rng, 0.3):
        return text, f"{NUMBERS[k]} {did(rng, verb)}"
    if chance(rng):
        women = sum(name in WOMEN for name in names[:k])
        many = f"{NUMBERS[women]} {'woman' if women == 1 else 'women'}" if women else "no women"
        return text, f"{many} {did(rng, verb)}"
    name = pick(rng, names)
    return text, (f"{name} {did(rng, verb)}" if name in names[:k] else
                  f"{name} did not {pick(rng, verb)}")


def sequence(rng):
    """Two acts in time, and the same again in other words, or what came first."""
    (n1, n2), (v1, v2) = draw(rng, ANYONE, 2), draw(rng, INTRANSITIVE, 2)
    say = lambda n, v: f"{noun_phrase(rng, n)} {did(rng, v)}"
    text = english.in_time(rng, say(n1, v1), say(n2, v2))
    return text, pick(rng, (f"first {say(n1, v1)}", f"then {say(n2, v2)}",
                            english.in_time(rng, say(n1, v1), say(n2, v2))))


def reason(rng):
    """An event between a woman and a man with its reason, and whom the reason is about."""
    woman, man = pick(rng, WOMEN), pick(rng, MEN)
    doer, other = draw(rng, (woman, man), 2)
    state, verb = pick(rng, STATES), pick(rng, TRANSITIVE)
    she = (doer == woman) != chance(rng, RARE)
    text = english.because(rng, doer, verb, other, "she" if she else "he", state)
    about = f"{woman if she else man} was {pick(rng, state)}"
    return text, about if chance(rng, 0.7) else english.told(rng, doer, verb, other)


DISCOURSES = (present, present, again, detail, answer, both, word, rule, number,    # as often as
              *3 * (opinion, sequence, reason))                                     # written here
READ = (*DISCOURSES, *4 * (verdict,))                                 # by the BERT, not by the GPT


def vocabulary():
    """The lines of vocab.txt: special entries, letters and digits, ##letters, whole words."""
    letters = [*string.ascii_lowercase, *string.digits]
    entries = [*SPECIAL, *string.punctuation, *letters, *(f"##{c}" for c in letters)]
    return [*entries, *(w for w in english.vocabulary() if w not in entries)]


def hide(ids, rng, tokenizer, share=HIDDEN):
    """(ids with words hidden, targets with -100 where nothing is asked).

    share   of the words of a first sentence; of a second one in the same ids it is AFTER
    """
    draws = lambda: torch.from_numpy(rng.random(ids.shape))
    special = (ids == tokenizer.pad) | (ids == tokenizer.cls) | (ids == tokenizer.sep)
    share = torch.where((ids == tokenizer.sep).cumsum(1) > 0, AFTER, share)
    asked, how = (draws() < share) & ~special, draws()
    first = len(SPECIAL)
    other = first + (draws() * (len(tokenizer.vocab) - first)).long()
    hidden = torch.where(how < 0.8, tokenizer.mask, torch.where(how < 0.9, other, ids))
    return torch.where(asked, hidden, ids), ids.masked_fill(~asked, -100)


class WordHead(nn.Module):
    """Hidden states (n, D) -> logits (n, V), tied to the word embeddings E (V, D)."""

    def __init__(self, model):
        super().__init__()
        self.E = [model.word]                       # in a list: it belongs to the encoder
        self.linear, self.norm = nn.Linear(model.width, model.width), nn.LayerNorm(model.width)
        self.b = nn.Parameter(torch.zeros(model.word.num_embeddings))

    def forward(self, z):
        return F.linear(self.norm(F.gelu(self.linear(z))), self.E[0].weight, self.b)


class RecallHead(nn.Module):
    """z + fc2(gelu(fc1([z; f]))): what a token is, knowing the feature f of the sentence before."""

    def __init__(self, model):
        super().__init__()
        self.fc1 = nn.Linear(2 * model.width, 4 * model.width)
        self.fc2 = nn.Linear(4 * model.width, model.width)

    def forward(self, z, f):
        return z + self.fc2(F.gelu(self.fc1(torch.cat([z, f], 1))))


def batches(rng, tokenizer, batch):
    """Batches without end, each of texts of about one length, in random order.

    One in three is (ids of first sentences, ids of second ones), the others (ids of texts, None).
    """
    while True:
        texts = [pick(rng, READ)(rng) for _ in range(ROUND)]
        texts.sort(key=lambda t: len((t if isinstance(t, str) else " ".join(t)).split()))
        chunks = [texts[i:i + batch] for i in range(0, ROUND, batch)]
        for i in rng.permutation(len(chunks)):
            pairs = [t for t in chunks[i] if not isinstance(t, str)]
            if chance(rng, 1 / 3) and 2 * len(pairs) > batch:
                first, second = zip(*pairs)
                yield tokenizer.encode(first, POSITIONS), tokenizer.encode(second, POSITIONS)
            else:
                yield tokenizer.encode(chunks[i], POSITIONS), None


def make(width, depth, heads):
    """A new BERT with its tokenizer, and its configuration."""
    words = WordPiece({entry: i for i, entry in enumerate(vocabulary())})
    config = dict(vocab=len(words.vocab), positions=POSITIONS, types=2, width=width, depth=depth,
                  heads=heads, hidden=4 * width, pad=words.pad, sep=words.sep)
    model = BERT(**config)
    model.tokenizer = words
    return model, config


def pretrain(model, *, steps, lr, seed=0, batch=64, wd=0.01):
    """Both losses, batch by batch, with AdamW and a one-cycle schedule; returns the word head."""
    head, recall, tokenizer = WordHead(model), RecallHead(model), model.tokenizer
    optimizer = OneCycle([model, head, recall], steps, lr, wd)
    rng = np.random.default_rng([seed, 1])
    source = batches(rng, tokenizer, batch)
    bar = tqdm(range(steps), desc="pretraining", mininterval=1)
    for _ in bar:
        ids, second = next(source)
        hidden, target = hide(ids if second is None else second, rng, tokenizer,
                              HIDDEN if second is None else AFTER)
        asked = target >= 0
        z = model.hidden(hidden)[asked]
        if second is not None:
            z = recall(z, model(ids)[asked.nonzero()[:, 0]])
        loss = F.cross_entropy(head(z), target[asked])
        optimizer.descend(loss)
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return head


@torch.no_grad()
def accuracy(model, head, seed, n=200):
    """{kind of discourse: share of the hidden words filled in right}, on n new ones of each."""
    out, rng = {}, np.random.default_rng([seed, 2])
    for write in dict.fromkeys(READ):
        ids = model.encode([write(rng) for _ in range(n)])
        hidden, target = hide(ids, rng, model.tokenizer)
        asked = target >= 0
        guess = head(model.hidden(hidden)[asked]).argmax(1)
        out[write.__name__] = (guess == target[asked]).double().mean().item()
    return out
