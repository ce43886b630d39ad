"""Pretraining on text: what is hidden, what the vocabulary holds, and a checkpoint that loads."""

import numpy as np
import pytest
import torch

import encoders
from pretrain import __main__ as pretrain
from pretrain import bert, vit
from pretrain.bert import READ, hide, make, vocabulary
from tasks import english


def test_the_vocabulary_spells_any_word_and_holds_every_word_of_the_language():
    vocab = vocabulary()
    assert len(set(vocab)) == len(vocab) and vocab.index("[PAD]") == 0
    tokenizer = make(8, 1, 2)[0].tokenizer
    for word in english.vocabulary():
        assert tokenizer.ids(word) == [vocab.index(word)]
    spelled = [tokenizer.vocab[piece] for piece in ("x", "##y", "##l", "##e", "##m", "##7")]
    assert tokenizer.ids("xylem7") == spelled and tokenizer.unk not in tokenizer.ids("~ #Ab-9?")


@pytest.mark.parametrize("write", dict.fromkeys(READ), ids=lambda f: f.__name__)
def test_discourses_stay_in_the_language(write):
    known, rng = set(english.vocabulary()), np.random.default_rng(3)
    for text in (write(rng) for _ in range(200)):
        for part in (text,) if isinstance(text, str) else text:
            assert set(part.split()) <= known and len(part.split()) <= 16, part
        words = text if isinstance(text, str) else " ".join(text)
        assert len(words.split()) + 3 <= bert.POSITIONS


def test_hide():
    """Of 100,000 words a fifth is asked; of those 80, 10, 10 % are masked, changed, left alone."""
    tokenizer = make(8, 1, 2)[0].tokenizer
    word = tokenizer.vocab["dog"]
    row = torch.tensor([tokenizer.cls, *[word] * 10, tokenizer.sep, tokenizer.pad])
    ids = row.expand(10_000, -1)
    hidden, target = hide(ids, np.random.default_rng(0), tokenizer)
    asked = target != -100
    assert (target[asked] == word).all() and not asked[:, [0, 11, 12]].any()
    assert torch.equal(hidden[~asked], ids[~asked])
    now = hidden[asked]
    shares = [asked[:, 1:11].double().mean(), (now == tokenizer.mask).double().mean(),
              (now == word).double().mean()]
    np.testing.assert_allclose(shares, [0.2, 0.8, 0.1], atol=0.01)
    assert now.min() >= tokenizer.mask                     # never another special entry
    half = hide(ids, np.random.default_rng(0), tokenizer, 0.5)[1] != -100
    assert abs(half[:, 1:11].double().mean() - 0.5) < 0.01


def test_batches_hold_one_length_and_both_kinds(monkeypatch):
    monkeypatch.setattr(bert, "ROUND", 640)
    tokenizer, kinds = make(8, 1, 2)[0].tokenizer, set()
    source = bert.batches(np.random.default_rng(0), tokenizer, 32)
    for ids, second in (next(source) for _ in range(40)):
        assert ids.shape[1] == (ids != tokenizer.pad).sum(1).max()           # no padding for all
        kinds.add(second is None)
        if second is not None:
            assert len(ids) == len(second) > 16
            assert ((ids == tokenizer.sep).sum(1) == 1).all()
    assert kinds == {True, False}


def test_recall_reaches_the_feature_of_the_first_sentence():
    """The second loss has a gradient in the first sentence's words, and none in other rows."""
    torch.manual_seed(0)
    model = make(8, 1, 2)[0].double()
    head = bert.RecallHead(model).double()
    z, f = torch.randn(3, 8).double(), torch.randn(3, 8).double().requires_grad_()
    head(z, f)[1].sum().backward()
    assert f.grad[1].abs().min() > 0 and f.grad[[0, 2]].abs().max() == 0


def test_pretrain_bert_writes_a_checkpoint(command, tmp_path, monkeypatch):
    monkeypatch.setattr(bert, "ROUND", 640)
    words = ["bert", "--steps", 60, "--width", 16, "--depth", 1, "--heads", 2, "--lr",
             5e-3, "--out", tmp_path / "m"]
    code, out, err = command(pretrain.main, *words)
    assert code == 0 and "held-out texts: present 0." in out, err
    model = encoders.load(tmp_path / "m")
    assert model.kind == "text" and model(model.encode([("anna rests", "xylem")])).shape == (1, 16)
    assert command(pretrain.main, *words, "--overwrite")[0] == 0
    assert encoders.load(tmp_path / "m").sha256 == model.sha256       # the same seed, the same bits
    code, _, err = command(pretrain.main, "bert", "--width", 10, "--out", tmp_path / "n")
    assert code == 2 and "--width 10 is no multiple of --heads 4" in err


def test_masked_words_are_learnt(monkeypatch):
    """After a few steps the loss is far below a uniform guess, on new texts too."""
    monkeypatch.setattr(bert, "ROUND", 1280)
    torch.manual_seed(0)
    model = make(32, 1, 2)[0]
    head = bert.pretrain(model, steps=60, lr=5e-3)
    assert np.mean(list(bert.accuracy(model, head, 0, 40).values())) > 0.1


def test_pretrain_writes_a_checkpoint_and_replaces_none(command, tmp_path, monkeypatch):
    monkeypatch.setattr(vit, "ROUND", 64), monkeypatch.setattr(vit, "HELD_OUT", 40)
    words = ["--steps", 30, "--width", 16, "--depth", 1, "--heads", 2, "--out", tmp_path / "m"]
    code, out, err = command(pretrain.main, *words)
    assert code == 0 and "held-out scenes: symbol 0." in out, err
    first = encoders.load(tmp_path / "m")
    assert first(torch.rand(2, 1, 28, 28)).shape == (2, 16)
    code, _, err = command(pretrain.main, *words)
    assert code == 2 and "exists" in err and "--overwrite" in err
    assert command(pretrain.main, *words, "--overwrite")[0] == 0
    again = encoders.load(tmp_path / "m")
    assert command(pretrain.main, "--steps", 10, "--out", tmp_path / "n")[0] == 2
    assert again.sha256 == first.sha256                   # the same seed, the same bits


@pytest.mark.parametrize("files", [
    {"thesis.txt": "mine"}, {}, {"config.json": '{"model_type": "vit"}', "model.safetensors": "x"},
    {"config.json": "[1]"}, {"config.json": '{"model_type": "vit_encoder"}', "notes.md": "mine"}],
    ids=["text", "empty", "theirs", "damaged", "notes"])
def test_only_a_checkpoint_made_here_is_replaced(command, tmp_path, files):
    """A folder of other things stays as it is, whatever --overwrite says."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    code, _, err = command(pretrain.main, "--out", tmp_path, "--overwrite")
    assert code == 2 and "is no checkpoint made here" in err and err.count("\n") == 1
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == files
