"""Exported folders in the libraries they are for, peft and transformers.

The features and logits of ours and of theirs agree to 1e-5, and what theirs save again is equal to
the last bit, names included. They come with requirements-exchange.txt.
"""

import json

import pytest
import torch

import encoders
import lora
from encoders import safetensors
from exchange import huggingface, peft_folder
from experiment import run_folder
from support import EXPORTS, make_run, perturb, small_run

peft = pytest.importorskip("peft", reason="needs peft: see requirements-exchange.txt")
transformers = pytest.importorskip("transformers", reason="needs transformers: see "
                                                          "requirements-exchange.txt")
KINDS = {"tiny": ("ViTModel", {"add_pooling_layer": False}), "dinov2": ("Dinov2Model", {}),
         "vit": ("ViTModel", {"add_pooling_layer": False}),
         "bert": ("BertModel", {"add_pooling_layer": False})}
TEXTS = ["a cab", ("bad dab", "ace"), "face Facade, (bag)!"]


@pytest.fixture
def checkpoint(tmp_path, tiny, tiny_text):
    """checkpoint(kind) -> a folder of a random encoder: two of ours, two that they wrote."""
    def call(kind):
        if kind in ("tiny", "bert"):
            return {"tiny": tiny, "bert": tiny_text}[kind]
        name, words = KINDS[kind]
        size = {"intermediate_size": 24} if kind == "vit" else {"mlp_ratio": 2}
        config = getattr(transformers, name.replace("Model", "Config"))(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=3, image_size=28,
            patch_size=7, **size)
        perturb(getattr(transformers, name)(config, **words)).save_pretrained(tmp_path / "m")
        return tmp_path / "m"
    return call


def theirs(kind, folder):
    """The model of transformers, every tensor of which is in the file."""
    name, words = KINDS[kind]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True,
                                                              **words)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return model.eval()


def inputs_of(kind, encoder):
    """Inputs of ours and of theirs: images and pixel_values, or ids and what derives from them."""
    if kind != "bert":
        images = torch.rand(4, encoder.channels, encoder.image, encoder.image,
                            generator=torch.Generator().manual_seed(0))
        return images, {"pixel_values": (images - encoder.mean) / encoder.std}
    ids = encoder.encode(TEXTS)
    ends = (ids == encoder.sep).long()
    return ids, {"input_ids": ids, "attention_mask": (ids != 0).long(),
                 "token_type_ids": ((ends.cumsum(1) - ends) > 0).long() * (ids != 0)}


@torch.no_grad()
def features(kind, model, words):
    """Class token of images, mean of the real tokens of texts, from the last hidden state."""
    hidden = model(**words).last_hidden_state
    if kind != "bert":
        return hidden[:, 0]
    real = words["attention_mask"][..., None]
    return (hidden * real).sum(1) / real.sum(1)


def close(ours, other, name):
    """Equal to 1e-5; the largest difference is printed (pytest -s)."""
    print(f"\n{name}: max difference {(ours - other).abs().max():.2e}")
    torch.testing.assert_close(ours, other, atol=1e-5, rtol=0)


CASES = [("tiny", *case) for case in EXPORTS]
CASES += [(kind, adapter, "off") for adapter in ("lora", "rslora", "dora", "pissa")
          for kind in ("bert", "dinov2", "vit")]


@pytest.mark.parametrize("kind, adapter, reading", CASES, ids=["-".join(case) for case in CASES])
def test_an_exported_adapter_computes_the_same(tmp_path, checkpoint, kind, adapter, reading):
    folder = tmp_path / "peft"
    run = make_run(tmp_path / "run", checkpoint(kind), adapter, reading, **small_run(adapter))
    peft_folder.write_adapter(run, folder)
    encoder, head = run_folder.base_encoder(run), run_folder.head(run, "digits")
    x, words = inputs_of(kind, encoder)
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    untouched = features(kind, theirs(kind, base), words)
    with torch.no_grad():
        close(encoder(x), untouched, f"{kind} without adapter")
        ours = run_folder.rebuild(run, encoder)(x)
    model = peft.PeftModel.from_pretrained(theirs(kind, base), folder)
    other = features(kind, model, words)
    assert (other - untouched).abs().max() > 0.05
    close(ours, other, f"{kind} {adapter} features")
    close(head(ours), head(other), f"{kind} {adapter} logits")
    model.save_pretrained(tmp_path / "again")
    a, b = (safetensors.read(f / "adapter_model.safetensors") for f in (folder, tmp_path / "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for name in ("run.json", "run.safetensors", "heads.safetensors"):
        (tmp_path / "again" / name).write_bytes((folder / name).read_bytes())
    back = peft_folder.load(tmp_path / "again")
    assert all(torch.equal(back[part][k], t) for part in ("start", "trained", "buffers")
               for k, t in run[part].items())


def test_their_default_rotation_of_oft_is_nearly_the_inverse_of_the_exact_one():
    """Why --export turns use_cayley_neumann off."""
    q, turns = 0.05 * torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), []
    for flag in (False, True):
        config = peft.OFTConfig(oft_block_size=4, target_modules=["0"], use_cayley_neumann=flag)
        layer = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), config)
        module = layer.base_model.model[0].oft_R["default"]
        module.weight.data.copy_(q)
        turns.append(module.get_weight().detach()[:4, :4])
    exact, series = turns
    torch.testing.assert_close(series, exact.T, atol=1e-3, rtol=0)
    assert (series - exact).abs().max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_encoder_computes_the_same(tmp_path, checkpoint, kind):
    encoder, folder = perturb(encoders.load(checkpoint(kind))), tmp_path / "out"
    folder.mkdir()
    huggingface.write_encoder(encoder, folder)
    x, words = inputs_of(kind, encoder)
    with torch.no_grad():
        close(encoder(x), features(kind, theirs(kind, folder), words), f"{kind} written")
    assert type(transformers.AutoModel.from_pretrained(folder)).__name__ == KINDS[kind][0]


