"""What people like, and pairs labelled by it. Bradley and Terry (1952), doi 10.2307/2334029

    P(a over b) = sigmoid(2 (r*(a) - r*(b)))      r* the hidden reward of one person, a rule below

A pair is two continuations of one prompt, both written by the anchor. No model ever sees r*, only
which of the two was preferred, with the noise of people who are not sure.

Both rules have a top: two kind words are friendly and a third is flattery; four words are short,
and none say nothing. What the anchor hardly ever writes, the pairs do not tell: that is where a
policy that trusts its reward model goes wrong (2210.10760).
"""

import numpy as np
import torch

from encoders.gpt import sample
from pretrain.bert import opinion
from pretrain.gpt import text
from tasks.english import BAD, GOOD, past

OPENING = 4                                      # tokens of a prompt: [CLS] and three words
LENGTH = 20                                      # most tokens that follow
HELD_OUT = 200                                   # prompts that a policy is measured on
SEEDS = {"val": 10_000, "test": 20_000}          # of those prompts; training has their words, too
UNFINISHED = -3.0                                # the reward of a text without its end
KIND = {w for concept in (*GOOD, ("happy", "glad"), ("brave", "bold")) for w in concept} | {
    past(verb) for verb in "love help assist praise applaud save rescue greet welcome".split()}
UNKIND = {w for concept in (*BAD, ("angry", "furious")) for w in concept} | {
    past(verb) for verb in "dislike hate scare frighten push shove trick fool cry sob".split()}


def friendly(words):
    """Kind words up to two, less one for each further one and for each unkind one; `not` turns
    the word after it around."""
    turn = [-1 if before == "not" else 1 for before in ["", *words]]
    signs = [t * ((word in KIND) - (word in UNKIND)) for t, word in zip(turn, words)]
    kind, unkind = signs.count(1), signs.count(-1)
    return float(min(kind, 2) - max(kind - 2, 0) - unkind)


def short(words):
    """-|n - 4| / 2 for n words: brief, but saying something."""
    return -abs(len(words) - 4) / 2


REWARDS = {"friendly": friendly, "short": short}


def true_reward(reward, model, ids):
    """r* (B,) of what follows the prompts in ids (B, T)."""
    out = []
    for row in ids[:, OPENING:]:
        finished = (row == model.end).any()
        out.append(REWARDS[reward](model.decode(row).split()) if finished else UNFINISHED)
    return torch.tensor(out)


def prompts(model, n, seed):
    """The openings (n, OPENING) of n new opinions: the film was, everybody found the, ..."""
    rng = np.random.default_rng([seed, 3])
    return model.encode([text(rng, opinion) for _ in range(n)])[:, :OPENING]


def preferred(a, b):
    """P(a over b) of true rewards."""
    return torch.sigmoid(2 * (a - b))


def pairs(model, reward, n, seed):
    """(preferred, other), both (n, T), of n prompts; each prompt has one pair."""
    generator, start = torch.Generator().manual_seed(seed), prompts(model, n, seed)
    first, second = (sample(model, model, start, LENGTH, generator=generator) for _ in range(2))
    p = preferred(true_reward(reward, model, first), true_reward(reward, model, second))
    swap = (torch.rand(n, generator=generator) >= p)[:, None]
    return torch.where(swap, second, first), torch.where(swap, first, second)
