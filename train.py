"""Fine-tune one adapter on one task: inject -> linearize -> fit the head -> train -> save a run.

    python train.py --adapter l_lora                   # the built-in suite, offline, 20 seconds
    python train.py --adapter lora --task all --seed 1
    python train.py --list                             # every adapter, its paper and its keys

What only some runs need, such as experiment.jobs, is imported where it is used.
"""

import argparse
import copy
import math
import os
import shlex
import statistics
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import adapters  # noqa: F401  (fills lora.ADAPTERS)
import data
import encoders
import lora
from encoders.heads import EXAMPLES, HEADS, accuracy, features, place
from errors import BadInput
from experiment import cli, run_folder
from experiment.schedule import batch_rows, schedule, total_steps
from linearize import READINGS, adapt, encoder_of, param_groups

SETTINGS = ("adapter", "hp", "linearize", "quantize", "targets", "init", "model", "size",
            "random_weights", "head", "data", "limit", "steps", "epochs", "batch",
            "optimizer", "lr", "wd", "every", "trace", "keep", "seed", "device",
            "dtype")                                                  # of a run, beside its task
OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}
HEAD = {"image": "prototypes", "text": "probe"}          # of --data; built-in tasks have prompts
SAVE_EVERY = 50                                                                          # steps
RANK, PROCESSES = (int(os.environ.get(*v)) for v in (("RANK", 0), ("WORLD_SIZE", 1)))    # torchrun


def train(setting, task, out):
    """One run, from the checkpoint to the finished folder; `task` is one, or a,b,c jointly."""
    began, folder, setting = time.time(), run_folder.partial(out), {"task": task} | setting
    if setting["data"]:
        setting["examples"] = {name: data.mark(name, setting["data"]) for name in task.split(",")}
    base = encoders.load(setting["model"], setting["size"], setting["random_weights"])
    base = base.to(setting["device"], getattr(torch, setting["dtype"]))
    tasks = {name: load_task(name, setting, base) for name in task.split(",")}
    sets = [(head, *splits["train"]) for head, splits in tasks.values()]
    total = total_steps(setting, [len(labels) for *_, labels in sets])
    generator = torch.Generator().manual_seed(setting["seed"])
    model, names = adapt(copy.deepcopy(base), setting["adapter"], setting["linearize"],
                         setting["targets"], generator=generator,
                         quantizer=run_folder.quantizer(setting["quantize"]), **setting["hp"])
    layers = list(lora.adapters(encoder_of(model)).values())
    type(layers[0]).before_training(layers, total)
    if setting["init"]:
        from exchange import peft_folder
        peft_folder.start_from(setting, model, names)
    trainable, frozen = cli.describe(model, setting, names)

    score = lambda model, split: {name: accuracy(model, head, *splits[split])
                                  for name, (head, splits) in tasks.items()}
    if RANK == 0:
        _lock = run_folder.start_folder(folder, setting)         # held until this run ends
    start, first = run_folder.state(model)[0], model if setting["init"] else base
    base_val = statistics.fmean(score(first, "val").values())
    watch = None
    if setting["every"]:
        from experiment import early
        watch = early.Watch(setting, lambda: statistics.fmean(score(model, "val").values()), sets)
    log = fit(model, sets, setting, folder, total, watch)
    if RANK > 0:
        return

    kept = watch.restore(model) if watch else {}                       # {"kept_step": step}
    val, test, seconds = score(model, "val"), score(model, "test"), time.time() - began
    result = {"base_val": base_val, "val": statistics.fmean(val.values()),
              "test": statistics.fmean(test.values()), "trainable": trainable, "frozen": frozen,
              "seconds": round(seconds, 1)} | kept
    if len(tasks) > 1:
        result["by_task"] = {name: {"val": val[name], "test": test[name]} for name in tasks}
    heads = {name: head for name, (head, _) in tasks.items()}
    log = [("step", "loss", "lr", *(watch.columns if watch else ())), *log]
    run_folder.save_run(out, setting, model, names, heads, start, result, log)
    print(f"val {base_val:.3f} before training, {result['val']:.3f} after {seconds:.0f} s")
    print(f"test {result['test']:.3f}  ->  {out}", flush=True)


