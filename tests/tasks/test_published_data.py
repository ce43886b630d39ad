"""Published sets from small files in their published form: splits, labels, colours, checksums."""

import bz2
import gzip
import hashlib

import numpy as np
import pytest
import torch

import data
import train
from errors import BadInput
from files import idx, matlab, shuffled, tarred, zipped
from tasks import published
from support import refuses

RNG = np.random.default_rng(1)


def colours(n, size):
    return RNG.integers(0, 256, (n, size, size, 3), np.uint8)


def make_cifar10(folder):
    x, y = colours(24, 32), np.arange(24) % 10
    record = lambda i: bytes([y[i]]) + x[i].transpose(2, 0, 1).tobytes()
    parts = {f"cifar/data_batch_{b + 1}.bin": b"".join(map(record, range(4 * b, 4 * b + 4)))
             for b in range(5)}
    tarred(folder / "cifar-10-binary.tar.gz",
           parts | {"cifar/test_batch.bin": b"".join(map(record, range(20, 24)))})
    return x[20:], y[20:]


def make_cifar100(folder):
    x, y = colours(15, 32), np.arange(15) * 6
    for name, rows in (("train", range(10)), ("test", range(10, 15))):
        (folder / f"{name}.bin").write_bytes(b"".join(
            bytes([99, y[i]]) + x[i].transpose(2, 0, 1).tobytes() for i in rows))
    return x[10:], y[10:]


def make_stl10(folder):
    x, y = colours(13, 96), np.arange(13) % 10
    for name, rows in (("train", slice(0, 10)), ("test", slice(10, 13))):
        (folder / f"{name}_X.bin").write_bytes(x[rows].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes((y[rows] + 1).tolist()))
    return x[10:], y[10:]


def make_svhn(folder):
    x, y = colours(13, 32), np.arange(13) % 10
    for name, rows in (("train", slice(0, 10)), ("test", slice(10, 13))):
        labels = np.where(y[rows] == 0, 10, y[rows]).astype(np.uint8)[:, None]
        (folder / f"{name}_32x32.mat").write_bytes(
            matlab({"X": x[rows].transpose(1, 2, 3, 0), "y": labels}, packed=name == "train"))
    return x[10:], y[10:]


def ppm(image):
    return b"P6\n%d %d\n255\n" % image.shape[1::-1] + image.tobytes()


def make_gtsrb(folder):
    """Training pictures of two classes with one file name; test labels in a table of their own."""
    x, y = colours(14, 32), np.arange(14) % 2 * 42
    train, tables = {}, {0: "Filename;Width;ClassId\n", 42: "Filename;Width;ClassId\n"}
    for i in range(10):
        name = f"{i // 2:05}_00000.ppm"
        train[f"GTSRB/Training/{y[i]:05}/{name}"] = ppm(x[i])
        tables[y[i]] += f"{name};32;{y[i]}\n"
    zipped(folder / "GTSRB-Training_fixed.zip", train | {
        f"GTSRB/Training/{c:05}/GT-{c:05}.csv": text for c, text in tables.items()})
    zipped(folder / "GTSRB_Final_Test_Images.zip",
           {f"GTSRB/Final_Test/Images/{i:05}.ppm": ppm(x[10 + i]) for i in range(4)})
    zipped(folder / "GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": "Filename;ClassId\n" + "".join(
        f"{i:05}.ppm;{y[10 + i]}\n" for i in range(4))})
    return x[10:], y[10:]


