"""The run folder: everything a fine-tuned adapter is, written so that no half of it is ever read.

    adapter.pt    the trained tensors and what rebuilds them (loads with weights_only=True)
    config.json   every resolved setting of the run
    log.csv       step, loss, learning rate; with --every the accuracy on val
    result.json   accuracies, counts, seconds

While it trains, a run lives in `<out>.partial` with resume.pt; one rename gives the finished folder
its name. Every file is written under a temporary name first. adapter.pt holds what KEYS names; base
is name and sha256 of the checkpoint, `start` the values before training (A0, B0, the expansion
point), and trained - start the task vector in adapter space.
"""

import csv
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import torch

import adapters  # noqa: F401  (fills lora.ADAPTERS)
import encoders
import lora
from encoders.heads import HEADS
from encoders.safetensors import TEMPORARY, replacing
from errors import BadInput, read_json
from linearize import adapt, encoder_of, set_start

FILES = {"adapter.pt", "config.json", "log.csv", "result.json", "resume.pt", "lock"}
DEFAULTS = {"epochs": None, "optimizer": "adamw", "every": None, "trace": False,
            "keep": "last"}                                    # settings that older runs lack
KEYS = {"setting", "layers", "base", "heads", "start", "trained", "buffers", "torch"}


def partial(out):
    """Where a run lives until it is finished."""
    return Path(f"{out}.partial")


