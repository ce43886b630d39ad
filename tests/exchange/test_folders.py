"""PEFT folders and Hugging Face folders: what is in the files, and that it comes back unchanged.

The files are read by reference.py, which shares no code with the writers; test_peft.py reads them
with the libraries they are for.
"""

import json
import math

import numpy as np
import pytest
import torch

import encoders
import eval as evaluation
import lora
import reference
import train
from encoders import safetensors
from errors import BadInput
from exchange import huggingface, peft_folder, peft_forms
from experiment import run_folder, scoring
from files import published_clip, published_vit
from linearize import encoder_of
from support import EXPORTS, EXPORT_IDS, make_run, perturb, refuses, small_run

VIT = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
       "mlp.fc1", "mlp.fc2"]
BERT = ["attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense", "intermediate.dense", "output.dense"]
MODULES = {"tiny": [f"layers.{i}.{m}" for i in range(2) for m in VIT],
           "dinov2": [f"encoder.layer.{i}.{m}" for i in range(2) for m in VIT],
           "bert": [f"encoder.layer.{i}.{m}" for i in range(2) for m in BERT]}


@pytest.fixture
def exported(tmp_path, tiny):
    """exported("dora", "off") -> (the run, the folder it was written to)."""
    def call(adapter="lora", reading="off", checkpoint=tiny, **hp):
        run = make_run(tmp_path / "run", checkpoint, adapter, reading, **small_run(adapter) | hp)
        peft_folder.write_adapter(run, tmp_path / "peft")
        return run, tmp_path / "peft"
    return call


def tensors(run):
    """Everything a run holds, flat."""
    return huggingface.flat(run["heads"] | {k: run[k] for k in ("start", "trained", "buffers")})


# ---- adapters: what is in the files --------------------------------------------------------------

@pytest.mark.parametrize("adapter, reading", [case for case in EXPORTS
                                              if case[0] not in peft_forms.SAME])
