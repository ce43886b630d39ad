"""Readers of image and text files, on files written here byte by byte, and on damaged ones."""

import gzip
import tarfile
import zipfile

import numpy as np
import pytest

from errors import BadInput
from files import matlab, tarred, zipped
from tasks import archives, formats, readers
from support import refuses

RNG = np.random.default_rng(0)


# ---- images --------------------------------------------------------------------------------------

def test_cifar_records_are_planes_after_the_label_bytes():
    """A pixel (row 1, column 2) of the three planes is the colour (10, 20, 30)."""
    planes = np.zeros((2, 3, 32, 32), np.uint8)
    planes[1, :, 1, 2] = 10, 20, 30
    content = b"".join(bytes([7, 5 + i]) + planes[i].tobytes() for i in range(2))
    images, labels = readers.cifar((content, "x"), label_bytes=2)
    assert labels.tolist() == [5, 6] and images.shape == (2, 32, 32, 3)
    assert images[1, 1, 2].tolist() == [10, 20, 30] and images.sum() == 60
    for damaged in (content[:-1], b""):
        refuses("no multiple of 3074", readers.cifar, (damaged, "x"), label_bytes=2)


def test_stl_columns_run_down():
    """Byte 1 of a plane is row 1 of column 0."""
    plane = np.zeros((3, 96 * 96), np.uint8)
    plane[0, 1], plane[2, 96] = 9, 8
    image = readers.stl10((plane.tobytes(), "x"), (b"\1", "y"))[0][0]
    assert image[1, 0].tolist() == [9, 0, 0] and image[0, 1].tolist() == [0, 0, 8]
    refuses("no multiple", readers.stl10, (plane.tobytes()[1:], "x"), (b"\1", "y"))


def test_ppm_with_a_comment():
    pixels = bytes(range(18))
    picture = formats.ppm(b"P6\n# made by hand\n3 2\n255\n" + pixels, "x")
    assert picture.shape == (2, 3, 3) and picture[1, 0].tolist() == [9, 10, 11]
    refuses("no binary PPM", formats.ppm, b"P5\n3 2\n255\n" + pixels, "x")
    refuses("no binary PPM picture of 8 bits", formats.ppm, b"P6\n3 2\n65535\n" + pixels, "x")
    with pytest.raises(BadInput, match="promises 3 x 2 pixels and holds 17 bytes"):
        formats.ppm(b"P6 3 2 255\n" + pixels[:-1], "x")
    assert formats.ppm(b"P6 3#wide\n2\n255\n" + pixels, "x").shape == (2, 3, 3)
    for odd in (b"P6" + b" " * 200 + b"x", b"P6\n0 0\n255\n"):            # neither hangs nor passes
        refuses("no binary PPM", formats.ppm, odd, "x")


def test_libsvm_lines():
    values, labels = formats.libsvm(b"3 1:-1 3:0.5\n10 2:1\n", "x", 3)
    assert labels.tolist() == [3, 10] and values.tolist() == [[-1, 0, 0.5], [0, 1, 0]]
    for damaged in (b"3 4:1", b"3 0:1", b"3 1", b"x 1:1", b"3 1:y"):
        refuses("line 1 is no", formats.libsvm, damaged, "x", 3)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
def test_mat_arrays_run_down_their_first_dimension(packed, order):
    X, y = RNG.integers(0, 256, (2, 3, 3, 5), np.uint8), np.array([[10], [3]], np.uint8)
    found = formats.mat(matlab({"X": X, "y": y}, packed, order), "x")
    assert found.keys() == {"X", "y"}
    assert (found["X"] == X).all() and (found["y"] == y).all()


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_mat_files_are_refused(packed):
    whole = matlab({"X": RNG.integers(0, 256, (4, 4, 3, 5), np.uint8)}, packed)
    refuses("cannot be read", formats.mat, whole[:-9], "x")
    refuses("no MATLAB 5.0 file", formats.mat, b"MATLAB 7.3" + whole[10:126] + b"\0\0", "x")


# ---- archives ------------------------------------------------------------------------------------

@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_file_is_found_unpacked_in_a_folder_below_or_in_the_archive(tmp_path, pack):
    pack(tmp_path / "set.archive", {"set/a.bin": b"packed", "set/not-a.bin": b"no"})
    assert archives.named(tmp_path, ["a.bin"], ["other.zip", "set.archive"])[0][0] == b"packed"
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.bin.gz").write_bytes(gzip.compress(b"unpacked"))
    assert archives.named(tmp_path, ["a.bin"], ["set.archive"])[0][0] == b"unpacked"
    with pytest.raises(BadInput, match="has no b.bin, unpacked or in set.archive"):
        archives.named(tmp_path, ["b.bin"], ["set.archive"])


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../a.bin", "/a.bin", "x/../../a.bin", "..\\a.bin", "C:\\a.bin"])
def test_entries_that_point_outside_are_refused(tmp_path, pack, name):
    pack(tmp_path / "set.zip", {"a.bin": b"good", name: b"bad"})
    with pytest.raises(BadInput, match="points outside its folder"):
        archives.entries(tmp_path / "set.zip", lambda entry: entry == "a.bin")


