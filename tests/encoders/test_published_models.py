"""Checkpoints as others publish them: CLIP, timm's single files, PyTorch files, fetched by name.

Every file is written here under the published names and compared with reference.py, in numpy.
"""

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
import torch

import encoders
import reference
import train
from encoders import configs, published as checkpoints
from encoders import safetensors
from errors import BadInput
from files import damage, layers, published_bert, published_clip, published_vit, random
from tasks import downloads
from support import refuses

IMAGE = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# ---- CLIP ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("whole", [True, False])
def test_clip_gives_the_reference_output(tmp_path, whole):
    folder, w = published_clip(tmp_path / "clip", whole)
    model = encoders.load(folder)
    theirs = reference.clip(IMAGE[0].double().numpy(), w, heads=3, patch=7, eps=1e-5, mean=MEAN,
                            std=STD)
    with torch.no_grad():
        np.testing.assert_allclose(model(IMAGE)[0].numpy(), theirs, atol=2e-5, rtol=2e-5)
    assert encoders.load(folder, size=42)(IMAGE).shape == (1, 12)


def test_clip_settings(tmp_path):
    """What a published config leaves out is usual: ViT-B/32, quick GELU, eps 1e-5."""
    folder, _ = published_clip(tmp_path / "clip")
    (folder / "config.json").write_text('{"model_type": "clip", "vision_config": {}}')
    _, found = encoders.settings(folder)
    assert found == dict(image=224, patch=32, channels=3, width=768, depth=12, heads=12,
                         hidden=3072, eps=1e-5, layer_scale=False, activation="quick_gelu",
                         clip=True, mean=MEAN, std=STD)
    exact, _ = published_clip(tmp_path / "exact", hidden_act="gelu")
    quick, _ = published_clip(tmp_path / "quick")
    assert (encoders.load(exact)(IMAGE) - encoders.load(quick)(IMAGE)).abs().max() > 1e-3
    with pytest.raises(BadInput, match="hidden_act .relu.: it must be gelu or quick_gelu"):
        encoders.load(published_clip(tmp_path / "relu", hidden_act="relu")[0])


# ---- single files under timm's names -------------------------------------------------------------

def timm(path, dinov2, key="model", **more):
    """A random ViT of width 128, 2 heads and 2 blocks in a .pth file; returns its arrays."""
    D, H = 128, 20
    shapes = {"cls_token": (1, 1, D), "pos_embed": (1, 17, D), "patch_embed.proj.bias": (D,),
              "patch_embed.proj.weight": (D, 3, 7, 7)}
    for i in range(2):
        shapes |= layers(f"blocks.{i}.", {"attn.qkv": (3 * D, D), "attn.proj": (D, D),
                                          "mlp.fc1": (H, D), "mlp.fc2": (D, H)},
                         ("norm1", "norm2"), D)
        shapes |= {f"blocks.{i}.ls{j}.gamma": (D,) for j in (1, 2)} if dinov2 else {}
    shapes |= layers("", {}, ["norm"], D) | ({"mask_token": (1, D)} if dinov2 else
                                             {"head.weight": (5, D), "head.bias": (5,)}) | more
    tensors = {k: v / 2 for k, v in random(shapes).items()}
    saved = {k: torch.from_numpy(v) for k, v in tensors.items()}
    torch.save({key: saved} if key else saved, path)
    return tensors