def make_usps(folder):
    x, y = RNG.integers(0, 256, (13, 16, 16), np.uint8), np.arange(13) % 10
    for name, rows in (("usps", range(10)), ("usps.t", range(10, 13))):
        lines = [f"{y[i] + 1} " + " ".join(f"{j + 1}:{v / 127.5 - 1:.6f}"
                                           for j, v in enumerate(x[i].ravel())) for i in rows]
        (folder / f"{name}.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    return x[10:], y[10:]


def make_bloodmnist(folder):
    x, y = colours(20, 28), np.arange(20) % 8
    cut = {"train": slice(0, 10), "val": slice(10, 14), "test": slice(14, 20)}
    np.savez(folder / "bloodmnist.npz", **{f"{s}_images": x[r] for s, r in cut.items()},
             **{f"{s}_labels": y[r, None].astype(np.uint8) for s, r in cut.items()})
    return x[14:], y[14:]


def make_emnist_letters(folder):
    x, y = RNG.integers(0, 256, (30, 28, 28), np.uint8), np.arange(30) % 26
    files = {}
    for split, rows in (("train", slice(0, 26)), ("test", slice(26, 30))):
        stem = f"gzip/emnist-letters-{split}"
        files[f"{stem}-images-idx3-ubyte.gz"] = gzip.compress(idx(x[rows].transpose(0, 2, 1)))
        files[f"{stem}-labels-idx1-ubyte.gz"] = gzip.compress(idx(y[rows] + 1))
    zipped(folder / "gzip.zip", files)
    return x[26:], y[26:]


MAKERS = {name[5:]: make for name, make in list(globals().items()) if name.startswith("make_")}


@pytest.mark.parametrize("task", MAKERS)
def test_images_of_a_published_set(task, tmp_path):
    """Every test picture and label comes back, and no label is outside the classes."""
    images, labels = MAKERS[task](tmp_path)
    x, y = data.load(task, "test", str(tmp_path))
    want = torch.from_numpy(shuffled(images)).float() / 255
    want = want[:, None] if want.ndim == 3 else want.permute(0, 3, 1, 2)
    torch.testing.assert_close(x, want, atol=1e-6, rtol=0)
    assert x.is_contiguous() or x.shape[1] == 1                  # colours, planes first
    assert y.tolist() == shuffled(labels).tolist() and data.kind(task, str(tmp_path)) == "image"
    assert data.classes(task, str(tmp_path)) == published.DATASETS[task].classes
    assert set(data.load(task, "calib", str(tmp_path))[1].tolist()) == {-1}
    counts = {split: len(data.load(task, split, str(tmp_path))[1]) for split in data.SPLITS}
    total = len(published.read(task, str(tmp_path))[2]["train"][1])
    own = task == "bloodmnist"                                   # it has a val split of its own
    assert counts["train"] == total - total // 10 * (1 if own else 2)
    assert counts["val"] == (4 if own else total // 10)


@pytest.mark.parametrize("label", [0, 11])
def test_svhn_labels_are_1_to_10(label, tmp_path):
    """Taken modulo 10, a wrong label would be another digit."""
    make_svhn(tmp_path)
    labels = np.array([[label], [2], [3]], np.uint8)
    images = colours(3, 32).transpose(1, 2, 3, 0)
    (tmp_path / "test_32x32.mat").write_bytes(matlab({"X": images, "y": labels}, packed=True))
    refuses("test_32x32.mat has labels that are not 1 to 10", data.check, "svhn", str(tmp_path))


def test_a_sign_without_label_does_not_take_another_class_s(tmp_path):
    """Every class has a picture 00000_00000.ppm: the folder counts, not only the name."""
    make_gtsrb(tmp_path)
    table = "Filename;Width;ClassId\n"
    zipped(tmp_path / "GTSRB-Training_fixed.zip", {
        "GTSRB/Training/00000/0_0.ppm": ppm(colours(1, 32)[0]),
        "GTSRB/Training/00042/0_0.ppm": ppm(colours(1, 32)[0]),
        "GTSRB/Training/00000/GT-00000.csv": table + "0_0.ppm;32;0\n",
        "GTSRB/Training/00042/GT-00042.csv": table})
    refuses("has no label for GTSRB/Training/00042/0_0.ppm", data.check, "gtsrb", str(tmp_path))


@pytest.mark.parametrize("line", [
    "1 1:nan", "1 1:7", "1.5 1:1", "inf 1:1", "1 257:1", "1 0:1", "1 inf:1", "1 1"])
def test_damaged_lines_of_usps_are_refused(line, tmp_path):
    make_usps(tmp_path)
    (tmp_path / "usps.bz2").write_bytes(bz2.compress(f"2 1:1\n\n{line}\n".encode()))
    refuses("usps.bz2 line 3 is no `label index:value ...`", data.check, "usps", str(tmp_path))


def test_pictures_of_other_sizes_become_32_pixels(tmp_path):
    """A sign of one colour stays that colour."""
    make_gtsrb(tmp_path)
    flat = np.full((20, 45, 3), (10, 200, 30), np.uint8)
    images = tmp_path / "GTSRB_Final_Test_Images.zip"
    zipped(images, {"GTSRB/Final_Test/Images/00000.ppm": ppm(flat)})
    x, y = data.load("gtsrb", "test", str(tmp_path))
    assert x.shape == (1, 3, 32, 32) and y.tolist() == [0]
    assert (x[0, :, 5, 5] * 255).round().tolist() == [10, 200, 30]
    zipped(images, {"GTSRB/Final_Test/Images/7.ppm": ppm(flat)})
    published.read.cache_clear()
    refuses("has no label for GTSRB/Final_Test/Images/7.ppm", data.check, "gtsrb", str(tmp_path))


def test_medmnist_is_read_without_pickle_and_whole(tmp_path):
    path = tmp_path / "bloodmnist.npz"
    make_bloodmnist(tmp_path)
    whole = dict(np.load(path))
    for part in ({"train_images": np.array([object()])},
                 {"train_labels": np.zeros((10, 14), np.uint8)}):          # as chestmnist has
        np.savez(path, **whole | part)
        refuses("cannot be read", data.check, "bloodmnist", str(tmp_path))
    make_bloodmnist(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    refuses("cannot be unpacked", data.check, "bloodmnist", str(tmp_path))


def test_a_label_out_of_range_is_refused(tmp_path):
    for name, label in (("train", 99), ("test", 100)):
        (tmp_path / f"{name}.bin").write_bytes(bytes([0, label]) + bytes(3072))
    with pytest.raises(BadInput, match="label 100 in the test file, but cifar100 has 100 classes"):
        data.check("cifar100", str(tmp_path))


# ---- texts ---------------------------------------------------------------------------------------

def table(header, *rows):
    return "\n".join("\t".join(row) for row in ([header] if header else []) + list(rows)) + "\n"


GLUE = {
    "cola": ("CoLA.zip", "CoLA", None, ("gj04", "0", "*", "They drank the pub."), 0,
             "They drank the pub."),
    "sst2": ("SST-2.zip", "SST-2", ("sentence", "label"), ("a \"fine\" film", "1"), 1,
             "a \"fine\" film"),
    "qqp": ("QQP-clean.zip", "QQP", ("id", "qid1", "question1", "question2", "is_duplicate"),
            ("1", "2", "Why?", "How?", "0"), 0, ("Why?", "How?")),
    "mnli": ("MNLI.zip", "MNLI", ("index", "sentence1", "sentence2", "label1", "gold_label"),
             ("1", "A man", "A person", "neutral", "contradiction"), 2, ("A man", "A person")),
    "qnli": ("QNLIv2.zip", "QNLI", ("index", "question", "sentence", "label"),
             ("1", "Who?", "He did.", "not_entailment"), 1, ("Who?", "He did.")),
    "rte": ("RTE.zip", "RTE", ("index", "sentence1", "sentence2", "label"),
            ("1", "a", "b", "entailment"), 0, ("a", "b")),
    "wnli": ("WNLI.zip", "WNLI", ("index", "sentence1", "sentence2", "label"),
             ("1", "a", "b", "1"), 1, ("a", "b")),
}


@pytest.mark.parametrize("task", GLUE)
def test_glue_from_its_zip(task, tmp_path):
    """dev is the test split; texts and label by the columns' names."""
    archive, folder, header, row, label, text = GLUE[task]
    dev = "dev_matched.tsv" if task == "mnli" else "dev.tsv"
    zipped(tmp_path / archive, {f"{folder}/train.tsv": table(header, *[row] * 20),
                                f"{folder}/{dev}": table(header, row, row)})
    texts, labels = data.load(task, "test", str(tmp_path), encode=lambda texts: texts)
    assert texts == [text, text] and labels.tolist() == [label, label]
    assert data.kind(task, str(tmp_path)) == "text"
    assert len(data.load(task, "train", str(tmp_path), encode=len)[1]) == 16


def test_mrpc_and_ag_news(tmp_path):
    header = ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    for part in ("train", "test"):
        (tmp_path / f"msr_paraphrase_{part}.txt").write_text(
            table(header, *[("1", "1", "2", "One.", "Two.")] * 10))
        (tmp_path / f"{part}.csv").write_text('"4","title","text"\n' * 10)
    same = lambda texts: texts
    texts, labels = data.load("mrpc", "test", str(tmp_path), 1, same)
    assert texts == [("One.", "Two.")] and labels.tolist() == [1]
    texts, labels = data.load("ag_news", "test", str(tmp_path), 1, same)
    assert texts == ["title text"] and labels.tolist() == [3]


def test_a_broken_line_of_a_published_table_is_left_out_aloud(tmp_path, capsys):
    """A question with a line break in it made two short lines of one; more are damage."""
    archive, folder, header, row, *_ = GLUE["qqp"]
    for broken, rows in ((1, 20), (3, 3000)):
        lines = [row] * rows + [("7", "8", "Why")] * broken + [row] * 10
        zipped(tmp_path / archive, {f"{folder}/train.tsv": table(header, *lines),
                                    f"{folder}/dev.tsv": table(header, row)})
        published.read.cache_clear()
        assert len(published.read("qqp", str(tmp_path))[2]["train"][1]) == rows + 10
        told = f"left out {broken} of {rows + broken + 11} lines"
        assert told in capsys.readouterr().err
    for content in (table(header, *lines, *[("7",)]), table(header, row, ("7",), row, ("7",), row),
                    table(header, *lines[:20], ("7", "8"))[:-1]):              # cut within a line
        zipped(tmp_path / archive, {f"{folder}/train.tsv": content,
                                    f"{folder}/dev.tsv": table(header, row)})
        published.read.cache_clear()
        refuses("cells and needs 5: it was cut short", data.check, "qqp", str(tmp_path))


# ---- downloads and folders -----------------------------------------------------------------------

def test_folders_without_the_files_of_a_known_set(tmp_path):
    refuses("is no folder.*or add --download", data.check, "svhn", str(tmp_path / "missing"))
    refuses("has no train_32x32.mat", data.check, "svhn", str(tmp_path))


def test_download_checks_and_leaves_nothing_half(tmp_path, monkeypatch, command):
    """From file:// addresses: a right checksum gives the task, a wrong one gives no file."""
    source, here = tmp_path / "there", tmp_path / "here"
    source.mkdir()
    make_bloodmnist(source)
    url = (source / "bloodmnist.npz").as_uri()
    md5 = hashlib.md5((source / "bloodmnist.npz").read_bytes()).hexdigest()
    known = published.DATASETS["bloodmnist"]
    words = ["--task", "bloodmnist", "--data", here, "--download", "--out", tmp_path / "run",
             "--steps", 1, "--adapter", "lora", "--batch", 4]
    monkeypatch.setitem(published.DATASETS, "bloodmnist", known._replace(urls=((url, "0" * 32),)))
    code, _, err = command(train.main, *words)
    assert code == 2 and "has md5" in err and not list(here.iterdir())
    monkeypatch.setitem(published.DATASETS, "bloodmnist", known._replace(urls=((url, md5),)))
    code, _, err = command(train.main, *words)
    assert code == 0, err
    assert [p.name for p in here.iterdir()] == ["bloodmnist.npz"]
    with pytest.raises(BadInput, match="unknown data set to download 'minst': did you mean 'mni"):
        published.download("minst", str(here), "image")
    with pytest.raises(BadInput, match="sst2 is a data set of texts, the model is for images"):
        published.download("sst2", str(here), "image")
    code, _, err = command(train.main, "--task", "mnist", "--download")
    assert code == 2 and "--download needs --data FOLDER" in err


def test_every_checksum_is_one():
    for name, entry in published.DATASETS.items():
        for url, md5 in entry.urls:
            assert url.startswith("http") and (md5 is None or len(bytes.fromhex(md5)) == 16), name
