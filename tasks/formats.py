"""Image files read by hand: bytes in, arrays of unsigned bytes out. `source` is for messages.

    IDX       0 0 8 d, then d big-endian uint32 sizes, then the values          MNIST family
    records   k label bytes and 3 x 32 x 32 pixels, plane by plane              CIFAR
    columns   n x 3 x 96 x 96 pixels, each plane column by column               STL-10
    MAT v5    tagged elements, zlib inside, arrays column by column             SVHN
    PPM       "P6", width, height, 255 in text, then RGB rows                   GTSRB
    LIBSVM    label index:value ... a line, values in [-1, 1]                   USPS

Shapes    grey (n, h, w) · colour (n, h, w, 3)
All raise BadInput for a wrong magic number, a missing part or a wrong number of bytes.
"""

import re
import struct
import zlib

import numpy as np

from errors import BadInput


def damaged(source, why):
    """The error for a file that is not what its name says."""
    return BadInput(f"{source} {why}: it was cut short or is damaged, fetch it again")


def idx(content, source, dimensions):
    """An IDX file as a uint8 array; BadInput on a wrong magic number or a wrong number of bytes."""
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise BadInput(f"{source} starts with {content[:4].hex()}, "
                       f"an IDX file of {dimensions} dimensions with 0000080{dimensions}: "
                       "is it the right file?")
    head = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:head]) if len(content) >= head else (0,)
    if len(content) - head != np.prod(shape, dtype=np.int64):
        held = max(len(content) - head, 0)
        raise damaged(source, f"promises {shape} values and holds {held} bytes")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def records(content, source, label_bytes, size=32):
    """CIFAR: images (n, size, size, 3) and the last of each record's label bytes (n,)."""
    length = label_bytes + 3 * size * size
    if not content or len(content) % length:
        raise damaged(source, f"has {len(content)} bytes, no multiple of {length}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, length)
    images = rows[:, label_bytes:].reshape(-1, 3, size, size).transpose(0, 2, 3, 1)
    return images, rows[:, label_bytes - 1].astype(np.int64)


def columns(content, source, size=96):
    """STL-10: images (n, size, size, 3) stored plane by plane and column by column."""
    if not content or len(content) % (3 * size * size):
        raise damaged(source, f"has {len(content)} bytes, no multiple of {3 * size * size}")
    return np.frombuffer(content, np.uint8).reshape(-1, 3, size, size).transpose(0, 3, 2, 1)


def ppm(content, source):
    """A binary PPM picture of 8 bits, (h, w, 3)."""
    gap = rb"(?:\s|#[^\n]*\n)+"
    head = re.match(rb"P6" + gap + gap.join([rb"([1-9]\d{0,4})"] * 3) + rb"\s", content)
    if not head or head[3] != b"255":
        raise BadInput(f"{source} is no binary PPM picture of 8 bits (P6 ... 255): "
                       "is it the right file?")
    width, height = int(head[1]), int(head[2])
    if len(content) - head.end() != 3 * width * height:
        raise damaged(source, f"promises {width} x {height} pixels and holds "
                              f"{len(content) - head.end()} bytes")
    return np.frombuffer(content, np.uint8, offset=head.end()).reshape(height, width, 3)


def libsvm(content, source, features):
    """Values (n, features) float64 and labels (n,) of LIBSVM text; indices count from 1."""
    labels, rows = [], []
    for number, line in enumerate(content.decode("ascii", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, *pairs = line.split()
            row = np.zeros(features)
            for index, value in (pair.split(":") for pair in pairs):
                if not 1 <= int(index) <= features:
                    raise ValueError(f"index {index} is outside 1 to {features}")
                if not abs(float(value)) <= 1.001:                       # nan too
                    raise ValueError(f"{value} is outside -1 to 1")
                row[int(index) - 1] = float(value)
            if not float(label).is_integer():
                raise ValueError(f"the label {label} is no class")
            labels.append(int(float(label))), rows.append(row)
        except ValueError as error:
            raise damaged(source, f"line {number} is no `label index:value ...` ({error})") \
                from None
    return np.stack(rows) if rows else np.zeros((0, features)), np.array(labels, np.int64)


# ---- MATLAB --------------------------------------------------------------------------------------

MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8",
           13: "u8"}


def elements(content, order):
    """(type, bytes) of the elements of a MAT v5 file one after the other.

    A tag is two uint32, type and length, and the data is padded to 8 bytes; up to 4 bytes of data
    share the tag: their length is in its upper half. Compressed elements are not padded.
    """
    at = 0
    while at < len(content):
        kind, length = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:
            kind, length, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start, end = at + 8, at + 8 + length
            end += 0 if kind == COMPRESSED else -length % 8
        if start + length > len(content):
            raise ValueError(f"an element of {length} bytes begins {len(content) - start} bytes "
                             "before the end")
        yield kind, content[start:start + length]
        at = end


def matrices(content, order):
    """(name, array) of the numeric arrays among the elements of a MAT v5 file."""
    for kind, body in elements(content, order):
        if kind == COMPRESSED:
            yield from matrices(zlib.decompress(body), order)
        elif kind == MATRIX:
            _, (_, shape), (_, name), (number, values), *_ = elements(body, order)
            shape = np.frombuffer(shape, f"{order}i4")
            array = np.frombuffer(values, order + NUMBERS[number]).reshape(shape, order="F")
            yield name.decode("ascii"), array


def mat(content, source):
    """{name: array} of a MATLAB v5 file, compressed or not; numeric arrays only."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or not content.startswith(b"MATLAB 5.0"):
        raise BadInput(f"{source} is no MATLAB 5.0 file: is it the right file?")
    try:
        return dict(matrices(content[128:], order))
    except (ValueError, KeyError, struct.error, zlib.error) as error:
        raise damaged(source, f"cannot be read ({error})") from None
