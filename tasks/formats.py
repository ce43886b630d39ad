"""File formats read by hand: bytes in, arrays or rows of text out. `source` is for messages.

    IDX       0 0 8 d, then d big-endian uint32 sizes, then the values          MNIST family
    MAT v5    tagged elements, zlib inside, arrays column by column             SVHN
    PPM       "P6", width, height, 255 in text, then RGB rows                   GTSRB
    LIBSVM    label index:value ... a line, values in [-1, 1]                   USPS
    tsv       lines split at tabs and nowhere else; quotation marks are text    GLUE

All raise BadInput for a wrong magic number, a missing part or a wrong number of bytes.
"""

import re
import struct
import sys
import zlib

import numpy as np

from errors import BadInput


def damaged(source, why):
    """The error for a file that is not what its name says."""
    return BadInput(f"{source} {why}: it was cut short or is damaged, fetch it again")


def idx(content, source, dimensions):
    """An IDX file of unsigned bytes as an array."""
    if content[:4] != bytes([0, 0, 8, dimensions]):
        raise BadInput(f"{source} starts with {content[:4].hex()}, an IDX file of {dimensions} "
                       f"dimensions with 0000080{dimensions}: is it the right file?")
    head = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:head]) if len(content) >= head else (0,)
    if (held := len(content) - head) != np.prod(shape, dtype=np.int64):
        raise damaged(source, f"promises {shape} values and holds {max(held, 0)} bytes")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def records(content, source, length):
    """A file of nothing but records of `length` bytes, as rows (n, length)."""
    if not content or len(content) % length:
        raise damaged(source, f"has {len(content)} bytes, no multiple of {length}")
    return np.frombuffer(content, np.uint8).reshape(-1, length)


def ppm(content, source):
    """A binary PPM picture of 8 bits, (h, w, 3)."""
    gap = rb"(?:\s|#[^\n]*\n)+"
    head = re.match(rb"P6" + gap + gap.join([rb"([1-9]\d{0,4})"] * 3) + rb"\s", content)
    if not head or head[3] != b"255":
        raise BadInput(f"{source} is no binary PPM picture of 8 bits (P6 ... 255): "
                       "is it the right file?")
    width, height, held = int(head[1]), int(head[2]), len(content) - head.end()
    if held != 3 * width * height:
        raise damaged(source, f"promises {width} x {height} pixels and holds {held} bytes")
    return np.frombuffer(content, np.uint8, offset=head.end()).reshape(height, width, 3)


def libsvm(content, source, features):
    """Values (n, features) float64 and labels (n,) of LIBSVM text; indices count from 1."""
    rows, labels = [], []
    for number, line in enumerate(content.decode("ascii", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, *pairs = line.split()
            at, values = np.array([pair.split(":") for pair in pairs], float).T
            if any(n % 1 for n in (float(label), *at.tolist())) or not (
                    at.min() >= 1 and at.max() <= features and np.abs(values).max() <= 1.001):
                raise ValueError                                                 # nan is one too
        except ValueError:
            raise damaged(source, f"line {number} is no `label index:value ...` (label whole, "
                                  f"index 1 to {features}, value -1 to 1)") from None
        rows.append(np.zeros(features))
        rows[-1][at.astype(int) - 1] = values
        labels.append(int(float(label)))
    return np.stack(rows) if rows else np.zeros((0, features)), np.array(labels, np.int64)


def text_of(content, source):
    """UTF-8 text, with or without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{source} is not UTF-8 text ({error.reason} at byte {error.start}): "
                       "convert it first") from None


def lines_of(content, source):
    """The lines of a text that are not empty."""
    return [line for line in text_of(content, source).replace("\r\n", "\n").split("\n") if line]


def tsv(content, source, columns, header=True):
    """The named columns of every line, a list of tuples of str; the last is the label.

    columns   names in the header line; without header, numbers from 0
    QQP is published with a few broken lines: one in a thousand may be too short, one at least, and
    is left out aloud. A file that ends within such a line was cut short.
    """
    lines, rows, short, at = lines_of(content, source), [], [], columns
    if not lines:
        raise BadInput(f"{source} is empty: fetch it again")
    if header:
        names = lines[0].split("\t")
        if missing := [c for c in columns if c not in names]:
            raise BadInput(f"{source} has no column {missing[0]!r}, its header is "
                           f"{', '.join(names[:8])}: is it the right file?")
        at = [names.index(c) for c in columns]
    for number, line in enumerate(lines[header:], 1 + header):
        cells = line.split("\t")
        if len(cells) <= max(at):
            short.append((number, len(cells)))
        elif not cells[at[-1]].strip():
            raise BadInput(f"{source} line {number} has no label: is it a test file?")
        else:
            rows.append(tuple(cells[i] for i in at))
    cut = short and short[-1][0] == len(lines) and not content.endswith(b"\n")
    if cut or len(short) > max(1, len(lines) // 1000):
        raise BadInput(f"{source} line {short[0][0]} has {short[0][1]} cells and needs "
                       f"{max(at) + 1}: it was cut short, fetch it again")
    if short:
        print(f"{source}: left out {len(short)} of {len(lines)} lines, which are too short "
              f"(the first is line {short[0][0]})", file=sys.stderr)
    return rows


MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}


def elements(content, order):
    """(type, bytes) of the elements of a MAT v5 file one after the other.

    A tag is two uint32, type and length, and the data is padded to 8 bytes; up to 4 bytes of data
    share the tag: their length is in its upper half. Compressed elements are not padded.
    """
    at = 0
    while at < len(content):
        tag, length = struct.unpack_from(f"{order}II", content, at)
        if tag >> 16:
            tag, length, start, end = tag & 0xFFFF, tag >> 16, at + 4, at + 8
        else:
            start, end = at + 8, at + 8 + length + (0 if tag == COMPRESSED else -length % 8)
        if start + length > len(content):
            raise ValueError(f"an element of {length} bytes begins {len(content) - start} bytes "
                             "before the end")
        yield tag, content[start:start + length]
        at = end


def matrices(content, order):
    """(name, array) of the numeric arrays among the elements of a MAT v5 file."""
    for tag, body in elements(content, order):
        if tag == COMPRESSED:
            yield from matrices(zlib.decompress(body), order)
        elif tag == MATRIX:
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
