"""Pictures as arrays. By Pillow, of any kind, they become 8-bit colours of one size:

    orientation    as the camera noted it (EXIF)
    transparency   lies on white
    16-bit grey    value / 257, rounded
    size           of the first training picture, its longer side made SIDE if it is longer

A picture is made small as soon as it is read. Values without a known range (32-bit integers,
floats) are refused, as is every damaged file, whatever Pillow raises for it.
"""

import contextlib
import os
import warnings
from pathlib import Path

import numpy as np

from errors import BadInput

SIDE = 256                                                                  # pixels
JUNK = ("__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


def visible(folder):
    """What lies in a folder, sorted, without what file managers and notebooks leave there."""
    return sorted(path for path in Path(folder).iterdir()
                  if not path.name.startswith(".") and path.name.lower() not in JUNK)


def below(folder):
    """The files in a folder and its folders; a link is not followed, it may lead in a circle."""
    return [file for path in visible(folder)
            for file in (below(path) if path.is_dir() and not path.is_symlink() else [path])]


def stack(paths, size=None):
    """Pictures (n, h, w, 3) uint8; size (w, h), by default that of the first, at most SIDE."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise BadInput(f"pictures such as {paths[0]} need Pillow: pip install pillow") from None
    with silent():
        first = small(paths[0], size)
        out = np.empty((len(paths), *first.shape), np.uint8)
        for i, path in enumerate(paths):
            out[i] = small(path, first.shape[1::-1])
    return out


@contextlib.contextmanager
def silent():
    """Without the lines that libtiff, below Python, writes to the standard error on its own."""
    held, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)
        os.close(nowhere)


def small(path, size=None):
    """One picture (h, w, 3) uint8 of a size (w, h), by default its own, at most SIDE."""
    from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                            # odd notes of a camera
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.draft(None, (2 * SIDE, 2 * SIDE))                # a large JPEG, coarsely
                picture = in_colours(image)
            shrink = min(1, SIDE / max(picture.size))
            size = size or [max(1, round(n * shrink)) for n in picture.size]
            return np.asarray(picture.resize(size))
    except Exception as error:                        # Pillow has no one kind for a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadInput(f"{path} is no picture that can be used ({reason}): "
                       "remove or replace it") from None


def in_colours(image):
    """A Pillow image as RGB, turned upright, on white; ValueError if its range is not known."""
    from PIL import Image, ImageOps
    ImageOps.exif_transpose(image, in_place=True)
    if sixteen_bits(image):
        values = np.asarray(image, np.float64)
        values = np.where(values == image.info.get("transparency"), 65535, values)
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"the range of its {image.mode} values is not known, save it with 8 bits")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def sixteen_bits(image):
    """Is it grey from 0 to 65535?  Then it has the mode I;16, I;16B or, from some files, I."""
    if image.format == "TIFF":
        bits, zero_is = image.tag_v2.get(258), image.tag_v2.get(262)         # 1: zero is black
        return image.mode.startswith("I;16") and bits == (16,) and zero_is == 1
    return image.mode.startswith("I") and image.format in ("PNG", "PPM", "JPEG2000")


def pixels(x, source):
    """Bytes (n, h, w) or (n, h, w, 1 or 3) as they are, floats from 0 to 1 as float32.

    Colours may come before height and width, as in torch; BadInput for all else.
    """
    if x.ndim == 4 and x.shape[3] not in (1, 3) and x.shape[1] in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.ndim not in (3, 4) or x.ndim == 4 and x.shape[3] not in (1, 3) or not x.size:
        raise BadInput(f"{source} has the shape {x.shape}: give (n, height, width), or "
                       "(n, height, width, 3) for colours")
    if x.dtype == np.uint8:
        if x.max() <= 1:
            raise BadInput(f"{source} is bytes from 0 to 1, where white is 255: write it as bool")
        return x
    if x.dtype.kind not in "fb" or not (x.min() >= 0 and x.max() <= 1):          # nan is neither
        span = f" from {x.min():.4g} to {x.max():.4g}" if x.dtype.kind in "fiu" else ""
        raise BadInput(f"{source} is {x.dtype}{span}: give bytes (uint8), or floats from 0 to 1")
    return x.astype(np.float32)