def write_json(value, path):
    """JSON, indented."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def save_tensors(value, path):
    """Tensors in plain containers, as load_tensors reads them."""
    written = io.BytesIO()                     # torch.save to a file hides what went wrong with it
    torch.save(value, written)
    with replacing(path) as temporary:
        temporary.write_bytes(written.getvalue())


def load_tensors(path):
    """torch.load of plain tensors and containers; anything else in the pickle is refused."""
    try:
        if damaged := zipfile.ZipFile(path).testzip():         # torch.load reads no checksum
            raise ValueError(f"the checksum of {damaged} is another")
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:                           # a damaged pickle may raise anything
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadInput(f"{path} is not a complete file of tensors ({reason}): "
                       "train the run again") from None


def state(model):
    """Trained tensors and adapter buffers of a model, {name: tensor} each, without the base."""
    encoder = encoder_of(model)
    trained = {n: p.detach().cpu().clone() for n, p in lora.trainable(encoder).items()}
    layers = tuple(f"{name}." for name in lora.adapters(encoder))
    buffers = {n: b.cpu().clone() for n, b in encoder.named_buffers()      # shared ones once
               if n.startswith(layers) and "base" not in n.split(".")}
    return trained, buffers


def set_tensors(model, trained, buffers, source):
    """Write trained tensors and buffers by name; other names or shapes raise, first five named."""
    encoder = encoder_of(model)
    for given, want in zip((trained, buffers), state(model)):
        if differing := sorted(given.keys() ^ want.keys()):
            raise BadInput(f"{source}: {len(differing)} tensors are missing or unexpected: "
                           f"{', '.join(differing[:5])}: it does not belong to this adapter")
        for name, tensor in given.items():
            if tensor.shape != want[name].shape:
                raise BadInput(f"{source}: {name} has shape {tuple(tensor.shape)}, "
                               f"the adapter needs {tuple(want[name].shape)}")
            module, _, leaf = name.rpartition(".")
            getattr(encoder.get_submodule(module), leaf).detach().copy_(tensor)


# ---- writing -------------------------------------------------------------------------------------


def refuse_other(folder):
    """BadInput unless there is nothing at `folder`, or a run of ours and nothing else."""
    if folder.is_symlink() or folder.is_mount() or (folder.exists() and not folder.is_dir()):
        raise BadInput(f"{folder} is no folder of its own: --out FOLDER writes elsewhere")
    found = folder.iterdir() if folder.exists() else ()
    names = {path.name for path in found if not path.name.startswith(TEMPORARY)}
    strange = sorted(names - FILES)
    begun = names <= {"lock"}                                  # killed before it wrote more
    if strange or not (begun or "config.json" in names):
        raise BadInput(f"{folder} is no run of train.py ({', '.join(strange[:3]) or 'no config'} "
                       "in it): --out FOLDER writes elsewhere")


def is_open(out, setting, resume, overwrite):
    """True if the run must be made, False if it is there; BadInput if something is in the way.

    Only what is a run may be replaced or continued, and only by one process at a time.
    """
    if resume and overwrite:
        raise BadInput("--resume keeps what is finished and --overwrite replaces it: give one")
    refuse_other(out), refuse_other(partial(out))
    if partial(out).exists():
        lock(partial(out)).close()
    if overwrite:
        shutil.rmtree(partial(out), ignore_errors=True)
        return True
    if out.exists() and not (resume and partial(out).exists()):    # both: a cut short --overwrite
        if not resume:
            raise BadInput(f"{out} exists: --overwrite replaces it, --out FOLDER writes elsewhere")
        if not (out / "result.json").exists():
            raise BadInput(f"{out} is no finished run: remove it, or give --overwrite")
        check_same(out, setting)
        print(f"{out} is finished: skipped")
        return False
    if partial(out).exists() and not resume:
        raise BadInput(f"{partial(out)} is an interrupted run: --resume continues it, "
                       "--overwrite starts again")
    check_same(partial(out), setting)
    return True


def check_same(folder, setting):
    """BadInput unless the run in a folder, if there is one, has these settings."""
    path = folder / "config.json"
    if not path.exists():
        return
    old = DEFAULTS | read_json(path, "--overwrite starts the run again")
    if differ := [k for k in setting if old.get(k) != setting[k]]:
        changes = ", ".join(f"{k} {old.get(k)} then, {setting[k]} now" for k in differ)
        raise BadInput(f"{folder} was made with other settings ({changes}): repeat them to resume "
                       "it, or start again with --overwrite")


def lock(folder):
    """The open lock file of an unfinished run; BadInput if another process is at work on it.

    The system lets go of it when the process ends, however it ends.
    """
    file = open(folder / "lock", "w")
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:                                        # Windows: no lock
        pass
    except OSError:
        file.close()
        raise BadInput(f"{folder}: another process is training this run: wait for it, or give "
                       "another --out") from None
    return file


def start_folder(folder, setting):
    """Make <out>.partial with its settings; returns its lock, to be held until the run ends."""
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder)
    check_same(folder, setting)
    write_json(setting, folder / "config.json")
    return held


def save_progress(folder, model, optimizer, log, watch):
    """Everything the next step depends on; batches and rates are functions of the step."""
    trained, buffers = state(model)
    save_tensors({"trained": trained, "buffers": buffers, "optimizer": optimizer.state_dict(),
                  "log": log, "kept": watch.kept if watch else {},
                  "base": encoder_of(model).sha256}, folder / "resume.pt")


def load_progress(folder, model, optimizer, watch):
    """Restore save_progress, if there is one; returns the log so far."""
    path = folder / "resume.pt"
    if not path.exists():
        return []
    saved, base = load_tensors(path), encoder_of(model).sha256
    if saved.get("base", base) != base:
        raise BadInput(f"{path} was trained on another checkpoint than --model is now: "
                       "--overwrite starts the run again")
    set_tensors(model, saved["trained"], saved["buffers"], path)
    optimizer.load_state_dict(saved["optimizer"])
    if watch:
        watch.kept = saved["kept"]
    return saved["log"]


def save_run(out, setting, model, layers, heads, start, result, log):
    """Write the finished run into <out>.partial and rename it to <out>.

    heads   {task: module};  start   the trained tensors before training, from `state`
    log     rows of log.csv, its header the first
    """
    folder, encoder = partial(out), encoder_of(model)
    trained, buffers = state(model)
    save_tensors({"setting": setting, "layers": layers, "start": start, "trained": trained,
                  "buffers": buffers, "torch": str(torch.__version__),
                  "heads": {task: head.state_dict() for task, head in heads.items()},
                  "base": {"name": encoder.name, "sha256": encoder.sha256}}, folder / "adapter.pt")
    with open(folder / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(log)
    write_json(result, folder / "result.json")
    for name in ("resume.pt", "lock"):
        (folder / name).unlink(missing_ok=True)
    for unfinished in folder.glob(f"{TEMPORARY}*"):                # of a process that was killed
        shutil.rmtree(unfinished)
    refuse_other(Path(out))                          # with --overwrite it may have come since
    with replacing(out) as new:
        os.rename(folder, new)


# ---- reading -------------------------------------------------------------------------------------


def load(folder):
    """A finished run as the dict of adapter.pt plus `folder` and `result`."""
    folder = Path(folder)
    if not all((folder / name).is_file() for name in ("adapter.pt", "result.json")):
        began = partial(folder).exists() or folder.suffix == ".partial"
        hint = ": it was interrupted, continue it with train.py --resume" if began else ""
        raise BadInput(f"{folder} is no run folder, it has no adapter.pt{hint}; "
                       "train.py prints where it writes")
    run = load_tensors(folder / "adapter.pt")
    if not isinstance(run, dict) or not KEYS <= run.keys():
        raise BadInput(f"{folder / 'adapter.pt'} was not written by train.py: train the run again")
    result = read_json(folder / "result.json", "train the run again")
    if not {"val", "test"} <= result.keys():
        raise BadInput(f"{folder / 'result.json'} lacks val and test: train the run again")
    return run | {"setting": DEFAULTS | run["setting"], "folder": folder, "result": result}


def base_encoder(run, device="cpu"):
    """The pretrained encoder of a run, without adapter; BadInput if the file has changed since.

    In float32 or better: what was trained in bfloat16 is merged and scored in float32.
    """
    s = run["setting"]
    encoder = encoders.load(s["model"], s["size"], s["random_weights"])
    if encoder.sha256 != run["base"]["sha256"]:
        raise BadInput(f"{run['folder']} was trained on another checkpoint: {s['model']} has "
                       f"sha256 {encoder.sha256[:12]}, the run {run['base']['sha256'][:12]}")
    return encoder.to(device, dtype(s))


def dtype(setting):
    """What the runs of a setting are scored and merged in: float32 or better."""
    return torch.promote_types(getattr(torch, setting["dtype"]), torch.float32)


def rebuild(run, encoder):
    """Put the adapter of a run on `encoder` (changed in place) and return the model as trained."""
    s = run["setting"]
    model, _ = adapt(encoder, s["adapter"], s["linearize"], ",".join(run["layers"]),
                     quantizer=quantizer(s["quantize"]), **s["hp"])
    set_tensors(model, run["trained"], run["buffers"], run["folder"] / "adapter.pt")
    set_start(model, run["start"])
    return model


def quantizer(name):
    """What stores frozen weights as --quantize says, for `adapt`; None where it says nothing."""
    if name:
        from encoders.nf4 import QuantLinear
        return QuantLinear
    return None


def head(run, task):
    """The classifier of a run for one of its tasks."""
    tensors = run["heads"][task]
    classes, width = max(tensors.values(), key=lambda t: t.ndim).shape
    module = HEADS[run["setting"]["head"]](width, classes).to(dtype(run["setting"]))
    module.load_state_dict(tensors)
    return module


def method(setting):
    """lora, l_lora.model, dora.nf4, ...: the adapter, how it is expanded, how it is stored."""
    parts = [setting["adapter"], setting["linearize"], setting["quantize"]]
    return ".".join(part for part in parts if part not in ("off", None))


def keys(runs):
    """What `value` knows of some of these runs."""
    known = [key for run in runs for key in (*run["setting"], *run["setting"]["hp"])]
    return [k for k in dict.fromkeys(["adapter", "seed", *known]) if k not in ("hp", "examples")]


def value(run, key):
    """A key of its adapter or a setting of a run, to group by; None where it has none."""
    found = (run["setting"] | run["setting"]["hp"]).get(key)
    return str(found) if isinstance(found, list) else found


def tasks(run):
    """The names of the tasks a run was trained on: one, or several jointly."""
    return run["setting"]["task"].split(",")