def hugging_face(w):
    """The arrays of a timm file under the names that reference.vit reads, DINOv2's or ViT's."""
    dinov2, out = "mask_token" in w, {}
    for k, v in w.items():
        start, _, end = k.partition("attn.qkv.")
        if end:
            for part, rows in zip(("query", "key", "value"), np.split(v, 3)):
                out[f"{start}attention.attention.{part}.{end}"] = rows
            continue
        for old, new in [("pos_embed", "embeddings.position_embeddings"),
                         ("cls_token", "embeddings.cls_token"),
                         ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
                         ("ls1.gamma", "layer_scale1.lambda1"),
                         ("ls2.gamma", "layer_scale2.lambda1"),
                         ("attn.proj", "attention.output.dense")]:
            k = k.replace(old, new)
        if not dinov2:
            for old, new in [("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
                             ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense")]:
                k = k.replace(old, new)
        out["layernorm." + k[5:] if k.startswith("norm.") else k] = v
    return {k.replace("blocks.", "encoder.layer."): v.astype(np.float64) for k, v in out.items()}


@pytest.mark.parametrize("dinov2, key", [(False, "model"), (True, None)])
def test_single_files_give_the_reference_output(tmp_path, dinov2, key):
    """DeiT's original files hold the tensors under "model"; DINOv2's hold nothing else."""
    w = hugging_face(timm(tmp_path / "small.pth", dinov2, key))
    model = encoders.load(tmp_path / "small.pth")
    theirs = reference.vit(IMAGE[0].double().numpy(), w, heads=2, patch=7, eps=1e-6, dinov2=dinov2,
                           position=w["embeddings.position_embeddings"][0], **configs.IMAGENET)
    with torch.no_grad():
        np.testing.assert_allclose(model(IMAGE)[0].numpy(), theirs, atol=5e-5, rtol=5e-5)
    assert (model.name, model.sha256) == ("small", safetensors.sha256(tmp_path / "small.pth"))
    assert (model.width, model.image, encoders.kind(tmp_path / "small.pth")) == (128, 28, "image")
    assert not encoders.load(tmp_path / "small.pth", random_weights=True).norm.weight.std()


def test_distilled_deit_is_refused(tmp_path):
    timm(tmp_path / "x.pth", False, dist_token=(1, 1, 128))
    with pytest.raises(BadInput, match="x.pth is a distilled DeiT, with a second class token"):
        encoders.load(tmp_path / "x.pth")
    folder = published_vit(tmp_path / "m", "deit")
    token = {"deit.embeddings.distillation_token": torch.zeros(1, 1, 12)}
    damage(folder, lambda t: t.update(token))
    refuses("distilled DeiT", encoders.load, folder)


def test_other_single_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
    with pytest.raises(BadInput, match="no ViT under timm's names .'patch_embed.proj.weight'"):
        encoders.load(tmp_path / "x.pth")
    timm(tmp_path / "y.pth", True, register_tokens=(1, 4, 128))
    refuses("has unexpected 1 tensors: register_tokens", encoders.load, tmp_path / "y.pth")


@pytest.mark.parametrize("width, heads", [(192, 3), (384, 6), (1152, 16), (1280, 16), (1408, 16),
                                          (1664, 16)])
def test_heads_of_the_families_of_timm(tmp_path, width, heads):
    """ViT-Ti, S, So400m, H, g and G: num_heads in timm's vision_transformer.py."""
    shapes = {"patch_embed.proj.weight": (width, 3, 14, 14), "pos_embed": (1, 5, width),
              "blocks.0.mlp.fc1.weight": (2, width)}
    torch.save({k: torch.zeros(s) for k, s in shapes.items()}, tmp_path / "x.pth")
    assert encoders.settings(tmp_path / "x.pth")[1]["heads"] == heads


def test_heads_from_a_config_beside_the_file(tmp_path):
    w = hugging_face(timm(tmp_path / "x.pth", True))
    give = lambda heads: reference.vit(
        IMAGE[0].double().numpy(), w, heads=heads, patch=7, eps=1e-6, dinov2=True,
        position=w["embeddings.position_embeddings"][0], mean=(.5,) * 3, std=(.25,) * 3)
    (tmp_path / "config.json").write_text('{"heads": 8, "mean": [0.5, 0.5, 0.5], '
                                          '"std": [0.25, 0.25, 0.25]}')
    ours = encoders.load(tmp_path / "x.pth")(IMAGE)[0].detach().numpy()
    np.testing.assert_allclose(ours, give(8), atol=2e-4, rtol=2e-4)
    assert np.abs(give(8) - give(2)).max() > 0.01
    for text, told in (('{"heads": 3}', "width 128 cannot be shared by heads 3"),
                       ('{"heads": 0}', "config.json says heads 0"), ("[8]", "no JSON object")):
        (tmp_path / "config.json").write_text(text)
        refuses(told, encoders.load, tmp_path / "x.pth")


def test_heads_that_cannot_be_told_are_asked_for(tmp_path):
    shapes = {"patch_embed.proj.weight": (100, 3, 14, 14), "pos_embed": (1, 5, 100),
              "blocks.0.mlp.fc1.weight": (2, 100)}
    torch.save({k: torch.zeros(s) for k, s in shapes.items()}, tmp_path / "x.pth")
    refuses('cannot be 64 wide in a width of 100: write {"heads": N} to .*/config.json',
            encoders.settings, tmp_path / "x.pth")


def test_train_prints_the_number_of_heads(command, tmp_path):
    timm(tmp_path / "small.pth", True)
    code, out, err = command(train.main, "--model", tmp_path / "small.pth", "--steps", 1,
                             "--limit", 20, "--out", tmp_path / "run")
    assert code == 0 and "\nsmall: width 128, depth 2, heads 2\n" in out, err


# ---- pytorch_model.bin ---------------------------------------------------------------------------

@pytest.fixture
def binary(tmp_path):
    """A BERT with pytorch_model.bin, and its features from model.safetensors before."""
    folder = published_bert(tmp_path / "m")
    model = encoders.load(folder)
    torch.save(safetensors.read(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder, model


def test_pytorch_files_are_read_alike(binary):
    folder, before = binary
    now = encoders.load(folder)
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in now.state_dict().items())
    assert now.sha256 == safetensors.sha256(folder / "pytorch_model.bin") != before.sha256


class Code:
    def __reduce__(self):
        return os.mkdir, ("it-was-executed",)


def test_pickled_code_is_refused_and_not_executed(binary, tmp_path, monkeypatch):
    folder, _ = binary
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda v, p: p.write_bytes(pickle.dumps(v, protocol=2))):
        save({"a": torch.zeros(1), "b": Code()}, folder / "pytorch_model.bin")
        with pytest.raises(BadInput, match="holds code and not only tensors") as told:
            encoders.load(folder)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "it-was-executed").exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-200], lambda b: b[:40], lambda b: b"",
                                    lambda b: b"no zip at all"])
