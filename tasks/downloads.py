"""Files from the network, whole or not at all, and where published checkpoints come from.

A file arrives under a temporary name, its length and checksum are compared, and only then it gets
its own name: what is there is complete. torch.hub's own download does not notice a connection that
ends early unless it is given a checksum. Checkpoints go to torch.hub's folder (TORCH_HOME moves
it), one folder per name; what lies there is used without a network.
"""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from errors import BadInput

CHUNK = 1 << 18                  # bytes


class NotThere(BadInput):
    """The server answers and has no such file."""


def receive(answer, file, digests, name):
    """Copy an open answer into a file and the digests; returns the bytes that were promised."""
    length = answer.headers.get("Content-Length")
    length = None if length is None else int(length)
    with tqdm(total=length, unit="B", unit_scale=True, desc=name) as bar:
        while block := answer.read(CHUNK):
            file.write(block)
            for digest in digests:
                digest.update(block)
            bar.update(len(block))
    return length


def fetch(url, path, sha256=None, md5=None):
    """Download `url` to `path` unless it is there already; returns the path.

    sha256, md5   hex digests of the file, compared where given
    BadInput if there is no connection, the file is cut short, or a digest differs; nothing is left.
    NotThere, a BadInput, if the server has no such file.
    """
    path = Path(path)
    if path.exists():
        return path
    told = f"or fetch it by hand and put it into {path.parent}"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    digests = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "python"})
        with urllib.request.urlopen(request, timeout=30) as answer, open(part, "wb") as file:
            length = receive(answer, file, digests.values(), path.name)
        if length is not None and part.stat().st_size != length:
            raise BadInput(f"{url} was cut short after {part.stat().st_size} of {length} bytes: "
                           f"try again, {told}")
        for kind, want in (("sha256", sha256), ("md5", md5)):
            if want is not None and digests[kind].hexdigest() != want:
                raise BadInput(f"{url} has {kind} {digests[kind].hexdigest()}, not {want}: it was "
                               f"changed or damaged on the way, try again, {told}")
        os.replace(part, path)
    except urllib.error.HTTPError as error:
        kind = NotThere if error.code in (404, 410) else BadInput
        raise kind(f"{url} cannot be fetched ({error.code} {error.reason}): try later, "
                   f"{told}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        reason = getattr(error, "reason", error)
        raise BadInput(f"{url} cannot be fetched ({reason}): go online, {told}") from None
    finally:
        part.unlink(missing_ok=True)
    return path