def test_the_files_hold_the_change_of_every_weight(exported, adapter, reading):
    """scale * B A, or DoRA's equation, from the two files and the base alone, in numpy."""
    run, folder = exported(adapter, reading)
    config = json.loads((folder / "adapter_config.json").read_text())
    found = reference.read(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    base = reference.read(folder / "base" / "model.safetensors")
    model = run_folder.rebuild(run, run_folder.base_encoder(run))
    want = {k: v.double().numpy() for k, v in lora.deltas(encoder_of(model)).items()}
    files = {"q": "attention.attention.query", "fc2": "output.dense"}
    for i, part, module in ((0, "q", VIT[0]), (1, "fc2", VIT[5])):
        stem = f"base_model.model.layers.{i}.{module}"
        A, B = found[f"{stem}.lora_A.weight"], found[f"{stem}.lora_B.weight"]
        assert len(A) == B.shape[1] == config["r"] == (6 if adapter in ("pissa", "milora", "olora")
                                                       else 3)
        change, W0 = scale * B @ A, base[f"encoder.layer.{i}.{files[part]}.weight"]
        if config["use_dora"]:
            V = W0 + change
            m = found[f"{stem}.lora_magnitude_vector"]
            change = (m / np.linalg.norm(V, axis=1))[:, None] * V - W0
        np.testing.assert_allclose(change, want[f"blocks.{i}.{part}.weight"], atol=2e-6)
        assert np.abs(change).max() > 0.05
    assert config["use_rslora"] == (adapter == "rslora")
    assert config["use_dora"] == (adapter == "dora")


@pytest.mark.parametrize("kind", ["tiny", "dinov2", "bert"])
def test_names_are_those_of_the_modules(exported, tmp_path, tiny, tiny_text, kind):
    checkpoint = {"tiny": tiny, "bert": tiny_text}.get(kind) or published_vit(
        tmp_path / "m", kind, hidden=24)
    _, folder = exported("dora", checkpoint=checkpoint)
    found = reference.read(folder / "adapter_model.safetensors")
    parts = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    assert found.keys() == {f"base_model.model.{m}.{p}" for m in MODULES[kind] for p in parts}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == MODULES[kind]
    classes = {"tiny": "ViTModel", "dinov2": "Dinov2Model", "bert": "BertModel"}
    assert config["auto_mapping"]["base_model_class"] == classes[kind]
    assert config["peft_type"] == "LORA" and config["bias"] == "none"
    assert config["init_lora_weights"] is True        # pissa's would be applied to the base again
    assert (folder / "base").is_dir() == (kind != "dinov2")     # that one is published so
    assert config["base_model_name_or_path"] == str(checkpoint if kind == "dinov2"
                                                    else folder / "base")


def test_a_base_of_another_size_is_written_as_it_was_used(tmp_path):
    checkpoint = published_vit(tmp_path / "m", "vit")
    run = make_run(tmp_path / "run", checkpoint, "lora", size=42)
    peft_folder.write_adapter(run, tmp_path / "peft")
    assert json.loads((tmp_path / "peft/base/config.json").read_text())["image_size"] == 42
    back = encoders.load(tmp_path / "peft/base")
    x = torch.rand(2, 3, 42, 42)
    assert torch.equal(back(x), encoders.load(checkpoint, 42)(x))


def test_a_random_base_is_written_and_the_checkpoint_not_named(tmp_path):
    checkpoint = published_vit(tmp_path / "m", "vit")
    run = make_run(tmp_path / "run", checkpoint, "lora")
    run["setting"]["random_weights"], run["base"]["sha256"] = True, "random weights, seed 0"
    peft_folder.write_adapter(run, tmp_path / "peft")
    x, random = torch.rand(2, 3, 28, 28), encoders.load(checkpoint, random_weights=True)
    assert torch.equal(encoders.load(tmp_path / "peft/base")(x), random(x))


def test_only_adapted_layers_are_named(exported):
    _, folder = exported("lora", targets="q,fc2")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"layers.{i}.{m}" for i in (0, 1)
                                        for m in ("attention.q_proj", "mlp.fc2")]


def test_a_residual_adapter_is_both_pairs_of_factors(exported):
    """[A; A0] and [B, -B0]; alpha doubles with the rank, so that the scale stays 5 / 3."""
    run, folder = exported("milora")
    found = safetensors.read(folder / "adapter_model.safetensors")
    stem, layer = "base_model.model.layers.1.mlp.fc1", "blocks.1.fc1"
    part = run["trained"] | run["buffers"]
    assert torch.equal(found[f"{stem}.lora_A.weight"][3:], part[f"{layer}.A0"])
    assert torch.equal(found[f"{stem}.lora_B.weight"][:, 3:], -part[f"{layer}.B0"])
    assert torch.equal(found[f"{stem}.lora_B.weight"][:, :3], part[f"{layer}.B"])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 10)


# ---- adapters: coming back -----------------------------------------------------------------------

@pytest.mark.parametrize("adapter, reading", EXPORTS, ids=EXPORT_IDS)
def test_a_run_comes_back_to_the_last_bit(exported, adapter, reading):
    run, folder = exported(adapter, reading)
    back = peft_folder.load(folder)
    a, b = tensors(run), tensors(back)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert all(a[k].dtype == b[k].dtype for k in a)
    assert {k: back[k] for k in ("setting", "layers", "base", "torch", "result")} == \
           {k: run[k] for k in ("setting", "layers", "base", "torch", "result")}
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        ours, again = (run_folder.rebuild(r, run_folder.base_encoder(r))(x) for r in (run, back))
    assert torch.equal(ours, again)


