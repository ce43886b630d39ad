"""From the files of a data set to inputs and labels.

Inputs are uint8 (n, h, w) or (n, h, w, 3), or a list of texts or pairs of texts; labels are (n,)
int64 from 0. A file is (bytes, source for messages), as archives.named gives it. The labels of
GLUE's test files are secret: `dev` is the test split here.
"""

import csv
import io
import unicodedata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from errors import BadInput
from tasks import formats
from tasks.archives import files


def mnist(images, labels, first=0, transposed=False):
    """The MNIST family; `first` is the smallest label in the file."""
    images, labels = formats.idx(*images, 3), formats.idx(*labels, 1)
    return images.transpose(0, 2, 1) if transposed else images, labels.astype(np.int64) - first


def cifar(*batches, label_bytes):
    """Records of labels, the last of which counts, and 3 x 32 x 32 pixels, plane by plane."""
    rows = np.concatenate([formats.records(*batch, label_bytes + 3072) for batch in batches])
    images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, rows[:, label_bytes - 1].astype(np.int64)


def stl10(images, labels):
    """3 x 96 x 96 pixels, plane by plane and column by column; labels 1 to 10, one byte each."""
    images = formats.records(*images, 3 * 96 * 96).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    return images, np.frombuffer(labels[0], np.uint8).astype(np.int64) - 1


def svhn(file):
    """X (32, 32, 3, n), y (n, 1) with 10 for the digit 0."""
    arrays = formats.mat(*file)
    if not {"X", "y"} <= arrays.keys() or arrays["X"].shape[:3] != (32, 32, 3):
        raise formats.damaged(file[1], "has no arrays X (32, 32, 3, n) and y")
    if not np.isin(arrays["y"], range(1, 11)).all():
        raise formats.damaged(file[1], "has labels that are not 1 to 10")
    return arrays["X"].transpose(3, 0, 1, 2), arrays["y"].ravel().astype(np.int64) % 10


def usps(file):
    """16 x 16 values in [-1, 1], labels 1 to 10 for the digits 0 to 9."""
    x, y = formats.libsvm(*file, 256)
    return np.round((x + 1) * 127.5).clip(0, 255).astype(np.uint8).reshape(-1, 16, 16), y - 1


def medmnist(images, labels):
    """Two .npy files, the entries of a set's .npz."""
    try:
        x, y = (np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
                for content, _ in (images, labels))
        return x, y.reshape(len(x)).astype(np.int64)
    except (ValueError, TypeError, EOFError, OSError) as error:
        raise formats.damaged(images[1], f"or its labels cannot be read ({error})") from None


def signs(pictures, tables, source, size=32):
    """GTSRB: {entry: bytes} of PPM pictures, and csv tables that name their classes."""
    images, labels, classes = [], [], {}
    for entry, content in tables.items():
        for row in csv.DictReader(io.StringIO(content.decode("utf-8", "replace")), delimiter=";"):
            try:
                classes[Path(entry).parent.name, row["Filename"]] = int(row["ClassId"])
            except (KeyError, TypeError, ValueError):
                raise formats.damaged(entry, "lacks Filename or ClassId in a line") from None
    for entry, content in pictures.items():
        if (key := (Path(entry).parent.name, Path(entry).name)) not in classes:
            raise formats.damaged(source, f"has no label for {entry}")
        x = torch.from_numpy(formats.ppm(content, entry).copy()).permute(2, 0, 1)[None].float()
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        images.append(x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
        labels.append(classes[key])
    return np.array(images, np.uint8).reshape(-1, size, size, 3), np.array(labels, np.int64)


def gtsrb(folder):
    """German traffic signs, pictures of all sizes resized to 32 x 32."""
    find = lambda end, below, archive: files(
        folder, lambda name: name.endswith(end) and below in f"/{name}", [archive])
    train, labels = (find(end, "/Training/", "GTSRB-Training_fixed.zip")
                     for end in (".ppm", ".csv"))
    test = find(".ppm", "/Final_Test/", "GTSRB_Final_Test_Images.zip")
    table = find("GT-final_test.csv", "/", "GTSRB_Final_Test_GT.zip")    # in another folder:
    table = {f"Images/{Path(name).name}": content for name, content in table.items()}
    return {"train": signs(train, labels, folder), "test": signs(test, table, folder)}


def class_name(label):
    """A label as it counts: without blanks around it, and composed, as some systems write names."""
    return unicodedata.normalize("NFC", label.strip())


def numbers(labels, classes, source):
    """Class numbers (n,) int64, the place of every label among the classes."""
    number = {name: i for i, name in enumerate(classes)}
    if odd := [label for label in labels if label not in number]:
        raise BadInput(f"{source} has the label {odd[0]!r}, the task has "
                       f"{', '.join(map(str, classes[:8]))}: correct it or leave it out")
    return np.array([number[label] for label in labels], np.int64)


def labelled(rows, classes, source):
    """Texts or pairs, and class numbers by the place of a label, from rows (text, ..., label)."""
    texts = [row[0] if len(row) == 2 else row[:-1] for row in rows]
    return texts, numbers([class_name(row[-1]) for row in rows], classes, source)


def glue(file, columns, classes, header=True):
    """A table of texts, or pairs, and a label."""
    return labelled(formats.tsv(*file, columns, header), classes, file[1])


def ag_news(file):
    """Records of a class 1 to 4, a title and a description, which make one text."""
    records = csv.reader(io.StringIO("\n".join(formats.lines_of(*file))))
    try:
        rows = [(f"{title} {text}", label) for label, title, text in records]
    except (csv.Error, ValueError) as error:
        raise formats.damaged(file[1], f"line {records.line_num} is no `class, title, description`"
                                       f" ({error})") from None
    return labelled(rows, "1234", file[1])
