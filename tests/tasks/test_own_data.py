"""One's own tables and arrays: what is data without documentation, and what is refused."""

import gzip
import unicodedata

import numpy as np
import pytest
import torch

import data
from files import shuffled
from tasks import folders, published
from support import refuses

RNG = np.random.default_rng(2)
TEN = [("good film", "pos"), ("bad film", "neg")] * 5


@pytest.fixture
def lay(tmp_path):
    """lay({name: text or bytes}) -> the folder that has these files."""
    def call(contents):
        for name, content in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            content = content.encode() if isinstance(content, str) else content
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)
    return call


def tabs(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def texts(folder, split="test"):
    found, labels = data.load("mine", split, folder, encode=lambda texts: texts)
    return found, labels.tolist()


# ---- tables --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, header, lines, want", [
    ("csv", "text,label", ['"one, ""two""",tea', "three,ale"], ['one, "two"', "three"]),
    ("csv", "Label,Sentence", ["tea,one", 'ale,"two\nlines"'], ["one", "two\nlines"]),
    ("csv", "review;class", ["one, two;tea", "three;ale"], ["one, two", "three"]),
    ("csv", ",text,LABEL", ["0,one,tea", "1,two,ale"], ["one", "two"]),      # pandas' index
    ("csv", "label,text,", ["tea,one,", "ale,two,", ",,"], ["one", "two"]),  # a spreadsheet's
    ("csv", "idx,premise,hypothesis,label", ["7,a,b,tea", "8,c,d,ale"], [("a", "b"), ("c", "d")]),
    ("csv", "who,text,label,where", ["me,one,tea,here", "me,two,ale,there"], ["one", "two"]),
    ("csv", "text,label,label_text", ["one,1,tea", "two,0,ale"], ["one", "two"]),   # no leak
    ("csv", "target,text,label", ["tea,one,1", "ale,two,0"], ["one", "two"]),
    ("csv", "text,label", [f"{'a' * 140_000},tea", "two,ale"], ["a" * 140_000, "two"]),
    ("tsv", "sentence\tlabel", ['"one\ttea', "two\tale"], ['"one', "two"]),
    ("tsv", "text1\ttext2\tlabel", ["a\tb\ttea", "c\td\tale"], [("a", "b"), ("c", "d")]),
    ("tsv", "a\tb\tlabel", ["5\t5.\ttea", "c\t-7\tale"], ["5", "c"]),    # b has only numbers
    ("tsv", "label\ttext\r", ["tea\tone\r", "", "ale\t7\r"], ["one", "7"]),
    ("txt", "\ufefftext\ttarget", ["one\ttea", "two\tale"], ["one", "two"]),
])
def test_any_table_with_a_column_label(lay, name, header, lines, want):
    """Classes as the labels sort: ale 0, tea 1; one other column is a text, two are a pair."""
    content = "\n".join([header, *lines]) + "\n"
    train = "\n".join([header, *lines * 5]) + "\n"
    folder = lay({f"train.{name}": train, f"test.{name}": content})
    assert texts(folder) == (want, [1, 0])
    assert data.kind("mine", folder) == "text" and data.classes("mine", folder) == 2


def test_tables_in_other_places_and_names(lay):
    """Train.CSV beside a packed validation.tsv with its columns in another order."""
    packed = gzip.compress(b"label\tid\ttext\nneg\t5\ta, b\n")
    folder = lay({"Train.CSV": "text,label\n" + "a,pos\nb,neg\n" * 5, "validation.tsv.gz": packed})
    assert texts(folder) == (["a, b"], [0])


def test_blanks_and_composition_make_no_new_class(lay):
    """`pos ` is pos, and the e with an accent is one letter or two, as the system writes it."""
    name = unicodedata.normalize("NFC", "caf\u00e9")
    apart = unicodedata.normalize("NFD", name)
    assert name != apart
    rows = [("a", "pos "), ("b", " pos"), ("c", name), ("d", apart), ("e", "pos\u00a0")] * 2
    folder = lay({"train.tsv": tabs(("text", "label"), *rows),
                  "test.tsv": tabs(("text", "label"), ("a", f"{apart} "), ("b", "pos"))})
    assert data.classes("mine", folder) == 2 and texts(folder)[1] == [0, 1]


@pytest.mark.parametrize("secret", [
    tabs(("index", "text"), ("0", "x")), tabs(("text", "label"), ("x", "-1"), ("y", "-1")),
    tabs(("text", "label"), ("x", ""), ("y", " "))])
@pytest.mark.parametrize("other", ["dev", "validation", "val"])
def test_a_test_file_without_labels_gives_way(lay, secret, other):
    files = {"train.tsv": tabs(("text", "label"), *TEN), "test.tsv": secret}
    folder = lay(files)
    refuses("none with labels that is named test or dev or .*apart", folders.read, folders.table,
            folder)
    lay({f"{other}.tsv": tabs(("text", "label"), ("z", "pos"))})
    assert texts(folder) == (["z"], [1])