def fit(model, sets, setting, folder, total, watch):
    """The training loop; returns the log as rows (step, loss, learning rate, what `watch` sees).

    sets   (head, inputs, labels) per task; several take turns, step by step
    watch  None, or the early.Watch of --every
    """
    encoder = encoder_of(model)
    layers, params = (list(f(encoder).values()) for f in (lora.adapters, lora.trainable))
    hooks = type(layers[0])
    groups = param_groups(model, setting["lr"], setting["wd"])
    optimizer = OPTIMIZERS[setting["optimizer"]]([g | {"base_lr": g["lr"]} for g in groups])
    log = run_folder.load_progress(folder, model, optimizer, watch)
    if min(len(inputs) for _, inputs, _ in sets) < PROCESSES:
        raise BadInput(f"a batch of the training examples is too small for {PROCESSES} processes")
    steps = range(len(log), total)
    bar = tqdm(steps, folder.stem, total, initial=len(log)) if RANK == 0 else steps
    for step in bar:
        head, inputs, labels = sets[step % len(sets)]
        rows = batch_rows(len(inputs), setting["batch"], step // len(sets), setting["seed"])
        for g in optimizer.param_groups:
            g["lr"] = g["base_lr"] * schedule(step, total)

        part = rows[RANK::PROCESSES]                           # all, if there is one process
        logits = head(model(place(inputs[part], params[0])))                            # (B, K)
        loss = F.cross_entropy(logits, labels[part].to(logits.device)) * (len(part) / len(rows))
        loss = loss + sum(layer.regularizer() for layer in layers) / PROCESSES
        optimizer.zero_grad()
        loss.backward()
        if PROCESSES > 1:
            from experiment import jobs
            jobs.add_up(loss, params, layers)
        log.append((step + 1, loss.item(), optimizer.param_groups[0]["lr"]))
        if not math.isfinite(log[-1][1]):
            raise BadInput(f"the loss became {log[-1][1]} at step {step + 1} with learning rate "
                           f"{log[-1][2]:.3g}: start again with a smaller --lr (and --overwrite)")
        hooks.after_backward(layers, step + 1, total)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        hooks.after_step(layers, step + 1, total)

        if RANK == 0:
            log[-1] += watch.look(model, step + 1, total) if watch else ()
            bar.set_postfix(loss=f"{log[-1][1]:.3f}", refresh=False)
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < total:
                run_folder.save_progress(folder, model, optimizer, log, watch)
    return log


def load_task(task, setting, base):
    """The head, fitted on the features of `base`, and the splits {name: (inputs, labels)}."""
    splits = {name: data.load(task, name, setting["data"], setting["limit"], base.encode)
              for name in ("train", "val", "test")}
    head = HEADS[setting["head"]](base.width, data.classes(task, setting["data"]))
    seen = inputs, _ = [part[:EXAMPLES] for part in splits["train"]]
    if base.encode and (full := int((inputs[:, base.limit - 1:] != base.pad).sum())):
        print(f"{task}: {full} of {len(inputs)} training texts reach {base.limit} tokens, where "
              "texts are cut")
    if setting["head"] == "prompts":
        seen = data.prompts(task, base.encode)
    head.to(setting["device"], run_folder.dtype(setting))
    head.fit(features(base, seen[0]), seen[1].to(setting["device"]))
    if setting["head"] == "prompts":
        head.center(features(base, inputs))
    return head, splits


# ---- command line --------------------------------------------------------------------------------


def arguments():
    """The command line, checked as far as it can be without loading anything."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = p.add_argument
    add("--adapter", default="l_lora", help="see --list")
    add("--linearize", choices=READINGS, help="off, layer or model; default: the adapter's own")
    add("--task", help="built-in tasks (a,b), all, any name with --data (default: the first)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time, for several tasks")
    add("--joint", action="store_true", help="one model on all of --task, turn by turn")
    add("--data", metavar="FOLDER", type=os.path.abspath, help="a published data set or your own")
    add("--download", action="store_true", help="fetch the files of a known --task into --data")
    add("--limit", type=int, metavar="N", help="at most N examples per split")
    add("--model", default="vit", help="vit, bert, a published name, a folder or a file")
    add("--size", type=int, help="pixels, or most tokens of a text (default: the model's)")
    add("--random-weights", action="store_true", help="forget the pretraining, as a control")
    add("--head", choices=HEADS, help="default: prompts; with --data prototypes, for texts probe")
    add("--targets", help="ends of layer names such as q,v, or all (default: the adapter's own)")
    add("--rank", type=int), add("--alpha", type=float)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the adapter")
    add("--init", metavar="FOLDER", type=os.path.abspath, help="start from a LoRA saved by PEFT")
    add("--quantize", choices=["nf4"], help="store the frozen weights in 4 bits")
    add("--steps", type=int, help="optimizer steps, for each task of --joint (default: 200)")
    add("--epochs", type=int, help="instead of --steps: passes over the training examples")
    add("--batch", type=int, default=32)
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="sgd has momentum 0.9")
    add("--lr", type=float, help="default: the adapter's own, which is meant for adamw")
    add("--wd", type=float, default=0.0)
    add("--every", type=int, metavar="N", help="log the accuracy on val every N steps")
    add("--trace", action="store_true", help="log the log-trace of the Fisher information, too")
    add("--keep", choices=["last", "best", "trace"], default="last", help="the weights to keep, of "
        "the steps of --every: the last, of the best val accuracy, of the largest log-trace")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--dtype", choices=["float32", "float64", "bfloat16"], default="float32")
    add("--out", default="runs/{model}-{adapter}-{task}-s{seed}")
    add("--resume", action="store_true", help="continue an interrupted run; skip finished ones")
    add("--overwrite", action="store_true", help="replace an existing run")
    add("--list", action="store_true", help="list the adapters and stop")
    args = p.parse_args()
    cli.check_numbers(args)
    if args.jobs > 1 and PROCESSES > 1:
        raise BadInput("--jobs makes processes of its own: leave it out under torchrun")
    if args.steps and args.epochs:
        raise BadInput(f"--steps {args.steps} and --epochs {args.epochs}: give one of the two")
    args.steps = args.steps or (None if args.epochs else 200)
    args.trace = args.trace or args.keep == "trace"
    if not args.every and (args.trace or args.keep != "last"):
        raise BadInput("--trace and --keep look at the model while it trains: add --every N")
    return args


def resolve(args):
    """Every setting of a run as plain values, defaults filled in: what config.json records."""
    cls = lora.find(args.adapter)
    keys, reading = lora.hyperparameters(cls), args.linearize or cls.linearize
    if reading not in cls.lr:
        raise BadInput(f"{args.adapter} is a linearization: --linearize layer or model, "
                       "or take --adapter lora for the plain adapter")
    flags = [f"{k}={getattr(args, k)}" for k in ("rank", "alpha") if getattr(args, k) is not None]
    if (kind := encoders.kind(args.model)) not in HEAD:
        raise BadInput(f"{args.model} is a language model: python -m rlhf trains it")
    if args.head == "prompts" and args.data:
        raise BadInput("--head prompts is for the built-in tasks: take prototypes or probe")
    hp = keys | cli.keywords(flags + args.set, keys, args.adapter)
    if not (hp.get("alpha") is None or isinstance(hp["alpha"], (int, float)) and hp["alpha"] > 0):
        raise BadInput(f"--set alpha={hp['alpha']}: give a number above 0")
    rate = cls.lr[reading] if args.lr is None else args.lr
    path = encoders.find(args.model) == Path(args.model)         # and not a name
    filled_in = vars(args) | {"hp": hp, "linearize": reading, "lr": rate,
                              "head": args.head or (HEAD[kind] if args.data else "prompts"),
                              "model": os.path.abspath(args.model) if path else args.model,
                              "device": cli.device(args.device),
                              "targets": cls.targets if args.targets is None else args.targets}
    return {key: filled_in[key] for key in SETTINGS}


def checked_tasks(args):
    """The names in --task; BadInput for one that is not there, or not for this kind of model."""
    kind = encoders.kind(args.model)
    built_in = list(data.suite(kind).TASKS)
    given = args.task.split(",") if args.task else built_in[:1]
    tasks = [t for name in given for t in (built_in if name == "all" else [name])]
    for task in (tasks := list(dict.fromkeys(tasks))):
        if args.download:
            from tasks import published
            published.download(task, args.data, kind)
        data.check(task, args.data)
        if (other := data.kind(task, args.data)) != kind:
            raise BadInput(f"{args.model} is a model of {kind}s and {task} a task of {other}s: "
                           "give another --model or --task")
    return tasks


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
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")                     # process 0 speaks
    setting, tasks = resolve(args), checked_tasks(args)
    if setting["init"]:
        from exchange import peft_folder
        peft_folder.check_start(setting)
    names = {"joint": ",".join(tasks)} if args.joint else {task: task for task in tasks}
    if len(names) > 1 and "{task}" not in args.out:
        raise BadInput(f"--out {args.out}: with several tasks it must contain {{task}}")
    model, method = Path(setting["model"]).name, run_folder.method(setting)    # l_lora.model, ...
    outs = {cli.filled_in(args.out, model=model, adapter=method, task=name, seed=args.seed): task
            for name, task in names.items()}
    todo = [(setting, task, out) for out, task in outs.items()
            if run_folder.is_open(out, {"task": task} | setting, args.resume, args.overwrite)]
    for _, _, out in todo:
        cli.check_place("--out", out / "adapter.pt")
    if PROCESSES > 1 or args.jobs > 1:
        from experiment import jobs
    if args.jobs > 1:
        units = [(train, *run) for run in todo]
        print("".join(jobs.spread(jobs.printed, units, args.jobs, "runs")), end="")
    else:
        with jobs.group(args.batch, setting["device"]) if PROCESSES > 1 else nullcontext():
            for run in todo:
                train(*run)
    print("next: python eval.py " + shlex.join(map(str, outs))
          + " --merge average,task_arithmetic,ties --sweep lam=0:1:0.05" * (len(outs) > 1))


if __name__ == "__main__":
    cli.run(main)
