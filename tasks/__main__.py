"""Show the built-in tasks.

    python -m tasks              # four examples of every written task
    python -m tasks FILE.png     # every drawn task, a row: fourteen examples, then four prompts
"""

import argparse
import struct
import zlib

import numpy as np

from tasks import drawn, prompts, written


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


def main():
    """Print texts, or draw pictures into a file."""
    parser = argparse.ArgumentParser("python -m tasks", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", metavar="FILE.png", help="draw the image tasks")
    args = parser.parse_args()
    if args.file:
        gap = np.ones((1, drawn.SIZE, drawn.SIZE // 2))
        rows = [np.hstack([np.pad(image, 1) for part in (
            drawn.sample(task, 14, 101)[0], gap, prompts.sample(task)[0][::prompts.EACH][:4])
            for image in part]) for task in drawn.TASKS]
        try:
            write_png(np.vstack(rows).repeat(2, 0).repeat(2, 1), args.file)
        except OSError as error:
            parser.error(f"{args.file} cannot be written: {error.strerror}")
        return
    for task in written.TASKS:
        print(task)
        for text, label in zip(*written.sample(task, 4, 0)):
            print(f"  {label}  {text if isinstance(text, str) else '  |  '.join(text)}")
    print("the eight image tasks: python -m tasks FILE.png")


if __name__ == "__main__":
    main()
