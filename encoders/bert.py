"""The text encoder: a post-LN transformer over WordPiece tokens. BERT, arXiv:1810.04805

    z_0     = LN(word[ids] + position[0..T-1] + segment[s])                        (B, T, D)
    z_next  = PostBlock(z, mask)                              (block.py; the mask hides padding)
    feature = mean of z_L over the real tokens                                     (B, D)

Shapes   ids (B, T) int64: [CLS] a [SEP] or [CLS] a [SEP] b [SEP], padded on the right with [PAD]
Differs  One tensor goes in: padding is read off the ids, and a token's segment is the number of
         [SEP]s before it. The feature is the mean of the last hidden states and not the pooler at
         [CLS]: the pooler is trained for next-sentence prediction and is near its start in
         distilled checkpoints. No dropout: 10 % in the paper; here training is short.
"""

import torch
from torch import nn

from encoders.block import PostBlock
from encoders.tokenizer import WordPiece
from errors import BadInput


class BERT(nn.Module):
    """The encoder, ids (B, T) -> features (B, width).

    positions   the longest input in tokens;  types   segments;  pad, sep   ids of [PAD] and [SEP]
    `encode` makes inputs of at most `limit` tokens, once `read_vocabulary` has set a `tokenizer`.
    """

    kind, tokenizer = "text", None

    def __init__(self, *, vocab=30522, positions=512, types=2, width=128, depth=2, heads=2,
                 hidden=512, eps=1e-12, pad=0, sep=102):
        super().__init__()
        self.width, self.limit, self.pad, self.sep = width, positions, pad, sep
        self.word = nn.Embedding(vocab, width)
        self.position = nn.Embedding(positions, width)
        self.segment = nn.Embedding(types, width)
        self.norm = nn.LayerNorm(width, eps)
        self.blocks = nn.ModuleList(PostBlock(width, heads, hidden, eps) for _ in range(depth))
        for table in (self.word, self.position, self.segment):     # BERT's; PyTorch's is N(0, 1)
            nn.init.normal_(table.weight, std=0.02)

    def tokens(self, ids):
        """Which tokens (B, T) are real and not padding, bool."""
        return ids != self.pad

    def hidden(self, ids):
        """The last hidden state of every token, (B, T, width); rows of padding mean nothing."""
        if ids.shape[1] > self.position.num_embeddings:
            raise BadInput(f"texts of {ids.shape[1]} tokens: this model takes "
                           f"{self.position.num_embeddings}, encode them with that limit")
        ends = (ids == self.sep).long()
        segments = (ends.cumsum(1) - ends).clamp(max=self.segment.num_embeddings - 1)   # (B, T)
        positions = self.position.weight[:ids.shape[1]]                                 # (T, D)
        z = self.norm(self.word(ids) + positions + self.segment(segments))
        hide = torch.finfo(z.dtype).min * (~self.tokens(ids)).to(z.dtype)
        for block in self.blocks:
            z = block(z, hide[:, None, None])
        return z

    def forward(self, ids):
        """Features (B, width) of ids (B, T): the mean over the real tokens."""
        z, real = self.hidden(ids), self.tokens(ids)[..., None]                         # (B, T, 1)
        return (z * real).sum(1) / real.sum(1).clamp(min=1)

    def encode(self, texts):
        """Ids (n, T) of n texts or pairs, cut at the model's `limit`."""
        if self.tokenizer is None:
            raise BadInput("this text model was made without a vocabulary: load it from a folder "
                           "with vocab.txt")
        return self.tokenizer.encode(texts, self.limit)

    def read_vocabulary(self, folder):
        """Take the tokenizer of a checkpoint folder, and its ids of [PAD] and [SEP]."""
        words, rows = WordPiece.read(folder), self.word.num_embeddings
        entries = max(words.vocab.values()) + 1
        padded = rows % 8 == 0 and entries < rows < entries + 128        # for the hardware
        if entries != rows and not padded:
            raise BadInput(f"{folder}: vocab.txt has {entries} entries, the model {rows}: it is of "
                           "another checkpoint or cut short")
        self.tokenizer, self.pad, self.sep = words, words.pad, words.sep

    def resize(self, size):
        """Cut texts at `size` tokens."""
        if not 4 <= size <= self.limit:
            raise BadInput(f"size {size}: this text model takes 4 to {self.limit} tokens")
        self.limit = size