def test_their_image_processor_does_what_our_encoder_does(tmp_path, tiny):
    """Bytes in, pixel_values out: the same features as ours gives from the values in [0, 1]."""
    pytest.importorskip("PIL", reason="needs pillow: see requirements-exchange.txt")
    encoder = encoders.load(tiny)
    (tmp_path / "out").mkdir()
    huggingface.write_encoder(encoder, tmp_path / "out")
    grey = torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)
    processor = transformers.ViTImageProcessorPil.from_pretrained(tmp_path / "out")
    words = processor(list(grey.numpy()), return_tensors="pt", input_data_format="channels_first")
    with torch.no_grad():
        close(encoder(grey / 255), features("tiny", theirs("tiny", tmp_path / "out"), words),
              "image processor")


def test_their_tokenizer_gives_the_same_ids(tmp_path, tiny_text):
    encoder = encoders.load(tiny_text)
    (tmp_path / "out").mkdir()
    huggingface.write_encoder(encoder, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        parts = (text,) if isinstance(text, str) else text
        assert tokenizer(*parts)["input_ids"] == encoder.encode([text])[0].tolist()


@pytest.mark.parametrize("kind", ["tiny", "bert", "dinov2"])
@pytest.mark.parametrize("adapter", ["lora", "rslora", "dora"])
def test_an_adapter_that_peft_made_is_read(tmp_path, checkpoint, kind, adapter):
    """--init on what PEFT itself trains and saves; targets by the ends of its own names."""
    encoder = encoders.load(checkpoint(kind))
    (tmp_path / "base").mkdir()
    huggingface.write_encoder(encoder, tmp_path / "base")
    targets = ["query", "value"] if kind == "bert" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets,
                             use_rslora=adapter == "rslora", use_dora=adapter == "dora")
    model = peft.get_peft_model(theirs(kind, tmp_path / "base"), config)
    perturb(model.eval())
    model.save_pretrained(tmp_path / "peft")
    hp = {"rank": 2, "alpha": 6.0}
    setting = {"adapter": adapter, "linearize": "off", "hp": hp, "init": str(tmp_path / "peft")}
    peft_folder.check_start(setting)
    peft_folder.start_from(setting, encoder, lora.inject(encoder, adapter, "q,v", **hp))
    x, words = inputs_of(kind, encoder)
    with torch.no_grad():
        close(encoder(x), features(kind, model, words), f"{kind} {adapter} made by peft")


@pytest.mark.parametrize("kind, name, size", [("bert", "bert-minilm-l6", None),
                                              ("dinov2", "vit-small-dinov2", 56)])
def test_a_real_checkpoint_computes_the_same(real, tmp_path, kind, name, size):
    if not (real / name).is_dir():
        pytest.skip(f"REAL_DATA holds no {name}")
    run = make_run(tmp_path / "run", real / name, "pissa", targets="q,v", size=size, move=0.02,
                   rank=4)
    peft_folder.write_adapter(run, tmp_path / "peft")
    encoder = run_folder.base_encoder(run)
    x, words = inputs_of(kind, encoder)
    model = theirs(kind, real / name if size is None else tmp_path / "peft/base")
    with torch.no_grad():
        close(encoder(x), untouched := features(kind, model, words), f"{name} without adapter")
        ours = run_folder.rebuild(run, encoder)(x)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "peft")
    assert (ours - untouched).abs().max() > 0.05
    close(ours, features(kind, model, words), f"{name} pissa")
