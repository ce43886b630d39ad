"""Safetensors files, read and written by hand; nothing in them is executed.

    8 bytes     length n of the header, little endian
    n bytes     JSON {name: {dtype, shape, data_offsets: [begin, end]}}
    the rest    the tensors one after the other, without a gap
"""

import hashlib
import json
import os
import struct
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from errors import BadInput

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
          "U8": torch.uint8, "BOOL": torch.bool}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TEMPORARY = ".tmp-"              # how the names of unfinished files begin


def read(path):
    """All tensors of a file, {name: tensor}; BadInput if it is cut short or malformed."""
    try:
        data = Path(path).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        if length > len(data) - 8:
            raise ValueError(f"the header wants {length} bytes, the file has {len(data)}")
        header = json.loads(data[8:8 + length])
        header.pop("__metadata__", None)
        if other := {entry["dtype"] for entry in header.values()} - DTYPES.keys():
            raise NotImplementedError(*sorted(other))
        body, end = np.frombuffer(data, np.uint8, offset=8 + length), 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = entry["data_offsets"]
            size = DTYPES[entry["dtype"]].itemsize * int(np.prod(entry["shape"], dtype=np.int64))
            if begin != end or stop - begin != size:
                raise ValueError(f"tensor {name} overlaps another, leaves a gap "
                                 "or has a wrong length")
            end = stop
        if end != len(body):
            raise ValueError(f"the tensors need {end} bytes, the file has {len(body)}")
        return {name: tensor(body, entry) for name, entry in header.items()}
    except NotImplementedError as error:
        raise BadInput(f"{path} has tensors of {', '.join(map(str, error.args))}: convert them to "
                       "F32, F16 or BF16") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError,
            struct.error) as error:
        raise BadInput(f"{path} is no complete safetensors file ({error}): "
                       "fetch it again") from None


def tensor(body, entry):
    """The tensor that a header entry describes, copied out of the bytes (n,)."""
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    rows = body[begin:end].copy().reshape((end - begin) // dtype.itemsize, dtype.itemsize)
    return torch.from_numpy(rows).view(dtype).reshape(entry["shape"])


def write(tensors, path):
    """Write {name: tensor} under a temporary name, then rename; the header is padded to 8 bytes."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end, chunks = {}, 0, []
    for name, t in tensors.items():
        flat = t.detach().cpu().contiguous().reshape(-1)
        chunks.append(flat.view(torch.uint8).numpy().tobytes())
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape),
                        "data_offsets": [end, end + len(chunks[-1])]}
        end += len(chunks[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary:
        temporary.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


@contextmanager
def replacing(path):
    """A name to write a file or a folder to, which becomes `path` when nothing went wrong.

    It lies in a folder of its own beside `path`; after a kill, that hidden folder is what is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY) as own:
        try:
            yield (new := Path(own, path.name))
            if path.is_dir():
                os.rename(path, Path(own, "old"))
            os.replace(new, path)
        except OSError as error:
            error.filename = error.filename or str(path)         # a full disk does not say where
            raise


def sha256(path):
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
