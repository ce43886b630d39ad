"""(IA)^3, LoHa, LoKr and OFT as PEFT folders: what is in the files, and what is refused.

test_folders.py says that they come back to the last bit; in test_peft.py PEFT itself reads them.
"""

import json

import numpy as np
import pytest
import torch

import lora
import reference
from encoders import safetensors
from exchange import peft_folder, peft_forms
from experiment import run_folder
from support import make_run, refuses, small_run

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def exported(tmp_path, tiny):
    """exported("oft") -> (the run, the folder it was written to)."""
    def call(adapter):
        run = make_run(tmp_path / "run", tiny, adapter, **small_run(adapter))
        peft_folder.write_adapter(run, tmp_path / "peft")
        return run, tmp_path / "peft"
    return call


def change_by_files(config, t, W0):
    """W_eff - W0 of a layer from PEFT's equations: t its tensors by PEFT's names, all numpy."""
    if config["peft_type"] == "IA3":
        return (t["ia3_l"] - 1) * W0
    if config["peft_type"] == "OFT":
        k, eye = config["oft_block_size"], np.eye(config["oft_block_size"])
        Q = np.zeros((len(W0[0]) // k, k, k))
        Q[:, *np.triu_indices(k, 1)] = t["oft_R.weight"]
        Q = Q - Q.transpose(0, 2, 1)
        R = [(eye - q) @ np.linalg.inv(eye + q) for q in Q]
        blocks = np.split(W0.astype(float), len(R), axis=1)
        return np.concatenate([w @ r.T for w, r in zip(blocks, R)], 1) - W0
    s = config["alpha"] / config["r"]
    if config["peft_type"] == "LOHA":
        return s * (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    D = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
    return s * np.kron(t["lokr_w1"], D)


@pytest.mark.parametrize("adapter", peft_forms.SAME)
def test_the_files_of_other_methods_hold_their_change(exported, adapter):
    run, folder = exported(adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    found = reference.read(folder / "adapter_model.safetensors")
    base = reference.read(folder / "base" / "model.safetensors")
    want = lora.deltas(run_folder.rebuild(run, run_folder.base_encoder(run)))
    files = {"k": ("attention.k_proj", "attention.attention.key"),
             "fc2": ("mlp.fc2", "output.dense")}
    for i, part in ((0, "k"), (1, "fc2")):
        module, file = files[part]
        stem = f"base_model.model.layers.{i}.{module}."
        t = {k.removeprefix(stem): v for k, v in found.items() if k.startswith(stem)}
        change = change_by_files(config, t, base[f"encoder.layer.{i}.{file}.weight"])
        np.testing.assert_allclose(change, want[f"blocks.{i}.{part}.weight"], atol=2e-6)
        assert np.abs(change).max() > 0.05
    if adapter == "ia3":
        assert config["feedforward_modules"] == [f"layers.{i}.mlp.fc2" for i in (0, 1)]
    assert config.get("use_cayley_neumann", False) is False


@pytest.mark.parametrize("hp", [{"factor": 8}, {"alpha": 0.0}], ids=str)
def test_a_split_or_scale_that_peft_has_not_is_refused(tmp_path, tiny, hp):
    run = make_run(tmp_path / "run", tiny, "lokr", **hp)
    refuses("PEFT has no lokr with factor", peft_folder.write_adapter, run, tmp_path / "out")


def test_all_inputs_in_one_block_is_one_block_for_peft():
    """PEFT takes the number of blocks, r, or their size, and 0 for the other."""
    for block, want in ((0, (1, 0)), (8, (0, 8))):
        config = peft_forms.settings("oft", {"block": block})
        assert (config["r"], config["oft_block_size"]) == want


@pytest.mark.parametrize("adapter, key, value", [
    ("loha", "alpha", 4), ("loha", "r", 4), ("lokr", "decompose_both", True), ("oft", "coft", True),
    ("oft", "use_cayley_neumann", True), ("ia3", "peft_type", "LORA")])
def test_other_settings_of_other_methods_are_refused(exported, adapter, key, value):
    _, folder = exported(adapter)
    config = json.loads((folder / CONFIG).read_text())
    run_folder.write_json(config | {key: value}, folder / CONFIG)
    refuses(f"says {key} {value!r}", peft_folder.load, folder)


@pytest.mark.parametrize("adapter, key, told", [
    ("loha", "layers.1.mlp.fc1.hada_w2_b", "run.safetensors"), ("ia3", "1.mlp.fc2.ia3_l", "lacks"),
    ("lokr", "0.mlp.fc2.lokr_w1", "run.safetensors")])
def test_a_missing_tensor_of_other_methods_is_refused(exported, adapter, key, told):
    _, folder = exported(adapter)
    found = safetensors.read(folder / ADAPTER)
    safetensors.write({k: v for k, v in found.items() if key not in k}, folder / ADAPTER)
    refuses(told, peft_folder.load, folder)


def test_a_tensor_too_many_is_refused(exported):
    _, folder = exported("ia3")
    found = safetensors.read(folder / ADAPTER)
    found["base_model.model.layers.0.mlp.fc2.lora_A.weight"] = torch.ones(2, 2)
    safetensors.write(found, folder / ADAPTER)
    refuses("fc2.lora_A.weight was changed since, and ia3", peft_folder.load, folder)
