"""Fine-tune one adapter on one task: inject, linearize if asked, train, save a run folder.

    python train.py --adapter l_lora                   # the built-in suite, offline, 20 seconds
    python train.py --adapter lora --task all --seed 1
    python train.py --list                             # every adapter, its paper and its keys
"""

import argparse
import contextlib
import copy
import io
import math
import statistics
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import adapters  # noqa: F401  (fills lora.ADAPTERS)
from experiment import cli
import data
from tasks import published
from exchange import peft_folder
import lora
import encoders
from experiment import jobs
from experiment import run_folder
from tasks import drawn
from tasks import written
from errors import BadInput, unknown
from encoders.heads import EXAMPLES, HEADS, accuracy, features
from linearize import READINGS, adapt, encoder_of
from encoders.nf4 import QUANTIZERS

SAVE_EVERY = 50


def arguments():
    """The command line, checked as far as it can be without loading anything."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("--adapter", default="l_lora", help="see --list")
    add("--linearize", choices=READINGS, help="off, layer or model; default: the adapter's own")
    add("--task", help="built-in tasks (a,b), all, any name with --data (default: the first)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time, for several tasks")
    add("--joint", action="store_true", help="one model on all of --task, turn by turn")
    add("--data", metavar="FOLDER", help="folder of a published data set or of your own")
    add("--download", action="store_true", help="fetch the files of a known --task into --data")
    add("--limit", type=int, metavar="N", help="at most N examples per split")
    add("--model", default="vit", help="vit, bert, a published name, a folder or a file")
    add("--size", type=int, help="pixels, or most tokens of a text (default: the model's)")
    add("--random-weights", action="store_true", help="forget the pretraining, as a control")
    add("--head", choices=HEADS, help="default: prototypes for images, probe for texts")
    add("--targets", default="all", help="ends of layer names such as q,v (default: every linear)")
    add("--rank", type=int)
    add("--alpha", type=float)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the adapter")
    add("--init", metavar="FOLDER", help="start from the LoRA that PEFT saved in a folder")
    add("--quantize", choices=QUANTIZERS, help="store the frozen weights in 4 bits")
    add("--steps", type=int, default=200)
    add("--batch", type=int, default=32)
    add("--lr", type=float, help="default: the adapter's own")
    add("--wd", type=float, default=0.0)
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    add("--out", default="runs/{model}-{adapter}-{task}-s{seed}")
    add("--resume", action="store_true", help="continue an interrupted run; skip finished ones")
    add("--overwrite", action="store_true", help="replace an existing run")
    add("--list", action="store_true", help="list the adapters and stop")
    args = p.parse_args()
    if args.jobs > 1 and jobs.place()[1] > 1:
        raise BadInput("--jobs makes processes of its own: leave it out under torchrun")
    if args.adapter not in lora.ADAPTERS:
        raise unknown("adapter", args.adapter, lora.ADAPTERS)
    cli.positive(args, "steps", "batch", "limit", "jobs")
    return args


def resolve(args):
    """Every setting of a run as plain values, defaults filled in: what config.json records."""
    cls = lora.ADAPTERS[args.adapter]
    reading = args.linearize or cls.linearize
    if reading not in cls.lr:
        raise BadInput(f"{args.adapter} is a linearization: --linearize layer or model, "
                       "or take --adapter lora for the plain adapter")
    keys = lora.hyperparameters(cls)
    flags = {k: getattr(args, k) for k in ("rank", "alpha") if getattr(args, k) is not None}
    for k in flags:
        if k not in keys:
            raise BadInput(f"--{k}: the adapter {args.adapter} has no {k}; leave it out")
    head = args.head or {"image": "prototypes", "text": "probe"}[encoders.kind(args.model)]
    hp = keys | flags | cli.keywords(args.set, keys, args.adapter)
    return {"adapter": args.adapter, "hp": hp, "linearize": reading, "quantize": args.quantize,
            "targets": args.targets, "init": args.init, "model": args.model, "size": args.size,
            "random_weights": args.random_weights, "head": head, "data": args.data,
            "limit": args.limit, "steps": args.steps, "batch": args.batch,
            "lr": cls.lr[reading] if args.lr is None else args.lr, "wd": args.wd, "seed": args.seed,
            "device": cli.device(args.device), "dtype": args.dtype}


def task_names(args):
    """--task as a list: all or the first of the model's kind, one, or several with commas."""
    if args.task in (None, "all"):
        built_in = list((drawn if encoders.kind(args.model) == "image" else written).TASKS)
        return built_in if args.task else built_in[:1]
    return args.task.split(",")


def check_tasks(tasks, args):
    """BadInput for a task that does not exist, or is not for this kind of model; quick."""
    kind = encoders.kind(args.model)
    for task in tasks:
        if args.download:
            published.download(task, args.data, kind)
        data.check(task, args.data)
        if (other := data.kind(task, args.data)) != kind:
            raise BadInput(f"{args.model} is a model of {kind}s and {task} a task of {other}s: "
                           "give another --model or --task")


