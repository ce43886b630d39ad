"""One's own pictures, by Pillow: colours, orientation, sizes, and what is not a picture.

The right pixels are worked by hand, or are those of Pillow's ImageOps and Image.alpha_composite.
"""

import struct
import sys
import unicodedata
import zlib

import numpy as np
import pytest

import data
from files import shuffled
from tasks import published
from support import refuses

RNG = np.random.default_rng(3)
ROW = RNG.integers(0, 256, (6, 9, 3), np.uint8)


def test_pictures_need_pillow(tmp_path, monkeypatch):
    for path in ("train/cat", "test/cat"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "a.ppm").write_bytes(b"P6 1 1 255\nabc")
    monkeypatch.setitem(sys.modules, "PIL", None)
    refuses("need Pillow: pip install pillow", data.check, "pets", str(tmp_path))


Image = pytest.importorskip("PIL.Image")
from PIL import ImageOps, TiffImagePlugin  # noqa: E402
from tasks import pictures  # noqa: E402


def png(rows, width, depth=8):
    """A grey PNG by hand, from rows of bytes, each of `width` pixels of `depth` bits."""
    chunk = lambda name, body: (struct.pack(">I", len(body)) + name + body
                                + struct.pack(">I", zlib.crc32(name + body)))
    head = struct.pack(">IIBBBBB", width, len(rows), depth, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
            + chunk(b"IEND", b""))


def grey(path):
    """A picture of equal colours as (h, w)."""
    x = pictures.small(path)
    assert x.dtype == np.uint8 and (x == x[..., :1]).all()
    return x[..., 0].tolist()


# ---- colours -------------------------------------------------------------------------------------

WIDE = np.array([[0, 257, 25700], [65535, 128, 129]], np.uint16)
NARROW = [[0, 1, 100], [255, 0, 1]]                               # by 257: 128 is .498, 129 is .502


@pytest.mark.parametrize("write", [
    lambda path: path.write_bytes(png([r.tobytes() for r in WIDE.astype(">u2")], 3, 16)),
    lambda path: path.write_bytes(b"P5 3 2 65535\n" + WIDE.astype(">u2").tobytes()),
    lambda path: Image.fromarray(WIDE).save(path, "TIFF"),
    lambda path: Image.fromarray(WIDE).save(path, "TIFF", compression="tiff_lzw"),
    lambda path: Image.fromarray(WIDE.astype(">u2")).save(path, "TIFF"),
    lambda path: Image.fromarray(WIDE).save(path, "JPEG2000"),
], ids=["png", "pgm", "tiff", "lzw", "big-endian", "jpeg2000"])
def test_sixteen_bits_are_divided_by_257(tmp_path, write):
    write(tmp_path / "x")
    assert grey(tmp_path / "x") == NARROW


