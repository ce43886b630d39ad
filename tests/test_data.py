"""Generated tasks: deterministic, disjoint, balanced. IDX files: read right, or refused."""

import hashlib
import struct
import zlib

import numpy as np
import pytest
import torch

import data
from files import idx, write_idx
from pretrain import vit
from tasks import drawn
from tasks.sheet import write_png
from support import refuses

every_task = pytest.mark.parametrize("task", drawn.TASKS)


@every_task
def test_generated_images_and_labels(task):
    for split, (n, _) in data.SPLITS.items():
        images, labels = data.load(task, split)
        assert images.shape == (n, 1, 28, 28) and images.dtype == torch.float32
        assert 0 <= images.min() and images.max() <= 1 and labels.dtype == torch.int64
        if split == "calib":
            assert (labels == -1).all()
        else:
            assert labels.unique().tolist() == list(range(data.classes(task)))


@every_task
def test_a_prefix_of_whole_chunks_is_stable(task):
    short, long = drawn.sample(task, 500, 9), drawn.sample(task, 1000, 9)
    assert np.array_equal(short[0], long[0][:500]) and np.array_equal(short[1], long[1][:500])
    assert not np.array_equal(long[0][:500], long[0][500:])
    assert not np.array_equal(short[0], drawn.sample(task, 500, 10)[0])


@every_task
def test_splits_share_no_image(task):
    seen = [hashlib.sha256(image.numpy().tobytes()).digest()
            for split in data.SPLITS for image in data.load(task, split)[0]]
    assert len(set(seen)) == len(seen) == 4000


def test_limit_takes_the_first():
    images, labels = data.load("count", "val", limit=7)
    assert len(images) == len(labels) == 7 and torch.equal(images, data.load("count", "val")[0][:7])