def test_labelled_test_goes_before_dev(lay):
    head = ("text", "label")
    folder = lay({"train.tsv": tabs(head, *TEN), "dev.tsv": tabs(head, ("dev", "pos")),
                  "test.tsv": tabs(head, ("test", "pos"))})
    assert texts(folder)[0] == ["test"]


@pytest.mark.parametrize("files, told", [
    ({"train.csv": "a,b\n1,2\n"}, "has the columns a, b: it wants one named label, and a text"),
    ({"train.csv": "label,7x7,7x8\n" + "1,0,255\n" * 20}, "columns label, 7x7, 7x8: it wants one"),
    ({"train.csv": "who,what,where,label\na,b,c,d\n"}, "columns who, what, where, label"),
    ({"train.csv": "label\nx\n"}, "it wants one named label, and a text"),
    ({"train.csv": "id,text,label\n" + "tw_1,a film,x\n" * 20}, "has id and text: leave one out"),
    ({"train.csv": "review,sentiment,label\n" + "a film,good,1\n" * 20}, "review and sentiment: l"),
    ({"train.csv": "text,label\na,x\nb, c,x\n"}, "line 3 has 3 cells and needs 2.*a comma without"),
    ({"train.tsv": "text\tlabel\na\tx\nb\ttail\tx\n"}, "line 3 has 3 cells.*text contains a tab"),
    ({"train.csv": 'text,label\n"a,x\nb,x\n'}, "line 3 is no csv .*quotation mark left open"),
    ({"train.csv": "text,label\na,x\n\nb,\n"}, "train.csv line 4 has no label"),
    ({"train.csv": "\n"}, "train.csv is empty"),
    ({"train.csv": b"\xff\xfet\0"}, "is not UTF-8 text"),
    ({"train.csv": "", "train.tsv": ""}, "has train.csv and train.tsv: keep one"),
    ({"train.csv": "text,label\n" + "a,x\nb,y\n" * 5}, "has training data, and none with labels"),
    ({"train.csv": "text,label\n" + "a,x\nb,y\n" * 5, "dev.csv": "text,label\na,z\n"},
     "dev.csv has the label 'z', the task has x, y"),
    ({"train.csv": "text,label\n" + "a,x\nb,y\n" * 5, "dev.csv": "words,label\na,x\n"},
     "dev.csv has no column 'text'"),
    ({"train.csv": "text,label\n" + "a,x\nb,y\n" * 5, "dev.csv": "text,label\n"},
     "the test files hold no examples"),
    ({"train.csv": "text,label\n" + "a,x\n" * 10, "dev.csv": "text,label\na,x\n"},
     "all training examples have one label"),
    ({"train.csv": "text,label\n", "test.csv": "text,label\n"}, "train files hold no examples"),
    ({"train.csv": "id,label\n1,x\n", "train/1.txt": "?"}, "has train.csv and a folder train"),
    ({"notes.md": "?"}, "train.csv and test.csv .*train.npz .*train/cat/1.png .*idx3-ubyte"),
    ({"train/notes.md": "?"}, "train.csv and test.csv .*train.npz .*train/cat/1.png"),
    ({"test.csv": "text,label\na,x\n"}, "holds no data that is known: --data wants train.csv and"),
])
def test_what_is_no_table_is_refused_in_one_line(lay, files, told):
    refuses(told, data.check, "mine", lay(files))


# ---- arrays --------------------------------------------------------------------------------------

GREY, COLOURS = (RNG.integers(0, 256, (12, 5, 4, *c), np.uint8) for c in ((), (3,)))
GREY[0, 0, :2] = 0, 255
NUMBER = np.arange(12) % 3


@pytest.mark.parametrize("x, want", [
    (GREY, GREY[:, None] / 255), (GREY[..., None], GREY[:, None] / 255),
    (COLOURS, COLOURS.transpose(0, 3, 1, 2) / 255),
    (COLOURS.transpose(0, 3, 1, 2), COLOURS.transpose(0, 3, 1, 2) / 255),
    (GREY / 256, GREY[:, None] / 256), ((GREY / 256).astype(np.float16), GREY[:, None] / 256),
    (GREY > 127, 1.0 * (GREY[:, None] > 127))])
def test_pixels_of_arrays(tmp_path, x, want):
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=NUMBER, x_test=x, y_test=NUMBER)
    images, labels = data.load("mine", "test", str(tmp_path))
    torch.testing.assert_close(images, torch.tensor(shuffled(want)).float(), atol=1e-6, rtol=0)
    assert images.dtype == torch.float32 and labels.tolist() == shuffled(NUMBER).tolist()


@pytest.mark.parametrize("files", [
    {"train.npz": ("x", "y"), "test.npz": ("x", "y")},
    {"Train.npz": ("images", "labels"), "val.npz": ("images", "labels")},
    {"all.npz": ("X_train", "y_train", "X_dev", "Y_dev")},
    {"own_train.npz": ("data", "target"), "own_test.npz": ("data", "target")},
    {"set.npz": ("train_images", "train_labels", "test_images", "test_labels")}])
