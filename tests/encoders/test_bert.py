"""The text encoder against an independent computation; padding changes nothing."""

import json

import numpy as np
import pytest
import torch

import encoders
import reference
from encoders.bert import BERT
from encoders.heads import place
from files import WORDS, published_bert
from support import refuses

TEXTS = ["a b c", ("d e", "f g h i"), "a", ("", "b")]


def compare(folder, heads, texts, tolerance):
    """Hidden states and features of encoders.load(folder) against the numpy reference."""
    model = encoders.load(folder)
    w = {k.removeprefix("bert.").replace("gamma", "weight").replace("beta", "bias"): v
         for k, v in reference.read(folder / "model.safetensors").items()}
    ids = model.encode(texts)
    with torch.no_grad():
        hidden, features = model.hidden(ids).numpy(), model(ids).numpy()
    for row, ours, feature in zip(ids.tolist(), hidden, features):
        row = [i for i in row if i != 0]
        first = row.index(model.sep) + 1
        segments = [0] * first + [1] * (len(row) - first)
        theirs = reference.bert(row, segments, w, heads=heads, eps=1e-12)
        np.testing.assert_allclose(ours[:len(row)], theirs, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(feature, theirs.mean(0), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("prefix, old", [("bert.", True), ("", False)])
def test_published_names_give_the_reference_output(tmp_path, prefix, old):
    compare(published_bert(tmp_path / "m", prefix, old), 3, TEXTS, 2e-5)


def test_real_minilm_gives_the_reference_output(real):
    compare(real / "bert-minilm-l6", 12,
            ["A man is playing a flute.", ("Ünïcode, 你好!", "is it the same?")], 1e-5)


def test_padding_changes_nothing(tmp_path):
    model = encoders.load(published_bert(tmp_path / "m")).double()
    ids = model.encode(TEXTS)
    wide = torch.cat([ids, torch.zeros(len(ids), 5, dtype=torch.int64)], 1)
    assert torch.equal(model.tokens(wide)[:, :ids.shape[1]], model.tokens(ids))
    torch.testing.assert_close(model(wide), model(ids), atol=1e-13, rtol=0)
    for text, feature in zip(TEXTS, model(ids)):
        torch.testing.assert_close(model(model.encode([text]))[0], feature, atol=1e-13, rtol=0)


def test_what_an_input_may_be(tmp_path):
    folder = published_bert(tmp_path / "m")
    model = encoders.load(folder, size=6)
    assert (model.kind, model.width) == ("text", 12)
    assert model.encode(["a b c d e f g"]).tolist() == [[2, 5, 6, 7, 8, 3]]
    assert place(model.encode(["a"]), torch.zeros(1).double()).dtype == torch.int64
    assert place(torch.zeros(1), torch.zeros(1).double()).dtype == torch.float64
    refuses("texts of 17 tokens: this model takes 16", model, torch.ones(1, 17, dtype=torch.int64))
    refuses("size 17: this text model takes 4 to 16 tokens", encoders.load, folder, size=17)
    refuses("a width of 12 cannot be shared by 5 heads", BERT, width=12, heads=5)
    refuses("made without a vocabulary", BERT().encode, ["a"])
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "k"]))
    refuses("vocab.txt has 16 entries, the model 15", encoders.load, folder)
    (folder / "vocab.txt").unlink()
    refuses("a text model needs the vocab.txt", encoders.load, folder)


@pytest.mark.parametrize("config, told", [
    ({"model_type": "bert", "position_embedding_type": "relative_key"}, "only .absolute."),
    ({"model_type": "bert_encoder", "widht": 12}, "describes no model: BERT has no .widht."),
    ({"model_type": "bert", "hidden_act": "gelu_new"}, "hidden_act .gelu_new., and only .gelu."),
    ({"model_type": "roberta"}, "unknown model_type 'roberta': .*known: .*bert"),
])
def test_configurations_that_cannot_be_used(tmp_path, config, told):
    folder = published_bert(tmp_path / "m")
    given = json.loads((folder / "config.json").read_text())
    given = config if config["model_type"] == "bert_encoder" else given | config
    (folder / "config.json").write_text(json.dumps(given))
    refuses(told, encoders.load, folder)
