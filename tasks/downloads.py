"""Files from the network, whole or not at all.

A file arrives under a temporary name and gets its own name once its length and checksum are right:
what is there is complete. torch.hub's download does not notice a connection that ends early.
"""

import errno
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from errors import BadInput


class NotThere(BadInput):
    """The server answers and has no such file."""


def other_digest(path, wanted):
    """(name, digest, wanted digest) of the first that a file has not, of {name: hex or None}."""
    for name, want in wanted.items():
        if want:
            with open(path, "rb") as file:
                made = hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False))
            if made.hexdigest() != want:
                return name, made.hexdigest(), want


def fetch(url, path, sha256=None, md5=None):
    """Download `url` to `path` unless it is there already; returns the path.

    sha256, md5   hex digests of the file, compared where given, also if it is there already
    BadInput if there is no connection, the file is cut short, or a digest differs; nothing is left.
    """
    path, wanted = Path(path), {"sha256": sha256, "md5": md5}
    if path.exists():
        if other := other_digest(path, wanted):
            raise BadInput(f"{path} is not the file of {url}, by its {other[0]}: another set may "
                           "have files of the same names, give --data a folder of its own")
        return path
    by_hand = f"or fetch it by hand and put it into {path.parent}"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "python"})
        with urllib.request.urlopen(request, timeout=30) as answer, open(part, "wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)      # a server need not say it
            with tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name) as bar:
                while block := answer.read(1 << 18):
                    bar.update(file.write(block))
        if length and part.stat().st_size != length:
            raise BadInput(f"{url} was cut short after {part.stat().st_size} of {length} bytes: "
                           f"try again, {by_hand}")
        if other := other_digest(part, wanted):
            raise BadInput(f"{url} has {other[0]} {other[1]}, not {other[2]}: it was changed or "
                           f"damaged on the way, try again, {by_hand}")
        os.replace(part, path)
    except urllib.error.HTTPError as error:
        problem = NotThere if error.code in (404, 410) else BadInput
        raise problem(f"{url} cannot be fetched ({error.code} {error.reason}): try later, "
                      f"{by_hand}") from None
    except BadInput:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise BadInput(f"{path} cannot be written ({error.strerror}): make room there, or give "
                           "another place") from None
        raise BadInput(f"{url} cannot be fetched ({getattr(error, 'reason', error)}): go online, "
                       f"{by_hand}") from None
    finally:
        part.unlink(missing_ok=True)
    return path
