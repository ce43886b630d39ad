"""The language model: a pre-LN transformer that sees only what came before. GPT, arXiv:2005.14165,
section 2.1; 1706.03762

    z_0        = word[ids] + position[0..T-1]                                      (B, T, D)
    z_next     = Block(z, mask),  mask_tu = 0 for u <= t, else very negative       (block.py)
    logits     = LN(z_L) E^T,     E (V, D) the word embedding                      (B, T, V)
    p(y | x)   = prod_t softmax(logits_{t-1} / temperature)[y_t]

Shapes   ids (B, T) int64: [CLS], words, [SEP] as the end token, then [PAD]
Differs  The tokens are BERT's, so [CLS] starts a text and [SEP] ends it. Padding stands on the
         right only, where the causal mask already hides it. Attention is that of block.py. A new
         token recomputes all the ones before, because every adapter would have to know a cache.
"""

import torch
from torch import nn

from encoders.block import Block
from encoders.tokenizer import WordPiece
from errors import BadInput


class GPT(nn.Module):
    """The decoder, ids (B, T) -> hidden states (B, T, width); `logits` reads the next token off.

    positions   the longest text in tokens;  pad, end   ids of [PAD] and [SEP]
    """

    kind, tokenizer = "continuation", None

    def __init__(self, *, vocab, positions=32, width=96, depth=3, heads=4, hidden=384, eps=1e-5,
                 pad=0, end=3):
        super().__init__()
        self.width, self.positions, self.pad, self.end = width, positions, pad, end
        self.word = nn.Embedding(vocab, width)
        self.position = nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)
        for table in (self.word, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids):
        T = ids.shape[1]
        if T > self.positions:
            raise BadInput(f"texts of {T} tokens: this model takes {self.positions}")
        z = self.word(ids) + self.position.weight[:T]                                # (B, T, D)
        later = torch.ones(T, T, dtype=z.dtype, device=z.device).triu(1)
        mask = torch.finfo(z.dtype).min * later
        for block in self.blocks:
            z = block(z, mask)
        return self.norm(z)

    def logits(self, z):
        """Of the next token, (..., V), from hidden states (..., D)."""
        return z @ self.word.weight.T

    def encode(self, texts):
        """Ids (n, T) of n texts, cut at the model's longest."""
        return self.tokenizer.encode(texts, self.positions)

    def decode(self, ids):
        """One text of ids (T,), without special tokens."""
        words = {i: entry for entry, i in self.tokenizer.vocab.items()}
        special = self.pad, self.end, self.tokenizer.cls
        return " ".join(words[i] for i in ids.tolist() if i not in special).replace(" ##", "")

    def read_vocabulary(self, folder):
        """Take the tokenizer of a checkpoint folder, and its ids of [PAD] and [SEP]."""
        self.tokenizer = WordPiece.read(folder)
        self.pad, self.end = self.tokenizer.pad, self.tokenizer.sep


@torch.no_grad()
def sample(model, head, prompts, length, *, temperature=1.0, generator=None):
    """Prompts (B, P) and what follows, (B, P + length); after the end token all is padding.

    model   ids (B, T) -> hidden states (B, T, D), the GPT or one with adapters
    head    the GPT itself, for its logits, end and pad
    """
    B, P = prompts.shape
    ids = torch.cat([prompts, prompts.new_full((B, length), head.pad)], 1)
    live = torch.arange(B, device=ids.device)                                # without an end so far
    for t in range(P, P + length):
        p = (head.logits(model(ids[live, :t])[:, -1]) / temperature).softmax(-1)    # (live, V)
        ids[live, t] = token = torch.multinomial(p, 1, generator=generator)[:, 0]
        live = live[token != head.end]
        if not len(live):
            break
    return ids


def log_probs(logits, ids):
    """log p of every token but the first given those before, (B, T - 1).

    logits (B, T, V) at position t - 1 predict token t.
    """
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