def test_the_command_writes_and_reads(command, tmp_path, tiny):
    run = make_run(tmp_path / "a", tiny, "pissa", rank=2)
    code, out, err = command(evaluation.main, run["folder"], "--export", tmp_path / "peft")
    assert code == 0 and f"wrote {tmp_path / 'peft'}" in out, err
    code, again, err = command(evaluation.main, tmp_path / "peft")
    assert code == 0, err
    numbers = lambda text: [line.split("|")[2:] for line in text.splitlines() if "pissa" in line]
    assert numbers(out) == numbers(again) and numbers(out)
    other = make_run(tmp_path / "b", tiny, "lora", seed=2, task="letters", rank=2)
    code, out, err = command(evaluation.main, tmp_path / "peft", other["folder"], "--merge", "ties")
    assert code == 0 and "| ties" in out, err


def test_an_adapter_changed_by_another_tool_is_what_is_read(exported):
    _, folder = exported("lora")
    file, key = folder / "adapter_model.safetensors", "base_model.model.layers.0.mlp.fc1.lora_B"
    found = safetensors.read(file)
    found[f"{key}.weight"] += 1
    safetensors.write(found, file)
    trained = peft_folder.load(folder)["trained"]
    assert torch.equal(trained["blocks.0.fc1.B"], found[f"{key}.weight"])


# ---- adapters: refusals and damage ---------------------------------------------------------------

@pytest.mark.parametrize("adapter, reading", [
    ("full", "off"), ("vera", "off"), ("bone", "off"), ("l_lora", "model"), ("lora", "model"),
    ("dora", "layer"), ("pissa", "layer"), ("dvora", "off"), ("bottleneck", "off"),
    ("loha", "layer")])
def test_what_peft_has_not_is_refused_with_the_list(tmp_path, tiny, adapter, reading):
    run = make_run(tmp_path / "run", tiny, adapter, reading)
    told = f"{adapter}.* is not written for PEFT .*lora, rslora.*merged encoder"
    with pytest.raises(BadInput, match=told):
        peft_folder.write_adapter(run, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_quantised_runs_and_other_encoders_are_refused(tmp_path, tiny):
    run = make_run(tmp_path / "run", tiny, "lora")
    run["setting"]["quantize"] = "nf4"
    refuses("nf4 is not written for PEFT", peft_folder.write_adapter, run, tmp_path / "out")
    run = make_run(tmp_path / "clip-run", published_clip(tmp_path / "clip")[0], "lora", rank=2)
    refuses("clip has no Hugging Face form", peft_folder.write_adapter, run, tmp_path / "out")


@pytest.mark.parametrize("words, message", [
    (["a", "b"], "give one run, or --merge RULE"),
    (["a", "b", "--merge", "ties,average"], "one rule"),
    (["a", "b", "--merge", "twin"], "one rule"),
    (["a", "b", "--merge", "ties", "--by", "seed"], "without --by")])
def test_export_wants_one_thing(command, tmp_path, words, message):
    code, _, err = command(evaluation.main, *words, "--export", tmp_path / "x")
    assert code == 2 and message in err and err.count("\n") == 1


def test_an_existing_folder_is_left_alone(command, tmp_path, tiny):
    run = make_run(tmp_path / "run", tiny, "lora")
    code, _, err = command(evaluation.main, run["folder"], "--export", run["folder"])
    assert code == 2 and "exists: give the name of a new folder" in err
    assert (run["folder"] / "adapter.pt").exists()


def rewrite(path, **changes):
    run_folder.write_json(json.loads(path.read_text()) | changes, path)


def drop(path, key):
    found = safetensors.read(path)
    del found[next(k for k in found if key in k)]
    safetensors.write(found, path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-5])


ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DAMAGE = {
    "no run.json": (lambda f: (f / "run.json").unlink(), "--init"),
    "no tensors": (lambda f: (f / ADAPTER).unlink(), f"has no {ADAPTER}"),
    "cut short": (lambda f: cut(f / ADAPTER), "no complete safetensors"),
    "run.json cut": (lambda f: cut(f / "run.json"), "run.json cannot be read"),
    "run.json a list": (lambda f: (f / "run.json").write_text("[1]"), "no JSON object"),
    "run.json lacks": (lambda f: (f / "run.json").write_text("{}"), "run lacks base"),
    "config cut": (lambda f: cut(f / CONFIG), f"{CONFIG} cannot be read"),
    "rank": (lambda f: rewrite(f / CONFIG, r=4), "says r 4"),
    "alpha": (lambda f: rewrite(f / CONFIG, lora_alpha=4), "says lora_alpha 4"),
    "scale": (lambda f: rewrite(f / CONFIG, use_rslora=True), "says use_rslora True"),
    "bias": (lambda f: rewrite(f / CONFIG, bias="all"), "says bias 'all'"),
    "type": (lambda f: rewrite(f / CONFIG, peft_type="LOHA"), "says peft_type 'LOHA'"),
    "no rank": (lambda f: rewrite(f / CONFIG, r=None), "says r None, and only 3"),
    "unknown": (lambda f: rewrite(f / CONFIG, use_mystery=2), "says 'use_mystery' 2"),
    "setting": (lambda f: rewrite(f / "run.json", setting={"task": "digits"}), "setting lacks ada"),
    "result": (lambda f: rewrite(f / "run.json", result=[1]), "result lacks test, val"),
    "a factor": (lambda f: drop(f / ADAPTER, "layers.1.mlp.fc1.lora_B"), "for blocks.1.fc1"),
    "a head": (lambda f: drop(f / "heads.safetensors", "c"), "heads.safetensors"),
    "a start": (lambda f: drop(f / "run.safetensors", "start/"), "run.safetensors"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(exported, name):
    _, folder = exported("lora")
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(BadInput, match=message) as error:
        run_folder.head(peft_folder.load(folder), "digits")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, message", [
    (lambda t: t | {"base_model.model.pooler.dense.lora_A.weight": torch.zeros(3, 16)}, "pooler"),
    (lambda t: {k: v[:2] if "lora_A" in k else v for k, v in t.items()}, "says rank 3"),
    (lambda t: {k: v[:5] if "lora_B" in k else v for k, v in t.items()}, "needs")])
