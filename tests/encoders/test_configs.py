"""What a config.json may say: defaults of transformers, and a refusal by name of all else."""

import json

import numpy as np
import pytest
import torch

import encoders
import reference
import train
from encoders import configs, safetensors
from errors import BadInput, read_json
from files import WORDS, published_bert, published_clip, published_vit
from support import QUICK, refuses, write_checkpoint

IMAGE = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def make(folder, kind):
    """A published checkpoint of a kind."""
    if kind == "bert":
        return published_bert(folder)
    return published_clip(folder)[0] if kind == "clip" else published_vit(folder, kind)


def rewrite(file, drop=(), **changes):
    """Change keys of a JSON file, of its vision_config if there is one."""
    config = json.loads(file.read_text()) if file.exists() else {}
    inner = config.get("vision_config", config)
    inner.update(changes)
    for key in drop:
        del inner[key]
    file.write_text(json.dumps(config))


# ---- defaults ------------------------------------------------------------------------------------

# of the config classes of transformers 5.24: width, depth, heads, hidden, eps
PUBLISHED = {"vit": (768, 12, 12, 3072, 1e-12, 224, 16),
             "deit": (768, 12, 12, 3072, 1e-12, 224, 16),
             "dinov2": (768, 12, 12, 3072, 1e-6, 224, 14),
             "clip": (768, 12, 12, 3072, 1e-5, 224, 32),
             "bert": (768, 12, 12, 3072, 1e-12, 30522, 512)}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_what_a_config_leaves_out_is_the_default_of_transformers(tmp_path, kind):
    _, found = configs.settings({"model_type": kind}, tmp_path)
    last = ("vocab", "positions") if kind == "bert" else ("image", "patch")
    names = ("width", "depth", "heads", "hidden", "eps", *last)
    assert tuple(found[name] for name in names) == PUBLISHED[kind]
    assert found.get("activation", "gelu") == ("quick_gelu" if kind == "clip" else "gelu")
    assert found.get("channels", 3) == 3 and found.get("types", 2) == 2


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_tables_are_those_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    name = {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2", "clip": "CLIPVision", "bert": "Bert"}
    theirs = getattr(transformers, f"{name[kind]}Config")().to_dict()
    wanted = configs.DEFAULTS[kind]
    assert {k: theirs[k] for k in wanted if k in theirs} == {
        k: v for k, v in wanted.items() if k in theirs}
    configs.understood(theirs, wanted, configs.HARMLESS, "theirs")


def test_dinov2_without_eps_computes_with_1e_6(tmp_path):
    """Tokens of tiny variance, where the eps of LayerNorm counts; by the numpy encoder."""
    folder = published_vit(tmp_path / "m", "dinov2")
    tensors = safetensors.read(folder / "model.safetensors")
    for name in tensors:
        if name.startswith("embeddings.") or "layer_scale" in name:
            tensors[name] *= 1e-3
    safetensors.write(tensors, folder / "model.safetensors")
    rewrite(folder / "config.json", drop=["layer_norm_eps"])
    w = reference.read(folder / "model.safetensors")
    give = lambda eps: reference.vit(
        IMAGE[0].double().numpy(), w, heads=3, patch=7, eps=eps, dinov2=True,
        position=w["embeddings.position_embeddings"][0], **configs.IMAGENET)
    ours = encoders.load(folder)(IMAGE)[0].detach().numpy()
    np.testing.assert_allclose(ours, give(1e-6), atol=1e-4, rtol=1e-4)
    assert np.abs(give(1e-6) - give(1e-12)).max() > 0.01


# ---- keys that change the model ------------------------------------------------------------------

OTHER = [("vit", "qkv_bias", False), ("dinov2", "use_swiglu_ffn", True),
         ("dinov2", "num_register_tokens", 4), ("vit", "use_mean_pooling", True),
         ("deit", "attention_bias", False), ("clip", "mlp_bias", False),
         ("vit", "hidden_act", "gelu_new"), ("bert", "hidden_act", "relu"),
         ("bert", "hidden_act", "quick_gelu"), ("bert", "is_decoder", True),
         ("bert", "is_decoder", "false"), ("bert", "add_cross_attention", True),
         ("bert", "is_encoder_decoder", True), ("bert", "position_embedding_type", "relative_key"),
         ("bert", "embedding_size", 128), ("vit", "head_dim", 8), ("dinov2", "rope_theta", 100.0),
         ("clip", "use_head", True), ("bert", "pruned_heads", {"0": [1]}),
         ("bert", "quantization_config", {"bits": 8}), ("bert", "glyph_embedding_dim", 1728)]


@pytest.mark.parametrize("kind, key, value", OTHER)
def test_another_model_is_refused_by_the_name_of_its_key(tmp_path, kind, key, value):
    folder = make(tmp_path / "m", kind)
    rewrite(folder / "config.json", **{key: value})
    refuses(f"m/config.json says '?{key}'? ", encoders.load, folder)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_keys_that_change_nothing_are_read(tmp_path, kind):
    folder = make(tmp_path / "m", kind)
    want = {k: v.clone() for k, v in encoders.load(folder).state_dict().items()}
    width = configs.settings(json.loads((folder / "config.json").read_text()), folder)[1]["width"]
    rewrite(folder / "config.json", hidden_dropout_prob=0.1, drop_path_rate=0.2, pad_token_id=7,
            _name_or_path="x", architectures=["Other"], id2label={"0": "a"}, torch_dtype="float16",
            transformers_version="4.9", initializer_range=0.02, max_length=20, unknown=None,
            another=[], is_decoder=False, embedding_size=width, head_dim=width // 3)
    now = encoders.load(folder).state_dict()
    assert all(torch.equal(now[k], v) for k, v in want.items())


def test_a_square_written_as_a_pair_is_its_side(tmp_path):
    folder = published_vit(tmp_path / "m", "vit")
    want = encoders.load(folder)(IMAGE)
    rewrite(folder / "config.json", image_size=[28, 28], patch_size=[7, 7])
    assert torch.equal(encoders.load(folder)(IMAGE), want)
    rewrite(folder / "config.json", image_size=[28, 14])
    refuses(r"config.json says image_size \[28, 14\]", encoders.load, folder)


def test_vision_config_dict_overrides_vision_config(tmp_path):
    """As in transformers: with the defaults of what it leaves out."""
    both = {"model_type": "clip", "vision_config": {"hidden_size": 8, "patch_size": 4},
            "vision_config_dict": {"hidden_size": 24}}
    found = configs.settings(both, tmp_path)[1]
    assert (found["width"], found["patch"]) == (24, 32)


# ---- which model it is ---------------------------------------------------------------------------

BERT = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 15,
        "intermediate_size": 20, "max_position_embeddings": 16, "type_vocab_size": 2}


@pytest.mark.parametrize("change, read", [
    ({}, True), ({"architectures": ["BertForMaskedLM"], "type_vocab_size": 1}, True),
    ({"architectures": ["RobertaForMaskedLM"]}, False), ({"type_vocab_size": 1}, False),
    ({"max_position_embeddings": 514}, False), ({"pad_token_id": 1}, False),
    ({"layer_norm_eps": 1e-5}, False), ({"embedding_size": 4}, False),
    ({"architectures": ["ElectraModel"]}, False), ({"attention_window": [512]}, False),
    ({"relative_attention_num_buckets": 32}, False), ({"model_type": ["bert"]}, False)])
def test_a_config_without_model_type_is_of_bert_only_if_all_fits(tmp_path, change, read):
    if read:
        assert configs.settings(BERT | change, tmp_path)[0] is encoders.bert.BERT
    else:
        refuses("config.json ", configs.settings, BERT | change, tmp_path)


# ---- preprocessor_config.json --------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["vit", "dinov2", "clip"])
def test_inputs_are_not_normalised_where_the_folder_says_so(tmp_path, kind):
    folder = make(tmp_path / "m", kind)
    rewrite(folder / "preprocessor_config.json", do_normalize=False, image_mean=[.4, .4, .4])
    model = encoders.load(folder)
    assert model.mean.flatten().tolist() == [0, 0, 0] and model.std.flatten().tolist() == [1, 1, 1]


def test_inputs_are_normalised_as_the_folder_says(tmp_path):
    folder = published_vit(tmp_path / "m", "vit")
    rewrite(folder / "preprocessor_config.json", do_normalize=True, do_rescale=True, size=224,
            rescale_factor=0.00392156862745098, resample=3, image_mean=[.1, .2, .3],
            image_std=[.25, .5, 2])
    model = encoders.load(folder)
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([.1, .2, .3]))
    torch.testing.assert_close(model.std.flatten(), torch.tensor([.25, .5, 2]))