def tiff(path, **tags):
    """A TIFF of 16 bits with other values of its tags."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    Image.fromarray(WIDE).save(path, "TIFF", tiffinfo=info)
    content = path.read_bytes()
    for tag, value in tags.items():
        at = content.index(struct.pack("<HHI", int(tag[1:]), 3, 1))
        content = content[:at + 8] + struct.pack("<H", value) + content[at + 10:]
    path.write_bytes(content)


@pytest.mark.parametrize("write", [
    lambda path: Image.fromarray(WIDE.astype(np.int32)).save(path, "TIFF"),
    lambda path: Image.fromarray(WIDE.astype(np.float32)).save(path, "TIFF"),
    lambda path: tiff(path, t258=12), lambda path: tiff(path, t262=0),
    lambda path: path.write_bytes(b"Pf\n3 2\n-1.0\n" + bytes(24)),
], ids=["int32", "float32", "12 bits", "0 is white", "pfm"])
def test_values_of_no_known_range_are_refused(tmp_path, write):
    write(tmp_path / "x")
    refuses("/x is no picture that can be used .*range of its", pictures.small, tmp_path / "x")


@pytest.mark.parametrize("depth, byte, want", [
    (4, 0x1F, [17, 255]), (2, 0b01100000, [85, 170]), (1, 0b01000000, [0, 255])])
def test_few_bits_reach_from_black_to_white(tmp_path, depth, byte, want):
    """Times 17, 85 and 255: two pixels in a byte."""
    (tmp_path / "x.png").write_bytes(png([bytes([byte])], 2, depth))
    assert grey(tmp_path / "x.png") == [want]


@pytest.mark.parametrize("form, mode", [
    ("PNG", "RGBA"), ("PNG", "LA"), ("TIFF", "RGBA"), ("TIFF", "LA"), ("WEBP", "RGBA"),
    ("TGA", "RGBA"), ("JPEG2000", "LA"), ("ICO", "RGBA")])
def test_transparency_lies_on_white(tmp_path, form, mode):
    """Black drawn in the alpha channel: alpha 0 is white, 255 black, 51 a fifth of the way."""
    alpha = np.array([[0, 255, 51]], np.uint8)
    image = Image.merge("LA", [Image.new("L", (3, 1), 0), Image.fromarray(alpha)]).convert(mode)
    image.save(tmp_path / "x", form, **({"lossless": True} if form == "WEBP" else {}))
    assert grey(tmp_path / "x") == [[255, 0, 204]]


def test_transparency_by_one_colour(tmp_path):
    """tRNS: a palette's entry, a grey value of 8 or 16 bits."""
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 0, 0, 10, 10, 10, 20, 20, 20])
    image.save(tmp_path / "p.png", transparency=0)
    image.save(tmp_path / "p.gif", transparency=0)
    assert grey(tmp_path / "p.png") == grey(tmp_path / "p.gif") == [[255, 10, 20]]
    Image.fromarray(np.array([[7, 0, 200]], np.uint8)).save(tmp_path / "l.png", transparency=7)
    assert grey(tmp_path / "l.png") == [[255, 0, 200]]
    Image.fromarray(WIDE).save(tmp_path / "w.png", transparency=25700)
    assert grey(tmp_path / "w.png") == [[0, 1, 255], [255, 0, 1]]


def test_half_transparent_colours_are_those_of_pillow(tmp_path):
    pixels = RNG.integers(0, 256, (6, 9, 4), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "x.png")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    want = np.asarray(Image.alpha_composite(white, image))[..., :3]
    assert (pictures.small(tmp_path / "x.png") == want).all()
    a = pixels[..., 3:] / 255
    assert np.abs(want - (a * pixels[..., :3] + (1 - a) * 255)).max() <= 1         # and of algebra


