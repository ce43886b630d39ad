"""Downloads, from files of this machine: whole, cut short, damaged, absent, without network."""

import errno
import hashlib
import http.client
import io
import urllib.error
import urllib.request
from email.message import Message

import pytest
import torch

from encoders import published
from errors import BadInput
from tasks import downloads
from support import refuses

CONTENT = bytes(range(256)) * 3000                                # three chunks


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "target.bin"


class Answer(io.BytesIO):
    """What urlopen returns, with a length that may be a lie."""

    def __init__(self, content, length):
        super().__init__(content)
        self.headers = Message()
        if length is not None:
            self.headers["Content-Length"] = str(length)


def serve(monkeypatch, answer):
    """Let urlopen call answer(url) in place of a network; returns the list of what was asked."""
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        return answer(request.full_url)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def missing(url):
    raise urllib.error.HTTPError(url, 404, "Not Found", Message(), None)


def test_a_file_comes_whole_and_only_once(source, target):
    digests = dict(sha256=hashlib.sha256(CONTENT).hexdigest(), md5=hashlib.md5(CONTENT).hexdigest())
    assert downloads.fetch(source.as_uri(), target, **digests) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    source.unlink()
    assert downloads.fetch(source.as_uri(), target) == target    # no second look at the source
    target.write_bytes(b"of another set")
    for kind, digest in digests.items():
        with pytest.raises(BadInput, match=f"by its {kind}: another set may have files of the"):
            downloads.fetch(source.as_uri(), target, **{kind: digest})
    assert target.read_bytes() == b"of another set"


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing(source, target, kind):
    with pytest.raises(BadInput, match=f"has {kind} .* not 00: .* put it into .*new"):
        downloads.fetch(source.as_uri(), target, **{kind: "00"})
    assert not list(target.parent.iterdir())


def test_a_connection_that_ends_early_leaves_nothing(monkeypatch, target):
    serve(monkeypatch, lambda url: Answer(CONTENT[:-1], len(CONTENT)))
    refuses("cut short after 767999 of 768000 bytes", downloads.fetch, "https://x/y", target)
    assert not list(target.parent.iterdir())
    serve(monkeypatch, lambda url: Answer(CONTENT, None))        # a server need not say how long
    assert downloads.fetch("https://x/y", target).read_bytes() == CONTENT


class Breaks(Answer):
    def read(self, size):
        if self.tell() > 0:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error, raised", [(ConnectionResetError("reset"), BadInput),
                                           (http.client.IncompleteRead(b""), BadInput),
                                           (OSError(errno.ENOSPC, "No space left"), BadInput),
                                           (KeyboardInterrupt(), KeyboardInterrupt)])
def test_an_interrupted_download_leaves_nothing(monkeypatch, target, error, raised):
    Breaks.error = error
    serve(monkeypatch, lambda url: Breaks(CONTENT, len(CONTENT)))
    with pytest.raises(raised) as told:
        downloads.fetch("https://x/y", target)
    assert ("make room there" in str(told.value)) == ("No space" in str(error))
    assert not list(target.parent.iterdir())


def test_other_errors_name_the_address_and_the_folder(monkeypatch, source, target):
    with pytest.raises(BadInput, match="source.bin.x cannot be fetched .*: go online, or fetch it"):
        downloads.fetch(source.as_uri() + ".x", target)
    refuses("unknown url type", downloads.fetch, "no address", target)
    serve(monkeypatch, missing)
    with pytest.raises(downloads.NotThere, match=r"https://x/y .*\(404 Not Found\)"):
        downloads.fetch("https://x/y", target)


def test_a_checkpoint_is_fetched_once_weights_last(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    absent = ("tokenizer_config.json", "model.safetensors")
    asked = serve(monkeypatch, lambda url: missing(url) if url.endswith(absent)
                  else Answer(url.encode(), None))
    folder = published.checkpoint("bert-tiny")
    assert folder == tmp_path / "checkpoints" / "bert-tiny"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "pytorch_model.bin",
                                                        "vocab.txt"]
    place = "https://huggingface.co/google/bert_uncased_L-2_H-128_A-2/resolve/main/"
    assert (folder / "vocab.txt").read_text() == place + "vocab.txt"
    assert [url.rpartition("/")[2] for url in asked] == [
        "config.json", "tokenizer_config.json", "vocab.txt", "model.safetensors",
        "pytorch_model.bin"]
    published.checkpoint("bert-tiny")
    assert len(asked) == 5


def test_a_checkpoint_that_cannot_be_fetched_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(url):
        raise urllib.error.URLError("no route")

    serve(monkeypatch, offline)
    with pytest.raises(BadInput, match="the model minilm-l6 is not on this machine: https://hugging"
                       ".*no route.*put it into .*checkpoints/minilm-l6; a folder needs config.json"
                       ", vocab.txt and model.safetensors or pytorch_model.bin") as told:
        published.checkpoint("minilm-l6")
    assert "\n" not in str(told.value)
    serve(monkeypatch, lambda url: Answer(b"not the weights", None))
    refuses("has sha256 .* not 53aa51172d142c89", published.checkpoint, "minilm-l6")
    assert not list(tmp_path.rglob("model.safetensors*"))