@pytest.mark.parametrize("number", [NUMBER, NUMBER[:, None].astype(np.uint8),
                                    np.array(["cat", "cow ", "dog"])[NUMBER], NUMBER * 5 + 1])
def test_names_of_arrays_and_labels(tmp_path, files, number):
    """Labels are numbered as they sort, names and numbers alike."""
    for file, keys in files.items():
        np.savez(tmp_path / file, **{k: GREY if k[0] in "xXid" or "images" in k else number
                                     for k in keys})
    assert data.load("mine", "test", str(tmp_path))[1].tolist() == shuffled(NUMBER).tolist()
    assert data.classes("mine", str(tmp_path)) == 3


def test_four_npy_files_and_a_test_without_labels(tmp_path):
    for split, y in (("train", NUMBER), ("val", NUMBER[:3])):
        np.save(tmp_path / f"x_{split}.npy", GREY[:len(y)])
        np.save(tmp_path / f"y_{split}.npy", y)
    np.save(tmp_path / "x_test.npy", GREY)
    assert data.load("mine", "test", str(tmp_path))[1].tolist() == shuffled([0, 1, 2]).tolist()
    np.save(tmp_path / "y_test.npy", 0 * NUMBER - 1)
    published.read.cache_clear()
    assert data.load("mine", "test", str(tmp_path))[1].tolist() == shuffled([0, 1, 2]).tolist()


WHOLE = {"x_train": GREY, "y_train": NUMBER, "x_test": GREY, "y_test": NUMBER}


@pytest.mark.parametrize("change, told", [
    ({"x_train": GREY * 1.0}, "x of train is float64 from 0 to 255: give bytes"),
    ({"x_test": GREY / 127.5 - 1}, "x of test is float64 from -1 to 1"),
    ({"x_train": np.where(GREY > 9, np.nan, 0)}, "is float64 from nan to nan"),
    ({"x_train": GREY.astype(np.int64)}, "is int64 from 0 to 255"),
    ({"x_train": GREY.reshape(12, 20)}, r"has the shape \(12, 20\): give"),
    ({"x_train": COLOURS[..., :2]}, r"has the shape \(12, 5, 4, 2\)"),
    ({"x_train": np.array([["a"]] * 12)[..., None]}, "is <U1: give bytes"),
    ({"x_train": np.array([object()])}, "all.npz cannot be used .*pickle"),
    ({"y_train": np.eye(3)[NUMBER]}, r"y of train is float64 of shape \(12, 3\)"),
    ({"y_train": NUMBER / 7}, "y of train is float64"),
    ({"y_train": NUMBER[:11]}, "12 train inputs but 11 labels"),
    ({"y_test": NUMBER + 1}, "has the label 3, the task has 0, 1, 2"),
    ({"x_train": np.zeros((0, 2, 2), np.uint8), "y_train": NUMBER[:0]}, "no training data"),
    ({"y_train": NUMBER - NUMBER - 1}, "no training data with labels: --data wants"),
    ({"images_train": GREY}, "a second x of train"),
    ({"x_train_test": GREY}, "x_train_test names two splits"),
    ({"x_train": GREY // 255}, "x of train is bytes from 0 to 1, where white is 255"),
])
def test_arrays_that_are_refused(tmp_path, change, told):
    np.savez(tmp_path / "all.npz", **WHOLE | change)
    refuses(told, data.check, "mine", str(tmp_path))


def test_damaged_arrays_are_refused(tmp_path):
    """Cut at any place, or with any of the first bytes of an array's header changed."""
    np.savez(tmp_path / "all.npz", **WHOLE)
    whole = (tmp_path / "all.npz").read_bytes()
    for content in (b"", b"?", whole[:30], whole[:500], whole[:-1], whole.replace(b"(12,", b"(99,"),
                    whole.replace(b"'descr'", b"'d:scr'"), whole.replace(b"NUMPY", b"NUMPI")):
        (tmp_path / "all.npz").write_bytes(content)
        refuses("all.npz cannot be used", folders.read, folders.arrays, str(tmp_path))


def test_a_second_held_out_file_is_val(lay):
    """test.csv and valid.csv: both are used, and train keeps all but calib."""
    lines = lambda *texts: "text,label\n" + "".join(f"{t},{'xy'[i % 2]}\n"
                                                    for i, t in enumerate(texts))
    folder = lay({"train.csv": lines(*map(str, range(20))), "test.csv": lines("a", "b"),
                  "valid.csv": lines("c", "d", "e")})
    held = {split: sorted(texts(folder, split)[0]) for split in ("test", "val")}
    assert held == {"test": ["a", "b"], "val": ["c", "d", "e"]}
    assert len(texts(folder, "train")[0]) == 18