def test_other_modes(tmp_path):
    """CMYK (0, 255, 255, 0) is red; one bit is black or white; a palette is its colours; Lab of
    full L, a and b in the middle, is white."""
    Image.new("CMYK", (2, 1), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    assert pictures.small(tmp_path / "c.tif").tolist() == [[[255, 0, 0]] * 2]
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    assert np.abs(pictures.small(tmp_path / "c.jpg")[8, 8] - np.array([255, 0, 0.0])).max() < 9
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.tif")
    assert grey(tmp_path / "b.tif") == [[255, 0]]
    image = Image.fromarray(np.array([[1, 0]], np.uint8), "P")
    image.putpalette([1, 2, 3, 40, 50, 60])
    image.save(tmp_path / "p.bmp")
    assert pictures.small(tmp_path / "p.bmp").tolist() == [[[40, 50, 60], [1, 2, 3]]]
    Image.new("LAB", (1, 1), (255, 128, 128)).save(tmp_path / "lab.tif")
    assert (pictures.small(tmp_path / "lab.tif") > 250).all()


# ---- orientation and size ------------------------------------------------------------------------

@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "wide PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_the_camera(tmp_path, form, orientation):
    """As ImageOps.exif_transpose turns it; 6 also by hand: the left column goes to the top."""
    image = Image.fromarray(ROW[..., 0].astype(np.uint16) * 257 if form == "wide PNG" else ROW)
    exif = Image.Exif()
    exif[0x112] = orientation
    more = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    image.save(tmp_path / "x", form.split()[-1], exif=exif, **more)
    found = pictures.small(tmp_path / "x")
    want = ROW[..., :1].repeat(3, 2) if form == "wide PNG" else ROW
    if form == "JPEG":                                  # the size tells, and the file's own pixels
        with Image.open(tmp_path / "x") as raw:
            want = np.asarray(raw)
    plain = Image.fromarray(want)
    plain.getexif()[0x112] = orientation
    assert (found == np.asarray(ImageOps.exif_transpose(plain))).all()
    if orientation == 6:
        assert (found[0] == want[::-1, 0]).all() and found.shape == (9, 6, 3)


def make(folder, pictures):
    for name, image in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return str(folder)


def flat(width, height, colour):
    return Image.new("RGB", (width, height), colour)


@pytest.mark.parametrize("size, want", [
    ((9, 6), (6, 9)), ((256, 40), (40, 256)), ((1000, 600), (154, 256)), ((300, 4000), (256, 19)),
    ((5000, 3), (1, 256))])
def test_all_are_of_the_size_of_the_first_and_none_is_kept_large(tmp_path, size, want):
    """Its longer side is at most 256, and the shorter in proportion: 600 * 256 / 1000 = 153.6."""
    every = {"train/a/0.jpg": flat(*size, "red")} | {
        f"train/{c}/{i}.png": flat(700, 20 + i, "blue") for c in "ab" for i in range(1, 6)}
    folder = make(tmp_path, every | {"test/b/x.png": flat(1, 1, "lime")})
    parts = published.read("mine", folder)[2]
    assert parts["train"][0].shape == (11, *want, 3) and parts["test"][0].shape == (1, *want, 3)
    assert parts["test"][0][0, 0, 0].tolist() == [0, 255, 0]
    assert np.abs(parts["train"][0][0, 0, 0] - np.array([254.0, 0, 0])).max() <= 2


def test_a_small_picture_stays_as_it_is(tmp_path):
    Image.fromarray(ROW).save(tmp_path / "x.png")
    assert (pictures.small(tmp_path / "x.png") == ROW).all()


# ---- folders -------------------------------------------------------------------------------------

def pets(folder, *more, train=("cat", "dog"), test=("cat", "dog")):
    every = {f"train/{c}/{i}.png": flat(4, 4, "red") for c in train for i in range(6)}
    every |= {f"test/{c}/{i}.png": flat(4, 4, "red") for c in test for i in range(2)}
    make(folder, every)
    for name in more:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    return str(folder)


@pytest.mark.parametrize("junk", [
    ".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "desktop.ini", "__MACOSX/cat/._0.png",
    "cat/._0.png", ".ipynb_checkpoints/0-checkpoint.png", "cat/.ipynb_checkpoints/0.png",
    "@eaDir/0.png", "cat/Icon\r"])
def test_what_systems_leave_is_no_class_and_no_picture(tmp_path, junk):
    folder = pets(tmp_path, f"train/{junk}", f"test/{junk}")
    assert data.classes("mine", folder) == 2
    assert data.load("mine", "test", folder)[1].tolist() == shuffled([0, 0, 1, 1]).tolist()


def test_names_of_classes(tmp_path):
    """One name in two spellings is one class; deeper folders belong to the class above."""
    name = unicodedata.normalize("NFC", "caf\u00e9")
    folder = pets(tmp_path, train=(name, "dog"), test=(unicodedata.normalize("NFD", name),))
    make(tmp_path, {"test/dog/more/x.png": flat(4, 4, "red")})
    assert data.load("mine", "test", folder)[1].tolist() == shuffled([0, 0, 1]).tolist()
    assert data.classes("mine", folder) == 2


def test_a_link_in_a_circle_ends(tmp_path):
    folder = pets(tmp_path)
    (tmp_path / "train/cat/again").symlink_to(tmp_path / "train")
    refuses("train/cat/again is no picture", data.check, "mine", folder)


def test_pictures_without_labels_give_way(tmp_path):
    folder = pets(tmp_path, "test/1.png", test=())
    refuses("none with labels that is named test or dev", data.check, "mine", folder)
    make(tmp_path, {"val/dog/x.png": flat(4, 4, "red")})
    assert data.load("mine", "test", folder)[1].tolist() == [1]


@pytest.mark.parametrize("more, told", [
    (["train/cat/x.png"], "train/cat/x.png is no picture that can be used .*remove or replace it"),
    (["train/x.png"], "train/x.png is in no folder of a class"),
    (["test/Cat/x.png"], "x.png is no picture"), (["test/bird/.x"], None),
])
def test_files_that_are_no_pictures(tmp_path, more, told):
    folder = pets(tmp_path, *more)
    refuses(told, data.check, "mine", folder) if told else data.check("mine", folder)


def test_classes_that_do_not_match(tmp_path):
    folder = pets(tmp_path, test=("cat", "Dog"))
    refuses("test has the label 'Dog', the task has cat, dog", data.check, "mine", folder)
    (tmp_path / "train/cow").mkdir()
    refuses("train/cow holds no pictures: add some, or remove", data.check, "mine", folder)


# ---- damage --------------------------------------------------------------------------------------

def changed(path, at, *values):
    content = bytearray(path.read_bytes())
    content[at:at + 4 * len(values)] = struct.pack(f"<{len(values)}i", *values)
    path.write_bytes(content)


@pytest.mark.parametrize("form", ["bmp", "tif", "ppm", "png", "jpg", "gif", "webp", "tga"])
def test_any_damage_is_one_line(tmp_path, form):
    """100 seeded damages of a file's beginning: a picture of at most 256 pixels, or BadInput."""
    path, rng = tmp_path / f"x.{form}", np.random.default_rng(5)
    Image.fromarray(ROW).save(path)
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        content = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 60), 2):
            content[at] = rng.choice([0, 1, 127, 255])
        path.write_bytes(content[:rng.integers(1, 2 * len(whole))])
        try:
            assert max(pictures.small(path).shape) <= 256
        except data.BadInput as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 20