def test_damaged_pytorch_files_are_refused(binary, damage):
    file = binary[0] / "pytorch_model.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadInput, match="cannot be read as tensors .it is damaged or cut") as told:
        encoders.load(binary[0])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [
    [torch.zeros(1)], {"a": 1}, {}, torch.zeros(2), {"a": torch.eye(2).to_sparse()},
    {"a": torch.zeros(2, device="meta")}])
def test_pytorch_files_of_other_things_are_refused(binary, content):
    torch.save(content, binary[0] / "pytorch_model.bin")
    refuses("holds no dict of tensors by name", encoders.load, binary[0])


def test_a_missing_tensor_is_named(binary):
    file = binary[0] / "pytorch_model.bin"
    tensors = torch.load(file)
    del tensors["bert.encoder.layer.1.attention.self.key.bias"]
    torch.save(tensors, file)
    refuses("lacks 1 tensors: blocks.1.k.bias", encoders.load, binary[0])


# ---- several files, and their index --------------------------------------------------------------

def sharded(folder, ending="safetensors", parts=3, prefix="", container=None):
    """The weights of a folder in several files with an index, as transformers writes them."""
    file = folder / "model.safetensors"
    tensors = {prefix + k: v for k, v in safetensors.read(file).items()}
    stem, where = {"safetensors": "model", "bin": "pytorch_model"}[ending], {}
    for i in range(parts):
        name = f"{stem}-{i + 1:05}-of-{parts:05}.{ending}"
        part = dict(list(tensors.items())[i::parts])
        where |= dict.fromkeys(part, name)
        if ending == "bin":
            torch.save({container: part} if container else part, folder / name)
        else:
            safetensors.write(part, folder / name)
    file.unlink()
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize("words", [("safetensors",), ("bin",), ("safetensors", 1),
                                   ("safetensors", 3, "module.backbone."),
                                   ("bin", 2, "module.", "state_dict")], ids=str)
@pytest.mark.parametrize("make", [lambda f: published_vit(f, "dinov2"), published_bert])
def test_shards_are_the_checkpoint(tmp_path, words, make):
    folder = make(tmp_path / "m")
    want = encoders.load(folder).state_dict()
    index = sharded(folder, *words)
    model = encoders.load(folder)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in want.items())
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*-of-*"))]
    assert model.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": {}}))
    assert encoders.load(folder).sha256 == model.sha256


def edit(index, change):
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


