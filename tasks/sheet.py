"""All drawn tasks in one picture, and a picture as a PNG file."""

import struct
import zlib

import numpy as np

from tasks import drawn, prompts


def write_png(picture, path):
    """Grey picture (h, w) in [0, 1] as an 8-bit PNG: signature, header, zlib-packed rows, end."""
    rows = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    chunk = lambda kind, body: (struct.pack(">I", len(body)) + kind + body
                                + struct.pack(">I", zlib.crc32(kind + body)))
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 9)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 0, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed)
                   + chunk(b"IEND", b""))


def pictures():
    """Fourteen examples and four prompts of every drawn task, a row each: (8 h, w) in [0, 1]."""
    gap = np.ones((1, drawn.SIZE, drawn.SIZE // 2))
    return np.vstack([np.hstack([np.pad(image, 1) for part in (
        drawn.sample(task, 14, 101)[0], gap, prompts.sample(task)[0][::prompts.EACH][:4])
        for image in part]) for task in drawn.TASKS])
