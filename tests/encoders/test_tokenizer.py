"""WordPiece against ids of the reference implementation, worked examples and damaged files.

NASTY: text, ids that the Hugging Face tokenizers library (BertWordPieceTokenizer, lowercase) gives
with the vocabulary of bert-base-uncased.
"""

import pytest
import torch

from encoders.tokenizer import WordPiece
from errors import BadInput
from support import refuses

NASTY = [
    ("", [101, 102]),
    (" ", [101, 102]),
    ("Hello, World!", [101, 7592, 1010, 2088, 999, 102]),
    ("unaffable", [101, 14477, 20961, 3468, 102]),
    ("naïve café Ünïcode ÅÄÖ", [101, 15743, 7668, 27260, 9779, 2080, 102]),
    ("İstanbul ǅ ﬁ", [101, 9960, 100, 1984, 102]),
    ("你好,世界", [101, 100, 100, 1010, 1745, 100, 102]),
    ("日本語テスト", [101, 1864, 1876, 1950, 1713, 30233, 30240, 102]),
    ("한국어 텍스트",
     [101, 1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008, 1467, 30009, 30020, 29997,
      30017, 30003, 30017, 102]),
    ('a\x00b\x07c\ufffdd\u200be\x85f\x0cg', [101, 5925, 3207, 2546, 2290, 102]),
    ('tabs\tand\nnewlines\r\n\xa0\u2003\u2028\u3000end',
     [101, 21628, 2015, 1998, 2047, 12735, 2203, 102]),
    ("$5.00 + 3^2 = 14`~|<>",
     [101, 1002, 1019, 1012, 4002, 1009, 1017, 1034, 1016, 1027, 2403, 1036, 1066, 1064,
      1026, 1028, 102]),
    ("“curly” — dash… ¿qué? ‽",
     [101, 1523, 17546, 1524, 1517, 11454, 1529, 1094, 10861, 1029, 100, 102]),
    ("x" * 100, [101, 22038, *[20348] * 49, 102]),
    ("x" * 101, [101, 100, 102]),
    ("antidisestablishmentarianism", [101, 3424, 10521, 4355, 7875, 13602, 3672, 12199, 2964, 102]),
    ("é combinëd ́", [101, 1041, 4117, 102]),
    ("😀 emoji 🤣 🥹", [101, 100, 7861, 29147, 2072, 100, 100, 102]),
    ('\u0378 unassigned \ue000 private', [101, 100, 14477, 18719, 19225, 2797, 102]),
    ("don't can't we've", [101, 2123, 1005, 1056, 2064, 1005, 1056, 2057, 1005, 2310, 102]),
    ("http://a.b/c?d=e&f=g#h",
     [101, 8299, 1024, 1013, 1013, 1037, 1012, 1038, 1013, 1039, 1029, 1040, 1027, 1041,
      1004, 1042, 1027, 1043, 1001, 1044, 102]),
    ("snake_case @user #tag 100% C++",
     [101, 7488, 1035, 2553, 1030, 5310, 1001, 6415, 2531, 1003, 1039, 1009, 1009, 102]),
    ("ΑΒΓ αβγ Привет",
     [101, 1155, 29720, 29721, 1155, 29720, 29721, 1194, 16856, 10325, 25529, 15290, 22919,
      102]),
    ("ß STRASSE ẞ", [101, 1096, 2358, 8180, 3366, 1096, 102]),
    ("½ ² Ⅷ ①", [101, 1092, 1082, 100, 100, 102]),
    ("ก็ไทย हिन्दी عربى עברית",
     [101, 100, 1339, 29877, 29863, 29861, 29878, 1288, 17149, 29816, 29837, 1259, 29789,
      29811, 29796, 29813, 102]),
    ("𠀀 豈 㐀", [101, 100, 100, 100, 102]),
    ('a\xadb soft', [101, 11113, 3730, 102]),
    ("w̵ strike", [101, 1059, 4894, 102]),
    ("ab" * 60, [101, 100, 102]),
    ("[ CLS ] { sep }", [101, 1031, 18856, 2015, 1033, 1063, 19802, 1065, 102]),
    ("١٢٣ ۴", [101, 100, 100, 102]),
    ("ℌℑ ﷺ", [101, 100, 100, 102]),
]


VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "##ab", "a", "cafe",
         "##s", ",", "你", "A", "café"]


@pytest.fixture
def words():
    return WordPiece({entry: i for i, entry in enumerate(VOCAB)})


def write(folder, vocab=VOCAB, config=None):
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(config)
    return folder


def test_ids_are_those_of_the_reference_implementation(real):
    words = WordPiece.read(real / "bert-minilm-l6")
    for text, ids in NASTY:
        assert words.encode([text])[0].tolist() == ids, text


def test_longest_match_first(words):
    assert words.ids("unaffable") == [5, 6, 7]              # the paper's example: un ##aff ##able
    assert words.ids("unaffab") == [5, 6, 8]
    assert words.ids("unaffabl") == [1]                     # gets stuck after ##ab: all of it
    assert words.ids("a" + 100 * "s") == [1]                # 101 characters
    assert words.ids("a" + 99 * "s") == [9] + 99 * [11]     # 100 characters


def test_clean_lower_and_split(words):
    assert words.ids("Caf\u00c9s,a\u4f60a") == [10, 11, 12, 9, 13, 9]
    assert words.ids("c\x00a\u200bfe\u0301 \ufffd") == [10]
    cased = WordPiece(words.vocab, lower=False)
    assert cased.ids("A a caf\u00e9 Cafe") == [14, 9, 15, 1]


def test_texts_cannot_write_markers(words):
    assert 3 not in words.ids("a [SEP] a") and words.ids("a [SEP] a")[0] == 9


def test_pairs_and_padding(words):
    assert words.encode(["a", ("a a", "cafe"), ""]).tolist() == [
        [2, 9, 3, 0, 0, 0], [2, 9, 9, 3, 10, 3], [2, 3, 0, 0, 0, 0]]
    assert words.encode([]).shape == (0, 0)
    assert words.encode(["a"]).dtype == torch.int64


@pytest.mark.parametrize("first, second, limit, kept", [
    (5, 5, 10, (4, 3)), (4, 6, 10, (4, 3)), (1, 9, 10, (1, 6)), (9, 1, 10, (6, 1)),
    (3, 4, 10, (3, 4)), (9, 9, 4, (1, 0))])
def test_pairs_are_cut_at_the_longer_part(words, first, second, limit, kept):
    (row,) = words.encode([(first * "a ", second * "un ")], limit).tolist()
    assert row == [2] + kept[0] * [9] + [3] + kept[1] * [5] + [3]


def test_single_texts_are_cut_at_the_end(words):
    assert words.encode(["a un cafe a"], 5).tolist() == [[2, 9, 5, 10, 3]]
    refuses("3 tokens are too few", words.encode, ["a"], 3)


def test_folders(tmp_path):
    refuses("vocab.txt cannot be read .No such file", WordPiece.read, tmp_path)
    assert WordPiece.read(write(tmp_path)).vocab["café"] == 15
    assert WordPiece.read(tmp_path).lower
    assert not WordPiece.read(write(tmp_path, config='{"do_lower_case": false}')).lower
    with pytest.raises(BadInput, match=r"lacks \[SEP\], \[MASK\]: give the vocab.txt"):
        WordPiece.read(write(tmp_path, VOCAB[:3]))
    refuses("tokenizer_config.json cannot be read", WordPiece.read, write(tmp_path, config="{"))
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    refuses("vocab.txt cannot be read .*utf-8", WordPiece.read, tmp_path)


@pytest.mark.parametrize("config", ['{"do_lower_case": "false"}', '{"strip_accents": false}',
                                    '{"tokenize_chinese_chars": false}',
                                    '{"do_lower_case": false, "strip_accents": true}',
                                    '{"do_basic_tokenize": false}', '{"wordpieces_prefix": "@"}',
                                    '{"word_tokenizer_type": "mecab"}', '{"do_lower_case": []}',
                                    '{"subword_tokenizer_type": "character"}'])
def test_settings_that_change_ids_are_refused(tmp_path, config):
    with pytest.raises(BadInput, match="makes other ids than we do"):
        WordPiece.read(write(tmp_path, config=config))


def test_settings_at_their_usual_values_are_read(tmp_path):
    config = '{"do_lower_case": true, "strip_accents": null, "tokenize_chinese_chars": true}'
    assert WordPiece.read(write(tmp_path, config=config)).lower
