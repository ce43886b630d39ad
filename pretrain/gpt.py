"""Make checkpoints/gpt from nothing: a GPT that continues a generated English. arXiv:2005.14165

    loss = - mean over tokens of log p(y_t | y_1 .. y_{t-1})

The text is that of bert.py: single sentences, and discourses of two with a full stop between.
"""

import numpy as np
import torch
from tqdm import tqdm

from encoders.gpt import GPT, log_probs
from encoders.tokenizer import WordPiece
from pretrain.bert import DISCOURSES, vocabulary
from pretrain.optimizer import OneCycle
from tasks.english import chance, pick

ROUND = 20_000                                     # texts drawn at a time, each seen once
POSITIONS = 32


def text(rng, write=None):
    """One text: a sentence, or one and what follows from it."""
    said = (write or pick(rng, DISCOURSES))(rng)
    if isinstance(said, str):
        return said
    return " . ".join(said) if chance(rng) else pick(rng, said)


def batches(rng, model, batch):
    """Batches without end, each of texts of about one length, in random order."""
    while True:
        texts = sorted((text(rng) for _ in range(ROUND)), key=lambda t: len(t.split()))
        chunks = [texts[i:i + batch] for i in range(0, ROUND, batch)]
        for i in rng.permutation(len(chunks)):
            yield model.encode(chunks[i])


def make(width, depth, heads):
    """A new GPT with its tokenizer, and its configuration."""
    words = WordPiece({entry: i for i, entry in enumerate(vocabulary())})
    config = dict(vocab=len(words.vocab), positions=POSITIONS, width=width, depth=depth,
                  heads=heads, hidden=4 * width, pad=words.pad, end=words.sep)
    model = GPT(**config)
    model.tokenizer = words
    return model, config


def pretrain(model, *, steps, lr, seed=0, batch=64, wd=0.01):
    """Next-token prediction with AdamW and a one-cycle schedule; there is no head to return."""
    optimizer = OneCycle([model], steps, lr, wd)
    source = batches(np.random.default_rng([seed, 1]), model, batch)
    bar = tqdm(range(steps), desc="pretraining", mininterval=1)
    for _ in bar:
        ids = next(source)
        log_p = log_probs(model.logits(model(ids)), ids)                     # (B, T - 1)
        loss = -log_p[ids[:, 1:] != model.pad].mean()                        # without the padding
        optimizer.descend(loss)
        bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


@torch.no_grad()
def accuracy(model, head, seed, n=200):
    """{kind of discourse: share of the words that are the likeliest}, on n new ones of each."""
    out, rng = {}, np.random.default_rng([seed, 2])
    for write in dict.fromkeys(DISCOURSES):
        ids = model.encode([text(rng, write) for _ in range(n)])
        asked = ids[:, 1:] != model.pad
        right = model.logits(model(ids))[:, :-1].argmax(2) == ids[:, 1:]
        out[write.__name__] = right[asked].double().mean().item()
    return out