def test_the_first_of_a_sorted_file_have_every_class(tmp_path):
    """Forty texts of "a", then forty of "b": of any ten in a row, both; the same each time."""
    for split in ("train", "test"):
        lines = [f"text number {i},{'ab'[i // 40]}" for i in range(80)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *lines]))
    load = lambda split, limit: data.load("own", split, str(tmp_path), limit, list)
    for split in ("test", "train"):
        texts, labels = load(split, None)
        assert all(len(set(labels[i:i + 10].tolist())) == 2 for i in range(0, len(texts), 10))
        assert load(split, 10)[0] == texts[:10]
        assert [int(x.split()[-1]) // 40 for x in texts] == labels.tolist()
    assert sorted(load("test", None)[0]) == sorted(f"text number {i}" for i in range(80))


def test_primitives():
    """A vertical pen stroke, a disc and an outlined disc have the areas of geometry."""
    area = lambda alpha: alpha.sum() * drawn.PIXEL ** 2
    line = drawn.strokes(np.float32([[[0, -1, 0, 1]]]), scale=0.5, width=0.3)
    assert abs(area(line) - (0.3 * 1 + np.pi * 0.15 ** 2)) < 0.02          # round caps
    disc = drawn.blobs(np.array([0]), size=0.5)
    assert abs(area(disc) - np.pi * 0.45 ** 2) < 0.01
    rim = drawn.blobs(np.array([0]), size=0.5, outline=0.2)
    assert abs(area(rim) - np.pi * (0.45 ** 2 - 0.25 ** 2)) < 0.01


def test_rotation_turns_x_towards_y():
    """A stroke along +x turned by 90 degrees points down, because y points down."""
    half = np.float32([[[0, 0, 1, 0]]])
    turned = drawn.strokes(half, scale=0.8, angle=np.pi / 2, width=0.25)[0]
    assert turned[20, 14] == 1 and turned[7, 14] == 0 and turned[14, 22] == 0


def test_a_grating_has_its_frequency_and_orientation():
    """Square wave along x with 4 cycles: constant down a column, 8 changes along a row."""
    kind, turn, frequency = np.array([1]), np.array([0.0]), np.array([4.0])
    picture = drawn.textures(np.random.default_rng(0), kind, turn, frequency)[0]
    assert (picture == picture[:1]).all() and (np.diff(picture[0]) != 0).sum() in (7, 8)


def test_relation_label_is_the_direction_from_ring_to_cross(monkeypatch):
    """Class c points at c * 45 degrees, clockwise from +x on the screen, within half a bin."""
    at, draw = {}, drawn.blobs
    monkeypatch.setattr(drawn, "blobs", lambda kind, x, y, *rest: (
        at.update({drawn.SHAPES[kind[0]]: np.stack([x, y])}), draw(kind, x, y, *rest))[1])
    labels = np.arange(80) % 8
    drawn.relation(np.random.default_rng(0), labels)
    dx, dy = at["cross"] - at["ring"]
    assert (np.round(np.arctan2(dy, dx) / (np.pi / 4)) % 8 == labels).all()


def test_count_has_as_many_blobs_as_its_label(monkeypatch):
    """Without noise, contrast and polarity the covered area grows by one blob per class."""
    monkeypatch.setattr(drawn, "finish", lambda rng, alpha, *a, **k: alpha)
    for kind_seed in range(3):
        areas = [drawn.count(np.random.default_rng(kind_seed), np.full(500, y)).sum((1, 2)).mean()
                 for y in range(6)]
        np.testing.assert_allclose(areas, areas[0] * np.arange(1, 7), rtol=0.02)


def test_scenes_are_labelled_within_their_classes():
    images, label = vit.scenes(np.random.default_rng(0), 300)
    assert images.shape == (300, 28, 28) and label.keys() == vit.ATTRIBUTES.keys()
    for name, (classes, _) in vit.ATTRIBUTES.items():
        assert label[name].min() >= -1 and label[name].max() == classes - 1, name


def test_png(tmp_path):
    """Signature, three chunks with right checksums, and the pixels back out of zlib."""
    picture = np.linspace(0, 1, 12).reshape(3, 4)
    write_png(picture, tmp_path / "x.png")
    content, at, chunks = (tmp_path / "x.png").read_bytes(), 8, {}
    while at < len(content):
        (length,), kind = struct.unpack(">I", content[at:at + 4]), content[at + 4:at + 8]
        body, crc = content[at + 8:at + 8 + length], content[at + 8 + length:at + 12 + length]
        assert struct.unpack(">I", crc)[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + length
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (4, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(3, 5)
    assert (rows[:, 0] == 0).all() and (rows[:, 1:] == (picture * 255).round()).all()


def test_unknown_tasks():
    refuses("unknown task 'digit': did you mean 'digits'", data.check, "digit")
    for read in (lambda: data.load("digit", "val"), lambda: data.classes("digit")):
        refuses("unknown task 'digit': did you mean 'digits'", read)
    refuses("digits is a generated task: leave out --data", data.check, "digits", "somewhere")


# ---- IDX -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("zipped", [True, False])
def test_idx_folder(tmp_path, zipped):
    folder = write_idx(tmp_path / str(zipped), zipped)
    original = np.random.default_rng(0).integers(0, 256, (40, 6, 5)).astype(np.float32) / 255
    rows = {}
    for split, n in (("train", 32), ("val", 4), ("calib", 4), ("test", 12)):
        images, labels = data.load("mine", split, folder)
        assert images.shape == (n, 1, 6, 5) and images.dtype == torch.float32
        rows[split] = [np.flatnonzero((original == i.numpy()).all((1, 2))).tolist()
                       for i in images[:, 0]]
        if split not in ("calib", "test"):                       # labels stayed with images
            assert [r[0] % 3 for r in rows[split]] == labels.tolist()
    assert data.load("mine", "calib", folder)[1].tolist() == [-1] * 4
    assert sorted(sum(rows["train"] + rows["val"] + rows["calib"], [])) == list(range(40))
    assert data.classes("mine", folder) == 3


IMAGES, LABELS = np.zeros((40, 6, 5)), np.arange(40) % 3


@pytest.mark.parametrize("replace, told", [
    (dict(train_images=b"\0\0\x09" + idx(IMAGES)[3:]), "starts with 00000903"),
    (dict(train_labels=idx(IMAGES)), "starts with 00000803, an IDX file of 1 dimensions"),
    (dict(train_images=idx(IMAGES)[:-1]), "was cut short"),
    (dict(train_images=idx(IMAGES) + b"x"), "was cut short or is damaged"),
    (dict(train_images=idx(IMAGES)[:9]), "was cut short"),
    (dict(t10k_labels=b""), "starts with"),
    (dict(t10k_labels=idx([]), t10k_images=idx(IMAGES[:0])), "the test files hold no examples"),
    (dict(train_labels=idx(LABELS[:39])), "40 train inputs but 39 labels"),
    (dict(t10k_labels=idx([0] * 11 + [3])), "label 3 in the test file, but mine has 3 classes"),
])
def test_damaged_idx_files_are_refused(tmp_path, replace, told):
    refuses(told, data.load, "mine", "train", write_idx(tmp_path / "idx", **replace))


def test_known_sets_know_their_classes(tmp_path):
    folder = write_idx(tmp_path / "idx", train_labels=idx([10] * 40))
    told = "label 10 in the train file, but fashion_mnist has 10 classes"
    refuses(told, data.load, "fashion_mnist", "train", folder)


def test_truncated_gzip_and_missing_file(tmp_path):
    folder = write_idx(tmp_path / "idx")
    file = tmp_path / "idx" / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:30])
    refuses("cannot be unpacked", data.load, "mine", "train", folder)
    file.unlink()
    refuses("has no train-images-idx3-ubyte", data.check, "mine", folder)


def test_real_fashion_mnist(real):
    images, labels = data.load("fashion_mnist", "test", str(real / "fashion_mnist"))
    assert images.shape == (10000, 1, 28, 28)
    assert labels.bincount().tolist() == [1000] * 10
    assert len(data.load("fashion_mnist", "train", str(real / "fashion_mnist"))[0]) == 58000


@pytest.mark.parametrize("n", [6, 9])
def test_too_few_examples_are_refused_before_training(tmp_path, n):
    folder = write_idx(tmp_path / "few", n=(n, 5))
    refuses(f"has {n} training examples: give at least 10", data.check, "mine", folder)