def test_other_tensors_are_refused(exported, change, message):
    _, folder = exported("lora")
    safetensors.write(change(safetensors.read(folder / ADAPTER)), folder / ADAPTER)
    with pytest.raises(BadInput, match=message):
        run = peft_folder.load(folder)
        run_folder.rebuild(run, run_folder.base_encoder(run))


def test_a_change_that_the_adapter_cannot_hold_is_refused(exported):
    """AdaLoRA's lora_B is P diag(e): from a changed one neither P nor e can be told."""
    _, folder = exported("adalora")
    found = safetensors.read(folder / ADAPTER)
    found["base_model.model.layers.0.mlp.fc1.lora_B.weight"][0, 0] += 1
    safetensors.write(found, folder / ADAPTER)
    refuses("fc1.lora_B.weight was changed since, and adalora", peft_folder.load, folder)


# ---- merged encoders -----------------------------------------------------------------------------

@pytest.mark.parametrize("space, adapters", [("weight", ["lora", "full"]),
                                             ("adapter", ["lora", "lora"]),
                                             ("adapter", ["bitfit", "bitfit"]),
                                             ("weight", ["bitfit", "dora"])])
@pytest.mark.parametrize("kind", ["tiny", "dinov2", "vit"])
def test_a_merged_encoder_is_read_back_bit_for_bit(command, tmp_path, tiny, monkeypatch, kind,
                                                   space, adapters):
    checkpoint = tiny if kind == "tiny" else published_vit(tmp_path / "m", kind, hidden=24)
    group = [make_run(tmp_path / f"run{i}", checkpoint, adapter, seed=i, task=task)
             for i, (adapter, task) in enumerate(zip(adapters, ("digits", "letters")))]
    out, x, kept = tmp_path / "merged", torch.rand(3, 1, 28, 28), []
    write = huggingface.write_merged
    monkeypatch.setattr(huggingface, "write_merged", lambda model, *rest: (
        kept.append(model(x).detach()), write(model, *rest)))
    code, text, err = command(evaluation.main, *(r["folder"] for r in group), "--merge",
                              "task_arithmetic", "--set", "lam=0.5", "--space", space,
                              "--export", out)
    assert code == 0 and f"train.py --model {out}" in text, err
    ours, again = kept[0], encoders.load(out)(x).detach()
    assert not torch.equal(ours, encoders.load(checkpoint)(x))
    if space == "weight":
        assert torch.equal(ours, again)
    else:                                  # the adapter's own path adds in another order
        torch.testing.assert_close(ours, again, atol=2e-5, rtol=2e-5)
    heads = huggingface.unflat(safetensors.read(out / "heads.safetensors"))
    for run in group:
        (task, tensors), = run["heads"].items()
        assert all(torch.equal(heads[task][k], t) for k, t in tensors.items())
    about = json.loads((out / "merge.json").read_text())
    assert (about["rule"], about["chosen"]) == ("task_arithmetic", {"lam": 0.5})
    assert about["heads"] == {"digits": "prototypes", "letters": "prototypes"}


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_a_written_encoder_gives_the_reference_output(tmp_path, kind):
    """The files alone, by the numpy encoder that knows Hugging Face's names."""
    model = perturb(encoders.load(published_vit(tmp_path / "m", kind, hidden=24)))
    (tmp_path / "out").mkdir()
    huggingface.write_encoder(model, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    inputs = json.loads((tmp_path / "out/preprocessor_config.json").read_text())
    assert inputs["size"] == {"height": 28, "width": 28} and config["image_size"] == 28
    w = reference.read(tmp_path / "out/model.safetensors")
    image = torch.rand(3, 28, 28)
    theirs = reference.vit(image.double().numpy(), w, heads=config["num_attention_heads"],
                           patch=config["patch_size"], eps=config["layer_norm_eps"],
                           position=w["embeddings.position_embeddings"][0],
                           dinov2=config["model_type"] == "dinov2",
                           mean=inputs["image_mean"], std=inputs["image_std"])
    with torch.no_grad():
        np.testing.assert_allclose(model(image[None])[0].numpy(), theirs, atol=1e-4)
    assert config["model_type"] == kind


def test_a_dinov2_that_its_config_cannot_describe_is_refused(tmp_path):
    """mlp_ratio is a whole number in Dinov2Config; 20 / 12 is none."""
    model = encoders.load(published_vit(tmp_path / "m", "dinov2"))
    refuses("20 is no multiple of the width 12", huggingface.write_encoder, model, tmp_path)


def test_a_written_text_encoder_comes_back(tmp_path, tiny_text):
    model = perturb(encoders.load(tiny_text))
    model.tokenizer.lower = False
    (tmp_path / "out").mkdir()
    huggingface.write_encoder(model, tmp_path / "out")
    back = encoders.load(tmp_path / "out")
    assert back.tokenizer.vocab == model.tokenizer.vocab and back.limit == model.limit
    assert back.tokenizer.lower is False
    ids = back.encode(["a cab", ("bad", "dab")])
    with torch.no_grad():
        assert torch.equal(back(ids), model(ids))
    w, config = reference.read(tmp_path / "out/model.safetensors"), \
        json.loads((tmp_path / "out/config.json").read_text())
    hidden = reference.bert(ids[1].numpy(), np.array([0] * 5 + [1] * 4), w,
                            heads=config["num_attention_heads"], eps=config["layer_norm_eps"])
    with torch.no_grad():
        np.testing.assert_allclose(model(ids[1:])[0].numpy(), hidden.mean(0), atol=1e-4)


def test_a_vocabulary_with_a_double_entry_keeps_its_ids(tmp_path, tiny_text):
    model = encoders.load(tiny_text)
    del model.tokenizer.vocab["c"]                    # as if a later line had said the same
    (tmp_path / "out").mkdir()
    huggingface.write_encoder(model, tmp_path / "out")
    vocab = encoders.load(tmp_path / "out").tokenizer.vocab
    assert {k: vocab[k] for k in model.tokenizer.vocab} == model.tokenizer.vocab


def test_a_model_linearized_as_a_whole_is_no_encoder(command, tmp_path, tiny):
    group = [make_run(tmp_path / t, tiny, "l_lora", "model", task=t) for t in ("digits", "letters")]
    code, _, err = command(evaluation.main, *(r["folder"] for r in group), "--merge", "average",
                           "--export", tmp_path / "x")
    assert code == 2 and "not an edit of the weights" in err and not (tmp_path / "x").exists()


# ---- starting from an adapter of another tool ----------------------------------------------------

def foreign(folder, names="memory", prefix="", **changes):
    """A LoRA of rank 2 and alpha 6 on q and v of the tiny encoder, as another tool leaves it."""
    folder.mkdir()
    modules = {"memory": ("layers", "attention.q_proj", "attention.v_proj"),
               "files": ("encoder.layer", "attention.attention.query",
                         "attention.attention.value")}[names]
    torch.manual_seed(0)
    found = {}
    for i in range(2):
        for module in modules[1:]:
            stem = f"base_model.model.{prefix}{modules[0]}.{i}.{module}"
            found[f"{stem}.lora_A.weight"] = torch.randn(2, 16)
            found[f"{stem}.lora_B.weight"] = torch.randn(16, 2)
    safetensors.write(found, folder / ADAPTER)
    run_folder.write_json({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "lora_dropout": 0.1,
                     "target_modules": ["a", "b"], "bias": "none"} | changes, folder / CONFIG)
    return folder, list(found.values())


QV = ["--adapter", "lora", "--targets", "q,v", "--rank", 2, "--alpha", 6]


# LoraConfig(...).to_dict() of peft 0.21.2, where other than null; and a key of a later one
TRAINING = {"task_type": "FEATURE_EXTRACTION", "peft_version": "0.21.2", "lora_dropout": 0.05,
            "inference_mode": True, "revision": "main", "base_model_name_or_path": "x",
            "auto_mapping": {"base_model_class": "ViTModel"}, "megatron_core": "megatron.core",
            "qalora_group_size": 16, "init_lora_weights": "eva", "eva_config": {"rho": 2.0},
            "exclude_modules": ["k"], "layers_to_transform": [0, 1], "layers_pattern": "layers",
            "rank_pattern": {}, "loftq_config": {}, "fan_in_fan_out": False, "later": None}


@pytest.mark.parametrize("names, prefix", [("memory", ""), ("files", ""), ("memory", "vit."),
                                           ("files", "vit.")])
def test_training_starts_at_the_values_of_the_folder(command, tmp_path, tiny, names, prefix):
    folder, values = foreign(tmp_path / "peft", names, prefix, **TRAINING)
    code, _, err = command(train.main, "--model", tiny, "--init", folder, *QV, "--steps", 2,
                           "--limit", 20, "--out", tmp_path / "run")
    assert code == 0, err
    run = run_folder.load(tmp_path / "run")
    start = [run["start"][f"blocks.{i}.{t}.{part}"] for i in (0, 1) for t in "qv" for part in "AB"]
    assert all(torch.equal(a, b) for a, b in zip(start, values, strict=True))
    assert all(not torch.equal(run["trained"][k], run["start"][k]) for k in run["start"])
    assert run["setting"]["init"] == str(folder)
    model = run_folder.rebuild(run | {"trained": run["start"]}, run_folder.base_encoder(run))
    before = scoring.Tasks([run]).scores(model, "val")
    assert run["result"]["base_val"] == pytest.approx(before["digits"])       # of what it starts at


REFUSED = {
    "rank": ({}, ["--rank", 4], "add --rank 2 --alpha 6"),
    "alpha": ({}, ["--alpha", 5], "add --rank 2 --alpha 6"),
    "adapter": ({}, ["--adapter", "pissa"], "lora, rslora or dora"),
    "reading": ({}, ["--linearize", "layer"], "without --linearize"),
    "too many": ({}, ["--targets", "q"], "attention.v_proj.lora_A.weight"),
    "too few": ({}, ["--targets", "q,v,k"], "for blocks.0.k, blocks.1.k"),
    "type": ({"peft_type": "IA3"}, [], "says peft_type 'IA3'"),
    "bias": ({"bias": "lora_only"}, [], "says bias 'lora_only'"),
    "pattern": ({"rank_pattern": {"q_proj": 4}}, [], "says rank_pattern"),
    "heads": ({"modules_to_save": ["classifier"]}, [], "says modules_to_save"),
    "pissa": ({"init_lora_weights": "pissa"}, [], "'pissa', which changes the base"),
    "rslora": ({"use_rslora": True}, [], "train it on with --adapter rslora"),
    "dora": ({"use_dora": True}, [], "train it on with --adapter dora"),
    "both": ({"use_dora": True, "use_rslora": True}, [], "no adapter here is"),
    "r": ({"r": 4}, ["--rank", 4], "says rank 4"),
    "folder": ({}, ["--init", "nowhere"], "adapter_config.json cannot be read"),
    "unknown": ({"use_mystery": True}, [], "says 'use_mystery' True, which is not known here"),
    "transposed": ({"fan_in_fan_out": True}, [], "says 'fan_in_fan_out' True"),
    "kasa": ({"kasa_config": {"beta": 0.1}}, [], "says 'kasa_config'"),
    "megatron": ({"megatron_config": {"a": 1}}, [], "says 'megatron_config'"),
    "blocks": ({"use_bdlora": {"nblocks": 2}}, [], "says 'use_bdlora'"),
    "replicated": ({"layer_replication": [[0, 2]]}, [], "says layer_replication"),
    "lora_bias": ({"lora_bias": True}, [], "says lora_bias True"),
    "alphas": ({"alpha_pattern": {"q_proj": 3}}, [], "says alpha_pattern"),
    "text": ({"use_dora": "no"}, ["--adapter", "dora"], "says use_dora 'no'"),
    "no rank": ({"r": 0}, [], "says r 0 and lora_alpha 6"),
    "odd rank": ({"r": "2"}, [], "says r '2'"),
    "odd alpha": ({"lora_alpha": None}, [], "lora_alpha None"),
    "odd type": ({"peft_type": ["LORA"]}, [], "says peft_type ['LORA']"),
    "odd start": ({"init_lora_weights": ["pissa"]}, [], "says init_lora_weights ['pissa']"),
    "layer": ({}, ["--targets", "fc1,fc2"], "adapts what the run does not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_start_is_refused_in_one_line(command, tmp_path, tiny, name):
    changes, words, message = REFUSED[name]
    folder, _ = foreign(tmp_path / "peft", **changes)
    code, _, err = command(train.main, "--model", tiny, "--init", folder, *QV, *words, "--steps", 2,
                           "--limit", 20, "--out", tmp_path / "run")
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


def test_an_exported_adapter_is_a_start_too(command, tmp_path, exported, tiny):
    run, folder = exported("dora")
    code, _, err = command(train.main, "--model", tiny, "--init", folder, "--adapter", "dora",
                           "--rank", 3, "--alpha", 5, "--steps", 1, "--limit", 20,
                           "--out", tmp_path / "next")
    assert code == 0, err
    start = run_folder.load(tmp_path / "next")["start"]
    assert start.keys() == run["trained"].keys()
    assert all(torch.equal(start[k], run["trained"][k]) for k in start)
