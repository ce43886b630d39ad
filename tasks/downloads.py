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

import torch
from tqdm import tqdm

from errors import BadInput

CHUNK = 1 << 18                  # bytes
HUB = "https://huggingface.co/{}/resolve/main"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")             # the first that there is
OPTIONAL = {"preprocessor_config.json", "tokenizer_config.json"}
IMAGES = ("config.json", "preprocessor_config.json")
TEXTS = ("config.json", "tokenizer_config.json", "vocab.txt")

# name -> where it is, its files beside the weights, sha256 of the weights where known
CHECKPOINTS = {
    "vit-tiny": (HUB.format("WinKawaks/vit-tiny-patch16-224"), IMAGES, None),
    "vit-base": (HUB.format("google/vit-base-patch16-224"), IMAGES, None),
    "deit-tiny": (HUB.format("facebook/deit-tiny-patch16-224"), IMAGES, None),
    "dinov2-small": (HUB.format("facebook/dinov2-small"), IMAGES, None),
    "clip-vit-base-patch32": (HUB.format("openai/clip-vit-base-patch32"), IMAGES, None),
    "bert-tiny": (HUB.format("google/bert_uncased_L-2_H-128_A-2"), TEXTS, None),
    "minilm-l6": (HUB.format("sentence-transformers/all-MiniLM-L6-v2"), TEXTS,
                  "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "bert-base": (HUB.format("bert-base-uncased"), TEXTS, None),
}


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


def checkpoint(name):
    """The folder of a published checkpoint of CHECKPOINTS, fetched if it is not there.

    The weights come last: a folder that has them is complete and needs no network.
    """
    (url, files, sha256), folder = CHECKPOINTS[name], Path(torch.hub.get_dir()) / "checkpoints"
    folder = folder / name
    if any((folder / file).exists() for file in WEIGHTS):
        return folder
    try:
        for file in files:
            try:
                fetch(f"{url}/{file}", folder / file)
            except NotThere:
                if file not in OPTIONAL:
                    raise
        try:
            fetch(f"{url}/{WEIGHTS[0]}", folder / WEIGHTS[0], sha256)
        except NotThere:
            fetch(f"{url}/{WEIGHTS[1]}", folder / WEIGHTS[1])
    except BadInput as error:
        needed = [file for file in files if file not in OPTIONAL]
        raise BadInput(f"the model {name} is not on this machine: {error}; a folder needs "
                       f"{', '.join(needed)} and {' or '.join(WEIGHTS)}") from None
    return folder
