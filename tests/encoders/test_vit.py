"""The encoder against an independent computation, the checkpoint reader against damaged files."""

import json
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import encoders
import reference
from encoders import configs, safetensors
from errors import BadInput
from files import damage, published_vit
from support import refuses

KINDS = {"vit": configs.HALF, "deit": configs.IMAGENET, "dinov2": configs.IMAGENET}


def compare(folder, kind, heads, patch, eps, image, tolerance):
    """Features of encoders.load(folder) against the numpy reference on two random images."""
    model = encoders.load(folder, image)
    w = {k.removeprefix("vit."): v for k, v in reference.read(folder / "model.safetensors").items()}
    position, grid = w["embeddings.position_embeddings"][0], image // patch
    if len(position) != 1 + grid * grid:
        side = int(round((len(position) - 1) ** 0.5))
        square = torch.tensor(position[1:].T.reshape(1, -1, side, side))
        square = F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)
        position = np.concatenate([position[:1], square[0].flatten(1).T.numpy()])
    images = torch.rand(2, 3, image, image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(images).numpy()
    for i in range(2):
        theirs = reference.vit(images[i].double().numpy(), w, heads=heads, patch=patch, eps=eps,
                               position=position, dinov2=kind == "dinov2", **KINDS[kind])
        np.testing.assert_allclose(ours[i], theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("image", [28, 42])
@pytest.mark.parametrize("kind", KINDS)
def test_published_names_give_the_reference_output(tmp_path, kind, image):
    compare(published_vit(tmp_path / "m", kind), kind, 3, 7, 1e-5, image, 1e-4)


def test_real_dinov2_gives_the_reference_output(real):
    compare(real / "vit-small-dinov2", "dinov2", 6, 14, 1e-6, 56, 1e-4)


def test_grey_images_are_repeated_and_other_sizes_resized(tmp_path):
    model = encoders.load(published_vit(tmp_path / "m", "vit"))
    grey = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(grey), model(grey.expand(-1, 3, -1, -1)))
    large = torch.rand(2, 3, 56, 56)
    small = F.interpolate(large, (28, 28), mode="bilinear", antialias=True)
    assert torch.equal(model(large), model(small))
    board = (torch.arange(252)[:, None] + torch.arange(252)).expand(1, 3, -1, -1) % 2.0
    plain = model(torch.full((1, 3, 28, 28), 0.5))        # a fine pattern, seen from afar
    assert (model(board) - plain).norm() < 0.1 * (model(board[..., 4::9, 4::9]) - plain).norm()


def test_built_in_checkpoint_loads_and_is_small():
    file = encoders.BUILT_IN / "vit" / "model.safetensors"
    assert file.stat().st_size <= 8_000_000
    model = encoders.load("vit")
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, model.width)
    assert model.sha256 == safetensors.sha256(file)


def test_random_weights_are_repeatable_and_leave_the_random_state_alone(tiny):
    state = torch.get_rng_state()
    a, b = (encoders.load(tiny, random_weights=True).cls_token for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, encoders.load(tiny).cls_token)
    assert torch.equal(state, torch.get_rng_state())


# ---- safetensors ---------------------------------------------------------------------------------

def test_round_trip_of_every_dtype(tmp_path):
    tensors = {str(d): torch.arange(6).reshape(2, 3).to(d) for d in safetensors.DTYPES.values()}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    safetensors.write(tensors, tmp_path / "x.safetensors")
    back = safetensors.read(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for k, v in tensors.items():
        assert back[k].dtype == v.dtype and torch.equal(back[k], v), k
    (length,) = struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])
    assert length % 8 == 0


def raw(path, header, body, length=None):
    """Write a safetensors file from its parts, possibly lying about them."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize("header, body, told", [
    ({"a": entry(0, 8)}, b"1234", "need 8 bytes, the file has 4"),
    ({"a": entry(0, 8)}, b"123456789", "need 8 bytes, the file has 9"),
    ({"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12, "tensor b overlaps"),
    ({"a": entry(0, 8), "b": entry(12, 20)}, b"0" * 20, "tensor b overlaps another, leaves a gap"),
    ({"a": entry(0, 8, (3,))}, b"0" * 8, "wrong length"),
    ({"a": entry(0, 8, dtype="F99")}, b"0" * 8, "has tensors of F99: convert them to F32"),
    ({"a": entry(0, 2, dtype="F8_E4M3")}, b"12", "has tensors of F8_E4M3: convert"),
    ({"a": entry(0, 4, dtype="U16"), "b": entry(4, 20, dtype="C64")}, b"0" * 20, "of C64, U16: "),
    ({"a": entry(0, 8, dtype=5)}, b"0" * 8, "has tensors of 5: "),
    ({"a": entry(0, 8, (-1, -2))}, b"0" * 8, "no complete safetensors file"),
    (b"[" * 100_000, b"", "no complete safetensors file"),
    ({"a": {"dtype": "F32"}}, b"", "data_offsets"),
    (b"{not json", b"", "no complete safetensors file"),
    (b"[]", b"", "no complete safetensors file"),
])
def test_malformed_files_are_refused(tmp_path, header, body, told):
    refuses(told, safetensors.read, raw(tmp_path / "x.safetensors", header, body))


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2 ** 60) + b"{}"])
def test_files_without_a_whole_header_are_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    refuses("no complete safetensors file", safetensors.read, tmp_path / "x.safetensors")


@pytest.mark.parametrize("change, told", [
    (lambda t: t.pop("vit.layernorm.weight"), "lacks 1 tensors: norm.weight"),
    (lambda t: t.update(extra=torch.zeros(1)), "has unexpected 1 tensors: extra"),
    (lambda t: t.update({"vit.layernorm.bias": torch.zeros(5)}), r"norm.bias has shape \(5,\)"),
    (lambda t: t.update({"vit.embeddings.cls_token": torch.tensor(1.)}),
     r"cls_token has shape \(\)"),
    (lambda t: t.update({"vit.embeddings.position_embeddings": torch.zeros(1, 0)}),
     r"position has shape \(1, 0\)"),
])
def test_a_checkpoint_must_fit_its_config(tmp_path, change, told):
    folder = published_vit(tmp_path / "m", "vit")
    damage(folder, change)
    refuses(told, encoders.load, folder)


@pytest.mark.parametrize("config, told", [
    ("{", "config.json cannot be read"),
    ('{"model_type": "vit"}', "lacks 160 tensors"),
    ('{"model_type": "dinov3"}', "did you mean 'dinov2'"),
    ('{"model_type": "vit", "hidden_act": "relu"}', "hidden_act .relu.: it must be gelu"),
])
def test_config_errors(tmp_path, config, told):
    folder = published_vit(tmp_path / "m", "vit")
    (folder / "config.json").write_text(config)
    refuses(told, encoders.load, folder)


def test_other_load_errors(tmp_path):
    refuses("unknown model 'vt': did you mean 'vit'", encoders.load, "vt")
    with pytest.raises(BadInput, match="no multiple of the patch size 7"):
        encoders.load(published_vit(tmp_path / "m", "vit"), size=30)
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors").mkdir()
    refuses("model.safetensors is no complete safetensors file .*directory", encoders.load,
            tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rmdir()
    refuses("has no model.safetensors", encoders.load, tmp_path / "m")
