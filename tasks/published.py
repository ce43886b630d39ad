"""Published data sets: what they are, where their files are, and the checksums where published.

Every entry of DATASETS is a task of `--data FOLDER`, and `--download` fetches its files into that
folder. This repository contains none of it; each set has a licence of its own.
"""

from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import BadInput, unknown
from tasks import folders, readers
from tasks.archives import named
from tasks.downloads import fetch

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/msr_paraphrase_"
CIFAR = "https://www.cs.toronto.edu/~kriz/"
SVHN = "http://ufldl.stanford.edu/housenumbers/"
GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/GTSRB"
USPS = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
MEDMNIST = "https://zenodo.org/records/10519652/files/"
AG_NEWS = "https://raw.githubusercontent.com/mhjabreel/CharCnn_Keras/master/data/ag_news_csv/"


class Dataset(NamedTuple):
    """One data set."""

    kind: str               # "image" or "text"
    classes: int            # None: as many as its training labels name
    decode: callable        # files of a split -> (inputs, labels); without names folder -> splits
    names: dict = None      # {split: names of its files}, unpacked or in one of the archives
    urls: tuple = ()        # what to fetch: (address, md5 or None)


def mnist_names(train="train", test="t10k"):
    """Images and labels of both splits."""
    return {split: [f"{part}-{what}-ubyte" for what in ("images-idx3", "labels-idx1")]
            for split, part in (("train", train), ("test", test))}


def mnist_like(address, *digests):
    """A set of the MNIST family."""
    urls = [f"{address}{name}.gz" for names in mnist_names().values() for name in names]
    return Dataset("image", 10, readers.mnist, mnist_names(), tuple(zip(urls, digests)))


def glue(archive, md5, columns, classes, test="dev.tsv", header=True):
    """A set of GLUE; classes in order of number."""
    decode = partial(readers.glue, columns=columns, classes=classes, header=header)
    return Dataset("text", len(classes), decode, {"train": ["train.tsv"], "test": [test]},
                   ((GLUE + archive, md5),))


BINARY, PAIR = ("0", "1"), ("sentence1", "sentence2", "label")
INFERENCE = ("entailment", "not_entailment")
MEDICAL = {                                          # name -> classes, md5
    "pathmnist": (9, "a8b06965200029087d5bd730944a56c1"),
    "dermamnist": (7, "0744692d530f8e62ec473284d019b0c7"),
    "octmnist": (4, "c68d92d5b585d8d81f7112f81e2d0842"),
    "pneumoniamnist": (2, "28209eda62fecd6e6a2d98b1501bb15f"),
    "breastmnist": (2, "750601b1f35ba3300ea97c75c52ff8f6"),
    "bloodmnist": (8, "7053d0359d879ad8a5505303e11de1dc"),
    "tissuemnist": (8, "ebe78ee8b05294063de985d821c1c34b"),
    "organamnist": (11, "68e3f8846a6bd62f0c9bf841c0d9eacc"),
    "organcmnist": (11, "b9ceb9546e10131b32923c5bbeaea2b1"),
    "organsmnist": (11, "9ab87b696fb54e2a387ebe992d6ed5f1"),
}