def out_folder(args, setting, task):
    """runs/{model}-{adapter}-{task}-s{seed}; {adapter} names the reading: lora, l_lora.model."""
    name = setting["adapter"]
    if setting["linearize"] != "off":
        name += f".{setting['linearize']}"
    if setting["quantize"]:
        name += f".{setting['quantize']}"
    if len(task_names(args)) > 1 and not args.joint and "{task}" not in args.out:
        raise BadInput(f"--out {args.out}: with several tasks it must contain {{task}}")
    try:
        return Path(args.out.format(model=Path(args.model).name, adapter=name,
                                    task="joint" if args.joint else task, seed=args.seed))
    except (KeyError, IndexError, ValueError):
        raise BadInput(f"--out {args.out}: only {{model}}, {{adapter}}, {{task}} and {{seed}} "
                       "are filled in") from None


def batch_rows(n, batch, step, seed):
    """Rows of the batch of step 0, 1, ...: a permutation per epoch, a function of its arguments."""
    batch = min(batch, n)
    epoch, i = divmod(step, n // batch)
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(n, generator=generator)[i * batch:(i + 1) * batch]


def schedule(step, total):
    """Factor on the learning rate at step 0, 1, ...: 10 % linear warm-up, then cosine to zero."""
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, total - warm))


def describe(model, setting, layers):
    """Print the settings, what is adapted and what is frozen, and the parameter counts."""
    encoder = encoder_of(model)
    print("  ".join(f"{k} {v}" for k, v in setting.items() if v is not None and k != "hp"))
    print("adapter keys: " + ("  ".join(f"{k} {v}" for k, v in setting["hp"].items()) or "none"))
    ends = Counter(name.rpartition(".")[2] for name in layers)
    print(f"adapted {len(layers)} layers: " + ", ".join(f"{n} x {e}" for e, n in ends.items()))
    count = sum(p.numel() for p in lora.trainable(encoder).values())
    base = sum(p.numel() for p in encoder.parameters()) - count
    if setting["quantize"]:
        bases = [layer.base for layer in lora.adapters(encoder).values()]
        base += sum(linear.in_features * linear.out_features for linear in bases)
    closed = sum(layer.trainable_count() for layer in lora.adapters(encoder).values())
    print(f"frozen {base:,} parameters of the encoder; trainable {count:,}, {count / base:.2%} of "
          f"that (closed form {closed:,})")
    what = {"off": "not linearized",
            "layer": "each layer expanded to first order (the paper's released code)",
            "model": "the whole model expanded to first order (the paper's equation)"}
    print(f"linearize {setting['linearize']}: {what[setting['linearize']]}")
    return count, base


def optimizer_of(model, setting):
    """AdamW over the adapters' own groups; the scheduled rate multiplies each group's base rate."""
    encoder = encoder_of(model)
    layers = lora.adapters(encoder).values()
    groups = [g for layer in layers for g in layer.param_groups(setting["lr"], setting["wd"])]
    if model is not encoder:
        groups = model.param_groups(groups)
    return torch.optim.AdamW([g | {"base_lr": g["lr"]} for g in groups])