def test_sizes_that_are_not_there(tmp_path):
    for size in ((-9, 6), (9, -2 ** 31), (2 ** 31 - 1, 2 ** 31 - 1), (0, 0), (20000, 20000)):
        Image.fromarray(ROW).save(tmp_path / "x.bmp")
        changed(tmp_path / "x.bmp", 18, *size)
        refuses("x.bmp is no picture", pictures.small, tmp_path / "x.bmp")
    for head in (b"P6 99 99 255\n", b"P6 -1 4 255\n", b"P6 30000 30000 255\n", b"P6 9 6 0\n",
                 b"P6 99999999999 1 255\n", b"P6 9"):
        (tmp_path / "x.ppm").write_bytes(head + ROW.tobytes())
        refuses("x.ppm is no picture", pictures.small, tmp_path / "x.ppm")


def test_libtiff_adds_no_line_of_its_own(tmp_path, capfd):
    Image.fromarray(ROW).save(tmp_path / "x.tif", compression="tiff_lzw")
    content = (tmp_path / "x.tif").read_bytes()
    at = content.index(struct.pack("<HHIH", 256, 3, 1, 9))                            # its width
    (tmp_path / "x.tif").write_bytes(content[:at + 8] + b"\0\1" + content[at + 10:])
    refuses("x.tif is no picture", pictures.stack, [tmp_path / "x.tif"])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("side, told", [(9500, "90250000 pixels"), (20000, "decompression bomb")])
def test_bombs(tmp_path, side, told):
    """Above what Pillow warns of (89 million pixels), and above what it refuses."""
    (tmp_path / "x.png").write_bytes(png([b""] * side, side))
    refuses(told, pictures.small, tmp_path / "x.png")
