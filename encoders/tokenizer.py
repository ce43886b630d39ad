"""WordPiece: text to the token ids of a BERT checkpoint. arXiv:1810.04805, section 3; 1609.08144

    clean        drop control characters, every white space is a blank, CJK characters stand alone
    lower        lower case, then canonical decomposition without its accents (uncased vocabularies)
    split        at blanks, and around every punctuation character
    longest      the longest entry of the vocabulary that starts the word, then ## and the longest
    match first  that continues it, ...; a word that gets stuck is [UNK], and so is one of over 100

    one text     [CLS] a [SEP]              a pair     [CLS] a [SEP] b [SEP]

Vocabulary  vocab.txt, one entry a line, its line number is its id, from 0.
Differs     [CLS] or [SEP] written in a text is punctuation and letters, as in the paper's own code,
            and no marker: a text cannot forge the boundary from which segments are derived.
"""

import unicodedata
from functools import cache
from pathlib import Path

import torch

from errors import BadInput, read_json

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 100
# keys of tokenizer_config.json that change ids -> the values with which they are ours
USUAL = {"tokenize_chinese_chars": (True,), "do_basic_tokenize": (True,),
         "wordpieces_prefix": ("##",), "word_tokenizer_type": (None, "basic"),
         "subword_tokenizer_type": (None, "wordpiece")}
CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
       (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


@cache
def cleaned(c):
    """A character, a blank for white space, blanks around a CJK one, nothing for a control."""
    if c in "\t\n\r" or unicodedata.category(c) == "Zs":
        return " "
    if any(low <= ord(c) <= high for low, high in CJK):
        return f" {c} "
    return "" if c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs") else c


@cache
def split(c):
    """A character, with blanks around ASCII that is no letter, digit or blank, and Unicode's P."""
    apart = "!" <= c <= "~" and not c.isalnum() or unicodedata.category(c)[0] == "P"
    return f" {c} " if apart else c


class WordPiece:
    """The tokenizer of a vocabulary {entry: id}; `lower` for the uncased ones."""

    def __init__(self, vocab, lower=True):
        if missing := [name for name in SPECIAL if name not in vocab]:
            raise BadInput(f"the vocabulary lacks {', '.join(missing)}: "
                           "give the vocab.txt that belongs to the checkpoint")
        self.vocab, self.lower, self.cache = vocab, lower, {}
        self.pad, self.unk, self.cls, self.sep, self.mask = (vocab[name] for name in SPECIAL)

    @classmethod
    def read(cls, folder):
        """The tokenizer of a checkpoint folder: vocab.txt, and do_lower_case of
        tokenizer_config.json, true where there is none."""
        path, config = Path(folder) / "vocab.txt", Path(folder) / "tokenizer_config.json"
        try:
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}): "
                           "a text model needs the vocab.txt that belongs to it") from None
        given = read_json(config, "mend it, or take it away") if config.exists() else {}
        lower = given.get("do_lower_case", True)
        for key, usual in (USUAL | {"do_lower_case": (True, False),
                                    "strip_accents": (None, lower)}).items():
            if given.get(key, usual[0]) not in usual:
                raise BadInput(f"{config} says {key} {given[key]!r:.60}, which makes other ids "
                               "than we do")
        return cls({entry: i for i, entry in enumerate(lines)}, lower)

    def words(self, text):
        """The text as words and single punctuation characters."""
        text = "".join(map(cleaned, text))
        if self.lower:
            text = unicodedata.normalize("NFD", text.lower())
            text = "".join(c for c in text if unicodedata.category(c) != "Mn")      # no accents
        return "".join(map(split, text)).split()

    def pieces(self, word):
        """Token ids of one word, longest match first."""
        ids, start = [], 0
        while start < len(word) <= LONGEST_WORD:
            for end in range(len(word), start, -1):
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return [self.unk]
            ids.append(self.vocab[piece])
            start = end
        return ids or [self.unk]

    def ids(self, text):
        """Token ids of a text, without [CLS] and [SEP]; every distinct word is looked up once."""
        out = []
        for word in self.words(text):
            if word not in self.cache:
                self.cache[word] = self.pieces(word)
            out += self.cache[word]
        return out

    def encode(self, texts, limit=512):
        """Ids (n, T) int64 of n texts or pairs of texts, padded on the right with [PAD].

        T is the length of the longest, at most `limit`. What is too long loses tokens at its end;
        of a pair always the longer part loses one, the second if both are equally long.
        """
        if limit < 4:
            raise BadInput(f"{limit} tokens are too few for [CLS] a [SEP] b [SEP]: allow 4 or more")
        rows = []
        for text in texts:
            parts = [self.ids(part) for part in ((text,) if isinstance(text, str) else text)]
            for _ in range(sum(map(len, parts)) - (limit - 1 - len(parts))):
                max(reversed(parts), key=len).pop()
            rows.append([self.cls] + [i for part in parts for i in (*part, self.sep)])
        out = torch.full((len(rows), max(map(len, rows), default=0)), self.pad)
        for row, ids in zip(out, rows):
            row[:len(ids)] = torch.tensor(ids)
        return out