def fit(model, sets, setting, folder):
    """The training loop; returns the log as rows (step, loss, learning rate).

    sets   (head, inputs, labels) per task; several take turns, step by step
    """
    encoder = encoder_of(model)
    layers = list(lora.adapters(encoder).values())
    hooks, params = type(layers[0]), list(lora.trainable(encoder).values())
    optimizer, total = optimizer_of(model, setting), setting["steps"] * len(sets)
    log, (rank, count) = run_folder.load_progress(folder, model, optimizer), jobs.place()
    if min(setting["batch"], *(len(inputs) for _, inputs, _ in sets)) < count:
        raise BadInput(f"a batch of the training examples is too small for {count} processes")
    steps = range(len(log), total)
    bar = tqdm(steps, initial=len(log), total=total, desc=f"{folder.stem}") if rank == 0 else steps
    for step in bar:
        head, inputs, labels = sets[step % len(sets)]
        rows = batch_rows(len(inputs), setting["batch"], step // len(sets), setting["seed"])
        for g in optimizer.param_groups:
            g["lr"] = g["base_lr"] * schedule(step, total)
        mine = rows[rank::count]                         # all of them, if there is one process
        logits = head(model(encoders.place(inputs[mine], params[0])))
        loss = F.cross_entropy(logits, labels[mine].to(params[0].device)) * (len(mine) / len(rows))
        loss = loss + sum(layer.regularizer() for layer in layers) / count
        optimizer.zero_grad()
        loss.backward()
        seen = [*params, *(t for layer in layers for t in layer.observed())]
        jobs.add_up([loss := loss.detach(), *(p.grad for p in seen if p.grad is not None)])
        log.append((step + 1, loss.item(), optimizer.param_groups[0]["lr"]))
        if not math.isfinite(log[-1][1]):
            raise BadInput(f"the loss became {log[-1][1]} at step {step + 1} with learning rate "
                           f"{log[-1][2]:.3g}: start again with a smaller --lr (and --overwrite)")
        hooks.after_backward(layers, step + 1, total)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        hooks.after_step(layers, step + 1, total)
        if rank == 0:
            bar.set_postfix(loss=f"{log[-1][1]:.3f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < total and rank == 0:
            run_folder.save_progress(folder, model, optimizer, log)
    return log


def load_task(task, setting, base):
    """The head, fitted on the features of `base`, and the splits {name: (inputs, labels)}."""
    split = {name: data.load(task, name, setting["data"], setting["limit"], base.encode)
             for name in ("train", "val", "test")}
    inputs, labels = (part[:EXAMPLES] for part in split["train"])
    head = HEADS[setting["head"]](base.width, data.classes(task, setting["data"]))
    head.to(setting["device"]).fit(features(base, inputs), labels.to(setting["device"]))
    return head, split


def train(setting, task, out):
    """One run, from the checkpoint to the finished folder; `task` is one, or a,b,c jointly."""
    began, folder, setting = time.time(), run_folder.partial(out), {"task": task} | setting
    base = encoders.load(setting["model"], setting["size"], setting["random_weights"])
    base = base.to(setting["device"], getattr(torch, setting["dtype"]))
    generator = torch.Generator().manual_seed(setting["seed"])
    model, layers = adapt(copy.deepcopy(base), setting["adapter"], setting["linearize"],
                          setting["targets"], generator=generator, quantizer=QUANTIZERS.get(setting["quantize"]),
                          **setting["hp"])
    injected, names = list(lora.adapters(encoder_of(model)).values()), task.split(",")
    type(injected[0]).before_training(injected, setting["steps"] * len(names))
    peft_folder.start_from(setting, model, layers)
    trainable, frozen = describe(model, setting, layers)
    tasks = {name: load_task(name, setting, base) for name in names}
    first = jobs.place()[0] == 0
    if first:
        run_folder.start_folder(folder, setting)
    start, _ = run_folder.state(model)
    score = lambda model, split: {name: accuracy(model, head, *sets[split])
                                  for name, (head, sets) in tasks.items()}
    base_val = statistics.fmean(score(base, "val").values())
    log = fit(model, [(head, *sets["train"]) for head, sets in tasks.values()], setting, folder)
    if not first:
        return
    val, test = score(model, "val"), score(model, "test")
    result = {"base_val": base_val, "val": statistics.fmean(val.values()),
              "test": statistics.fmean(test.values()), "trainable": trainable, "frozen": frozen,
              "seconds": round(time.time() - began, 1)}
    if len(names) > 1:
        result["by_task"] = {name: {"val": val[name], "test": test[name]} for name in names}
    run_folder.save_run(out, setting, model, layers, {n: head for n, (head, _) in tasks.items()}, start,
                  result, log)
    print(f"base val {base_val:.3f} before training, {result['seconds']:.0f} s")
    print(f"val {result['val']:.3f}  test {result['test']:.3f}  ->  {out}", flush=True)


def captured(setting, task, out, bar):
    """`train`, as a unit of work for jobs.spread; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        train(setting, task, out)
    bar.update()
    return text.getvalue()


def main():
    """One run, or one per task."""
    args = arguments()
    if args.list:
        for name, cls in sorted(lora.ADAPTERS.items()):
            summary = cls.__doc__.splitlines()[0]
            print(cli.entry(name, lora.paper(cls), summary, lora.hyperparameters(cls)))
        print("any of them with --quantize nf4 (arXiv:2305.14314): lora is then QLoRA, "
              "pissa QPiSSA, dora QDoRA, rosa QRoSA")
        return
    setting, tasks = resolve(args), task_names(args)
    peft_folder.check_start(setting)
    check_tasks(tasks, args)
    units = [",".join(tasks)] if args.joint else tasks
    with jobs.group(setting["device"], args.batch):
        outs = [out_folder(args, setting, unit) for unit in units]
        todo = [(setting, unit, out) for unit, out in zip(units, outs)
                if run_folder.is_open(out, args.resume, args.overwrite)]
        jobs.wait()                         # before one of them makes the first folder
        if args.jobs == 1:
            for unit in todo:
                train(*unit)
        else:
            with tqdm(total=len(todo), desc="runs") as bar:
                print("".join(jobs.spread(captured, todo, args.jobs, bar)), end="")
        many = len(units) > 1
        print(f"next: python eval.py {out_folder(args, setting, '*' if many else units[0])}"
              + " --merge average,task_arithmetic,ties --sweep lam=0:1:0.05" * many)


if __name__ == "__main__":
    cli.run(main)