DATASETS = {
    "mnist": mnist_like(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c"),
    "fashion_mnist": mnist_like(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
    "kmnist": mnist_like(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134"),
    "emnist_letters": Dataset(
        "image", 26, partial(readers.mnist, first=1, transposed=True),
        mnist_names("emnist-letters-train", "emnist-letters-test"),
        (("https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
          "58c8d27c78d21e728a6bc7b3cc06412e"),)),
    "cifar10": Dataset(
        "image", 10, partial(readers.cifar, label_bytes=1),
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        ((CIFAR + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),)),
    "cifar100": Dataset(
        "image", 100, partial(readers.cifar, label_bytes=2),
        {"train": ["train.bin"], "test": ["test.bin"]},
        ((CIFAR + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),)),
    "stl10": Dataset(
        "image", 10, readers.stl10,
        {split: [f"{split}_X.bin", f"{split}_y.bin"] for split in ("train", "test")},
        (("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
          "91f7769df0f17e558f3565bffb0c7dfb"),)),
    "svhn": Dataset(
        "image", 10, readers.svhn, {"train": ["train_32x32.mat"], "test": ["test_32x32.mat"]},
        ((SVHN + "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
         (SVHN + "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"))),
    "gtsrb": Dataset(
        "image", 43, readers.gtsrb, None,
        ((GTSRB + "-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478"),
         (GTSRB + "_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
         (GTSRB + "_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"))),
    "usps": Dataset(
        "image", 10, readers.usps, {"train": ["usps"], "test": ["usps.t"]},
        ((USPS + "usps.bz2", "ec16c51db3855ca6c91edd34d0e9b197"),
         (USPS + "usps.t.bz2", "8ea070ee2aca1ac39742fdd1ef5ed118"))),
    "cola": glue("CoLA.zip", None, (3, 1), BINARY, header=False),
    "sst2": glue("SST-2.zip", "9f81648d4199384278b86e315dac217c", ("sentence", "label"), BINARY),
    "mrpc": Dataset(
        "text", 2, partial(readers.glue, columns=("#1 String", "#2 String", "Quality"),
                           classes=BINARY),
        {"train": ["msr_paraphrase_train.txt or train.tsv"],
         "test": ["msr_paraphrase_test.txt or dev.tsv"]},
        ((SENTEVAL + "train.txt", "793daf7b6224281e75fe61c1f80afe35"),
         (SENTEVAL + "test.txt", "e437fdddb92535b820fe8852e2df8a49"))),
    "qqp": glue("QQP-clean.zip", None, ("question1", "question2", "is_duplicate"), BINARY),
    "mnli": glue("MNLI.zip", None, ("sentence1", "sentence2", "gold_label"),
                 ("entailment", "neutral", "contradiction"), test="dev_matched.tsv"),
    "qnli": glue("QNLIv2.zip", "b4efd6554440de1712e9b54e14760e82",
                 ("question", "sentence", "label"), INFERENCE),
    "rte": glue("RTE.zip", "bef554d0cafd4ab6743488101c638539", PAIR, INFERENCE),
    "wnli": glue("WNLI.zip", "a1b4bd2861017d302d29e42139657a42", PAIR, BINARY),
    "ag_news": Dataset(
        "text", 4, readers.ag_news, {"train": ["train.csv"], "test": ["test.csv"]},
        ((AG_NEWS + "train.csv", "b1a00f826fdfbd249f79597b59e1dc12"),
         (AG_NEWS + "test.csv", "d52ea96a97a2d943681189a97654912d"))),
} | {name: Dataset("image", classes, readers.medmnist, {split: [
        f"{split}_images.npy", f"{split}_labels.npy"] for split in ("train", "val", "test")},
        ((f"{MEDMNIST}{name}.npz", md5),)) for name, (classes, md5) in MEDICAL.items()}


def entry(task, folder):
    """The Dataset of a task: from the table, else by what is in the folder; BadInput if neither."""
    path = Path(folder)
    if not path.is_dir():
        raise BadInput(f"--data {folder} is no folder: give the one that holds the files of {task}"
                       f"{', or add --download' if task in DATASETS else ''}")
    if task in DATASETS:
        return DATASETS[task]
    if any(path.rglob("*idx3-ubyte*")):
        return Dataset("image", None, readers.mnist, mnist_names())
    if own := folders.find(path):
        return Dataset(own[0], None, partial(folders.read, own[1]))
    raise BadInput(f"{folder} holds no data that is known: --data wants {folders.ACCEPTED}; or "
                   "name the task of a published set")


def download(task, folder, kind):
    """Fetch the files of a known set into a folder; what is there already stays.

    kind   "image" or "text", what the model takes: nothing is fetched that it cannot read
    """
    if folder is None:
        raise BadInput("--download needs --data FOLDER, where the files are to be kept")
    if task not in DATASETS:
        raise unknown("data set to download", task, DATASETS)
    if DATASETS[task].kind != kind:
        raise BadInput(f"{task} is a data set of {DATASETS[task].kind}s, the model is for {kind}s: "
                       "give another --model or --task")
    for url, md5 in DATASETS[task].urls:
        fetch(url, Path(folder, Path(url).name), md5=md5)


@lru_cache(maxsize=8)
def read(task, folder):
    """(kind, classes, {split: (inputs, labels)}) of a data set, every split checked."""
    kind, classes, decode, names, urls = entry(task, folder)
    if names:                                          # all at once: an archive is read once
        archives = [Path(url).name for url, _ in urls if url.endswith((".zip", ".tar.gz", ".npz"))]
        files = iter(named(folder, sum(names.values(), []), archives))
        parts = {split: decode(*islice(files, len(part))) for split, part in names.items()}
    else:
        parts = decode(folder)
    classes = classes or int(parts["train"][1].max(initial=0)) + 1
    for split, (inputs, labels) in parts.items():
        if len(inputs) != len(labels):
            raise BadInput(f"{folder}: {len(inputs)} {split} inputs but {len(labels)} labels")
        if not len(labels):
            raise BadInput(f"{folder}: the {split} files hold no examples")
        if len(odd := labels[(labels < 0) | (labels >= classes)]):
            raise BadInput(f"{folder}: label {odd.max()} in the {split} file, but {task} has "
                           f"{classes} classes: 0 to {classes - 1}")
        if kind == "image" and names and inputs.dtype != np.uint8:
            raise BadInput(f"{folder}: {split} pixels are {inputs.dtype}, not unsigned bytes")
    if classes < 2:
        raise BadInput(f"{folder}: all training examples have one label: give at least two classes")
    return kind, classes, parts