SECOND = "model-00002-of-00003.safetensors"
BROKEN = {
    "no shard": (lambda i: (i.parent / SECOND).unlink(), f"lacks {SECOND}, which model.safeten"),
    "cut": (lambda i: (i.parent / SECOND).write_bytes(b"123"), f"{SECOND} is no complete"),
    "empty": (lambda i: i.write_text(""), "index.json cannot be read"),
    "list": (lambda i: i.write_text("[]"), "index.json cannot be read .it holds no JSON object"),
    "no map": (lambda i: i.write_text("{}"), "has no weight_map"),
    "odd map": (lambda i: i.write_text('{"weight_map": [1]}'), "has no weight_map"),
    "above": (lambda i: edit(i, lambda m: m.update({"vit.layernorm.bias": f"../m/{SECOND}"})),
              "puts vit.layernorm.bias into '../m/"),
    "root": (lambda i: edit(i, lambda m: m.update({"vit.layernorm.bias": "/etc/passwd"})),
             "into '/etc/passwd', which is no file beside it"),
    "number": (lambda i: edit(i, lambda m: m.update({"vit.layernorm.bias": 5})), "into 5"),
    "folder": (lambda i: edit(i, lambda m: m.update({"vit.layernorm.bias": ".."})), "lacks \\.\\."),
    "itself": (lambda i: edit(i, lambda m: m.update(dict.fromkeys(m, i.name))),
               "cannot be read as tensors"),
    "elsewhere": (lambda i: edit(i, lambda m: m.pop("vit.layernorm.bias")),
                  "unexpected 1 tensors by model.safetensors.index.json: vit.layernorm.bias"),
    "more": (lambda i: edit(i, lambda m: m.update({"vit.more": SECOND})), "lacks or .*vit.more"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_index_is_one_line(tmp_path, name):
    index = sharded(published_vit(tmp_path / "m", "vit"))
    change, told = BROKEN[name]
    change(index)
    with pytest.raises(BadInput, match=told) as error:
        encoders.load(tmp_path / "m")
    assert "\n" not in str(error.value)


# ---- by name -------------------------------------------------------------------------------------

def test_a_published_name_is_fetched_and_loaded(binary, tmp_path, monkeypatch):
    """As from a server without model.safetensors; bert-tiny of 2020 has no model_type either."""
    folder, model = binary
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setitem(checkpoints.CHECKPOINTS, "bert-tiny",
                        (folder.as_uri(), checkpoints.TEXTS, None))

    def absent(url, path, sha256=None):
        if not (folder / path.name).exists():
            raise downloads.NotThere(url)
        return fetch(url, path, sha256)

    fetch = downloads.fetch
    monkeypatch.setattr(downloads, "fetch", absent)
    ids = model.encode(["a b", "c"])
    assert torch.equal(encoders.load("bert-tiny")(ids), model(ids))
    assert encoders.load("bert-tiny").name == "bert-tiny" and encoders.kind("bert-tiny") == "text"
    refuses("unknown model 'bert-tyny': did you mean 'bert-tiny'", encoders.load, "bert-tyny")


# ---- what training scripts wrap around a checkpoint ----------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "backbone.", "model.encoder."])
@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "teacher", None])
def test_a_wrapped_checkpoint_is_the_checkpoint(tmp_path, prefix, container):
    folder = published_vit(tmp_path / "m", "vit")
    plain = encoders.load(folder)(IMAGE)
    tensors = safetensors.read(folder / "model.safetensors")
    wrapped = {prefix + k: v for k, v in tensors.items()}
    torch.save({container: wrapped, "epoch": 3} if container else wrapped,
               folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(encoders.load(folder)(IMAGE), plain)
    safetensors.write(wrapped, folder / "model.safetensors")
    assert torch.equal(encoders.load(folder)(IMAGE), plain)


@pytest.mark.parametrize("spoil", [lambda v: v * float("nan"), lambda v: v / 0,
                                   lambda v: v.to(torch.int8)], ids=["nan", "inf", "int8"])
@pytest.mark.parametrize("name", ["vit.layernorm.weight", "vit.encoder.layer.1.output.dense.bias"])
def test_weights_that_are_no_numbers_are_named(tmp_path, spoil, name):
    folder = published_vit(tmp_path / "m", "vit")
    tensors = safetensors.read(folder / "model.safetensors")
    safetensors.write(tensors | {name: spoil(tensors[name])}, folder / "model.safetensors")
    with pytest.raises(BadInput, match="only finite floating-point weights can be used"):
        encoders.load(folder)