@pytest.mark.parametrize("key, value", [
    ("do_rescale", False), ("rescale_factor", 1), ("rescale_factor", 1 / 127.5),
    ("image_mean", [.5]), ("image_mean", .5), ("image_mean", None), ("image_std", [.5, .5, 0]),
    ("image_std", [.5, "a", .5]), ("image_std", []), ("do_normalize", "false"),
    ("do_flip_channel_order", True), ("offset", True), ("image_mean", [float("nan")] * 3)])
def test_other_inputs_are_refused_by_name(tmp_path, key, value):
    folder = published_vit(tmp_path / "m", "vit")
    rewrite(folder / "preprocessor_config.json", **{key: value})
    refuses(f"preprocessor_config.json.* '?{key}'? ", encoders.load, folder)


def test_one_channel_needs_its_own_mean(tmp_path):
    folder = published_vit(tmp_path / "m", "dinov2")
    tensors = safetensors.read(folder / "model.safetensors")
    name = "embeddings.patch_embeddings.projection.weight"
    tensors[name] = tensors[name][:, :1].clone()
    safetensors.write(tensors, folder / "model.safetensors")
    rewrite(folder / "config.json", num_channels=1)
    refuses("mean .* is not one number for each of 1 channels", encoders.load, folder)
    rewrite(folder / "preprocessor_config.json", image_mean=[.25], image_std=[.5])
    assert encoders.load(folder)(IMAGE).isfinite().all()