def test_links_are_refused(tmp_path):
    tarred(tmp_path / "set.tar.gz", {"a.bin": b""}, tarfile.SYMTYPE)
    link = zipfile.ZipInfo("a.bin")
    link.external_attr = 0o120777 << 16
    zipped(tmp_path / "set.zip", {link: "elsewhere"})
    for path in tmp_path.iterdir():
        refuses("points outside its folder", archives.entries, path, lambda entry: True)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_truncated_archives_are_refused(tmp_path, pack):
    path = tmp_path / "set.archive"
    pack(path, {"a.bin": RNG.bytes(5000)})
    path.write_bytes(path.read_bytes()[:3000])
    refuses("cannot be unpacked", archives.entries, path, lambda entry: True)


def test_archives_of_no_known_kind_are_refused_in_one_line(tmp_path):
    """A web page instead of an archive, a password, a way of packing that zipfile lacks."""
    zipped(tmp_path / "set.zip", {"a.bin": b"good"})
    whole = (tmp_path / "set.zip").read_bytes()
    local, central = whole.find(b"PK\3\4"), whole.find(b"PK\1\2")
    locked, odd = bytearray(whole), bytearray(whole)
    locked[local + 6] = locked[central + 8] = 1
    odd[local + 8] = odd[central + 10] = 99
    for content in (b"<html>404</html>", locked, odd):
        (tmp_path / "set.zip").write_bytes(content)
        with pytest.raises(BadInput, match="cannot be unpacked") as caught:
            archives.entries(tmp_path / "set.zip", lambda entry: True)
        assert "\n" not in str(caught.value)


def test_the_nearest_of_several_files_or_none(tmp_path):
    """A folder of several sets names no file: the wrong one must not be taken in silence."""
    for place in ("one", "two", "two/deeper"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.bin").write_bytes(place.encode())
    with pytest.raises(BadInput, match="has a.bin in one and in two: give --data one of these"):
        archives.named(tmp_path, ["a.bin"])
    assert archives.named(tmp_path / "two", ["a.bin"])[0][0] == b"two"
    (tmp_path / "a.bin").write_bytes(b"here")
    assert archives.named(tmp_path, ["a.bin"])[0][0] == b"here"


def test_several_files_come_in_the_order_of_their_names(tmp_path):
    tarred(tmp_path / "set.tar.gz", {"./x/a.bin": b"A", "./x/b.bin": b"B", "./x/ab.bin": b"no"})
    found = archives.named(tmp_path, ["b.bin", "a.bin"], ["set.tar.gz"])
    assert [content for content, _ in found] == [b"B", b"A"]


# ---- texts ---------------------------------------------------------------------------------------

def test_tsv_columns_by_name_whatever_their_order():
    content = '\ufefflabel\tid\tsentence\r\n1\t7\ta "quoted\r\n0\t8\tb\r\n'.encode()
    rows = formats.tsv(content, "x", ("sentence", "label"))
    assert rows == [('a "quoted', "1"), ("b", "0")]
    assert formats.tsv(b"s\t1\t\tfine", "x", (3, 1), header=False) == [("fine", "1")]


@pytest.mark.parametrize("content, told", [
    (b"sentence\tscore\na\t1", "no column 'label', its header is sentence, score"),
    (b"sentence\tlabel\na\t1\nb", "line 3 has 1 cells and needs 2"),
    (b"sentence\tlabel\na\t \n", "line 2 has no label: is it a test file?"),
    (b"", "is empty"), (b"sentence\tlabel\n\xff\xfe\t1", "is not UTF-8 text"),
])
def test_damaged_tables_are_refused(content, told):
    refuses(told, formats.tsv, content, "x", ("sentence", "label"))


def test_ag_news_joins_title_and_description():
    read, labels = readers.ag_news((b'"3","Wall St., up","Stocks ""rose"""\n"1","a","b"\n', "x"))
    assert read == ['Wall St., up Stocks "rose"', "a b"] and labels.tolist() == [2, 0]
    for damaged in (b'"3","a","b"\n"1","a"\n', b'"3","a","' + b"b" * 200_000):
        refuses("line . is no `class, title, description`", readers.ag_news, (damaged, "x"))


def test_labels_by_their_place_among_the_classes():
    read, labels = readers.labelled([("a", "b", "no"), ("c", "d", "yes")], ("yes", "no"), "x")
    assert read == [("a", "b"), ("c", "d")] and labels.tolist() == [1, 0]
    assert readers.labelled([("a", "no")], ("yes", "no"), "x")[0] == ["a"]
    with pytest.raises(BadInput, match="the label 'maybe', the task has yes, no"):
        readers.labelled([("a", "maybe")], ("yes", "no"), "x")
    refuses("the label ''", readers.labelled, [("a", "")], ("yes", "no"), "x")