# ---- damaged files -------------------------------------------------------------------------------

ODD = [0, -1, True, None, "3", [], [3], 10 ** 30, float("nan"), float("inf"), {}]


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize("kind, key", [
    ("vit", "patch_size"), ("vit", "num_attention_heads"), ("deit", "hidden_size"),
    ("dinov2", "image_size"), ("dinov2", "mlp_ratio"), ("vit", "intermediate_size"),
    ("clip", "num_hidden_layers"), ("bert", "type_vocab_size"), ("bert", "vocab_size"),
    ("vit", "num_channels"), ("clip", "layer_norm_eps"), ("vit", "hidden_act")])
def test_values_that_no_model_has_are_refused_by_name(tmp_path, kind, key, value):
    folder = make(tmp_path / "m", kind)
    rewrite(folder / "config.json", **{key: value})
    refuses(f"config.json.* {key} ", encoders.load, folder)


@pytest.mark.parametrize("change, told", [
    ({"heads": 3}, "width 16 cannot be shared by heads 3"), ({"patch": 0}, "patch 0"),
    ({"patch": 29}, "image 28 is smaller than patch 29"), ({"widht": 1}, "ViT has no 'widht'"),
    ({"depth": 10 ** 6, "width": 10 ** 5, "heads": 1}, "over 5,000,000,000 parameters"),
    ({"std": [0.5, 0.5]}, r"std \[0.5, 0.5\] is not one number"), ({"clip": 1}, "clip 1"),
    ({"eps": 0}, "eps 0"), ({"width": 16.0}, "width 16.0"), ({"heads": 2.5}, "heads 2.5")])
def test_our_own_format_is_held_to_the_same(tmp_path, change, told):
    folder = write_checkpoint(tmp_path / "m")
    rewrite(folder / "config.json", **change)
    refuses(told, encoders.load, folder)


CONTENTS = {"empty": b"", "list": b"[1]", "null": b"null", "string": b'"vit"', "cut": b'{"a": 1',
            "latin": b'{"a": "\xe9"}', "deep": b"[" * 100_000, "zeros": bytes(20)}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_small_file_is_a_json_object_or_one_line(tmp_path, content):
    for kind, name in (("vit", "config.json"), ("dinov2", "preprocessor_config.json"),
                       ("bert", "tokenizer_config.json")):
        folder = make(tmp_path / kind, kind)
        (folder / name).write_bytes(content)
        with pytest.raises(BadInput, match=f"{kind}/{name} cannot be read ") as told:
            encoders.load(folder)
        assert "\n" not in str(told.value)


def test_read_json(tmp_path):
    (tmp_path / "x").write_bytes('\ufeff{"ä": 1}'.encode())
    assert read_json(tmp_path / "x", "") == {"ä": 1}
    refuses("y cannot be read .No such file or directory.: do this", read_json, tmp_path / "y",
            "do this")
    refuses("cannot be read .Is a directory", read_json, tmp_path, "")


def test_a_command_says_it_in_one_line(command, tmp_path):
    folder = published_vit(tmp_path / "m", "vit")
    rewrite(folder / "config.json", patch_size=0)
    code, _, err = command(train.main, "--model", folder, *QUICK, "--out", tmp_path / "run")
    assert code == 2 and err.count("\n") == 1 and "config.json says patch_size 0" in err
    assert not list(tmp_path.glob("run*"))


# ---- vocab.txt -----------------------------------------------------------------------------------

@pytest.mark.parametrize("entries, rows, read", [
    (15, 15, True), (14, 15, False), (16, 15, False), (15, 16, True), (15, 24, True),
    (15, 136, True), (15, 144, False), (15, 20, False), (17, 16, False)])
def test_a_vocabulary_is_as_long_as_its_table_or_the_table_is_padded(tmp_path, entries, rows, read):
    """Padded to a multiple of 8, by less than 128."""
    folder = published_bert(tmp_path / "m")
    tensors = safetensors.read(folder / "model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name] = torch.randn(rows, 12)
    safetensors.write(tensors, folder / "model.safetensors")
    rewrite(folder / "config.json", vocab_size=rows)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "k", "l"][:entries]) + "\n")
    if read:
        assert encoders.load(folder).encode(["a"]).tolist() == [[2, 5, 3]]
    else:
        refuses(f"vocab.txt has {entries} entries, the model {rows}", encoders.load, folder)
