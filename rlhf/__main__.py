"""Tune a small language model on preferences: pairs -> reward model -> policy. arXiv:2403.10704

    python -m rlhf                                     # friendly texts, LoRA, 3 minutes
    python -m rlhf --reward short --adapter dora
    python -m rlhf --beta 0,0.1,0.3 --plot figures     # over-optimisation
    python -m rlhf --soup runs/gpt-lora-friendly-b0.3-s0 runs/gpt-lora-short-b0.3-s0

preferences.py has the hidden rewards, reward.py and policy.py the equations, soup.py the merging.
"""

import argparse
import csv
import os
import shlex
import sys
import time
from pathlib import Path

import torch

import encoders
import lora
import merge
from errors import BadInput
from experiment import cli, run_folder, tables
from linearize import READINGS, adapt
from rlhf import policy, reward, soup
from rlhf.preferences import OPENING, REWARDS, SEEDS, pairs, prompts, true_reward

TESTED = 500                                               # pairs for the accuracy
COLUMNS = ("kl", "proxy", "true", "win")                   # of log.csv, after the step


def arguments():
    """The command line, checked as far as it can be without loading anything."""
    parser = argparse.ArgumentParser("python -m rlhf", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--reward", choices=REWARDS, default="friendly", help="what people like: preferences.py")
    add("--adapter", default="lora", help="see train.py --list; of reward, policy and value")
    add("--linearize", choices=READINGS, help="default: the adapter's own")
    add("--targets", help="ends of layer names such as q,v, or all (default: the adapter's own)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the adapter")
    add("--model", default="gpt", help="gpt, or a folder that python -m pretrain gpt made")
    add("--pairs", type=int, default=3000, help="labelled pairs, one per prompt")
    add("--reward-steps", type=int, default=500)
    add("--beta", default="0.3", metavar="B,...", help="0 forgets the anchor, 1 stays at it")
    add("--steps", type=int, default=100, help="of the policy")
    add("--batch", type=int, default=64)
    add("--lr", type=float, help="default: the adapter's own")
    add("--temperature", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--out", default="runs/{model}-{adapter}-{reward}-b{beta}-s{seed}")
    add("--resume", action="store_true", help="skip finished policies, make the others")
    add("--overwrite", action="store_true", help="replace existing runs")
    add("--soup", nargs=2, metavar="RUN", help="merge two policies along the line between them")
    add("--merge", default="", metavar="RULE,...", help="with --soup: also by these rules")
    add("--space", choices=["weight", "adapter"], help="of --soup")
    add("--points", type=int, default=11, help="compromises of --soup, both ends counted")
    add("--plot", metavar="FOLDER", help="draw it (needs matplotlib)")
    add("--json", metavar="FILE", help="also write every number to a file")
    args = parser.parse_args()
    cli.check_numbers(args)
    given = dict(vars(args))                                   # as typed, before it is read
    try:
        args.beta = [float(b) for b in args.beta.split(",")]
    except ValueError:
        args.beta = [-1.0]
    if not all(0 <= b <= 1 for b in args.beta):
        raise BadInput("--beta takes numbers from 0 to 1, such as 0,0.1,0.3")
    if len({out_folder(args, args.reward, b) for b in args.beta}) < len(set(args.beta)):
        raise BadInput(f"--out {args.out}: with several --beta it must contain {{beta}}")
    free = [name for name, f in merge.RULES.items()
            if not merge.needs(name) and f.count in (None, 2) and not f.experts]
    args.merge = cli.names(args.merge, "rule without data for two runs", free)
    odd = [f"--{name.replace('_', '-')}" for name, value in given.items()
           if value != parser.get_default(name) and name not in ("soup", "plot", "json")
           and (name in ("merge", "space", "points")) != bool(args.soup)]
    if odd:
        raise BadInput(f"{', '.join(odd)}: no use {'with' if args.soup else 'without'} --soup: "
                       "leave it out")
    if args.json:
        cli.check_place("--json", args.json)
    if args.plot:
        from analysis import plots
        args.plot = plots.folder(args.plot)
    return args


def setting_of(args, beta):
    """Every setting of a run as plain values: what config.json records."""
    cls = lora.find(args.adapter)
    reading, keys = args.linearize or cls.linearize, lora.hyperparameters(cls)
    if reading not in cls.lr:
        raise BadInput(f"{args.adapter} is a linearization: --linearize layer or model")
    path = encoders.find(args.model) == Path(args.model)
    if encoders.kind(args.model) != "continuation":
        raise BadInput(f"{args.model} is no language model: --model gpt, or make one with "
                       "python -m pretrain gpt --out FOLDER")
    return {"task": args.reward, "adapter": args.adapter, "linearize": reading,
            "hp": keys | cli.keywords(args.set, keys, args.adapter),
            "targets": cls.targets if args.targets is None else args.targets,
            "model": os.path.abspath(args.model) if path else args.model, "pairs": args.pairs,
            "reward_steps": args.reward_steps, "beta": beta, "steps": args.steps,
            "batch": args.batch, "lr": cls.lr[reading] if args.lr is None else args.lr,
            "temperature": args.temperature, "seed": args.seed,
            "quantize": None, "size": None, "random_weights": False, "dtype": "float32"}


def out_folder(args, reward, beta):
    """runs/{model}-{adapter}-{reward}-b{beta}-s{seed}."""
    return cli.filled_in(args.out, model=Path(args.model).name, adapter=args.adapter,
                         reward=reward, beta=f"{beta:g}", seed=args.seed)


def reward_model(setting, backbone, scorer):
    """A reward model trained on pairs that the anchor wrote, and its accuracies on others."""
    data = pairs(backbone, setting["task"], setting["pairs"] + TESTED, setting["seed"])
    preferred, other = (ids[:-TESTED] for ids in data)
    reward.fit(made := scorer(1), preferred, other, setting["lr"], setting["reward_steps"],
               setting["batch"], setting["seed"])
    made.requires_grad_(False).standardise(torch.cat([preferred, other]))
    held_out = [ids[-TESTED:] for ids in data]
    best = [true_reward(setting["task"], backbone, ids) for ids in held_out]
    agree = ((best[0] > best[1]).double() + (best[0] == best[1]).double() / 2).mean().item()
    accuracy = reward.pair_accuracy(made, *held_out)
    print(f"reward model: right on {accuracy:.3f} of {TESTED} held-out pairs; the hidden reward "
          f"itself, without the noise of people, on {agree:.3f}")
    return made, accuracy


def tune(setting, backbone, scorer, judge, out):
    """One policy, from the anchor to the finished run folder; returns (name, what it does)."""
    began, folder = time.time(), run_folder.partial(out)
    generator = torch.Generator().manual_seed(setting["seed"])
    model, names = adapt(lora.twin(backbone), setting["adapter"], setting["linearize"],
                         setting["targets"], generator=generator, **setting["hp"])
    trainable, frozen = cli.describe(model, setting, names)
    lock, start = run_folder.start_folder(folder, setting), run_folder.state(model)[0]
    ours, log = policy.Policy(backbone, model, setting["temperature"]), []

    def look(step):
        if step == setting["steps"] or step % max(1, setting["steps"] // 10) == 0:
            at = policy.measure(ours, judge, setting["task"], "val")
            log.append((step, *(at[k] for k in COLUMNS)))

    policy.train(ours, judge, scorer(2), setting["beta"], setting["lr"], setting["steps"],
                 setting["batch"], setting["seed"], look)
    result = policy.measure(ours, judge, setting["task"], "test")
    result |= {"val": log[-1][3], "test": result["true"], "trainable": trainable,
               "frozen": frozen, "seconds": round(time.time() - began, 1)}
    run_folder.save_run(out, setting, model, names, {}, start, result,
                        [("step", *COLUMNS), *log])
    lock.close()
    print(f"-> {out}", flush=True)
    examples = ours.write(prompts(backbone, 3, SEEDS["test"]), generator)
    return result | {"log": log, "examples": examples}


def finished(out):
    """What a policy that is there does, as `tune` returns it, without examples."""
    with open(out / "log.csv", newline="") as file:
        _, *log = csv.reader(file)
    log = [(int(step), *map(float, cells)) for step, *cells in log]
    return run_folder.load(out)["result"] | {"log": log}


def main():
    """Reward model and policies, or the soups of two of them."""
    args = arguments()
    if args.soup:
        soups(args)
        return
    settings = {out_folder(args, args.reward, b): setting_of(args, b) for b in args.beta}
    todo = {out: s for out, s in settings.items()
            if run_folder.is_open(out, s, args.resume, args.overwrite)}
    for out in todo:
        cli.check_place("--out", out / "adapter.pt")
    first = next(iter(settings.values()))
    backbone = encoders.load(first["model"]).requires_grad_(False)
    lora.matching(backbone, first["targets"])                 # BadInput before any work
    scorer = lambda i: reward.Scorer(
        backbone, first["adapter"], first["linearize"], first["targets"],
        torch.Generator().manual_seed(1000 * i + args.seed), **first["hp"])
    judge, accuracy = reward_model(first, backbone, scorer)
    anchor = policy.Policy(backbone, backbone, args.temperature)
    results = {"anchor": policy.measure(anchor, judge, args.reward, "test")}
    for out, setting in settings.items():
        made = tune(setting, backbone, scorer, judge, out) if out in todo else finished(out)
        results[f"beta {setting['beta']:g}"] = made
        for row in made.pop("examples", ()):
            start, rest = backbone.decode(row[:OPENING]), backbone.decode(row[OPENING:])
            print(f"    {start} | {rest}")
    header = ["win", "true", "proxy", "kl", "tokens"]
    print(tables.table(["policy", *header],
                       [[name, *(row[k] for k in header)] for name, row in results.items()]))
    if args.plot:
        from rlhf import figures
        start = policy.measure(anchor, judge, args.reward, "val")
        figures.over_optimisation(results, start, args.plot / "over-optimisation.png")
    if args.json:
        run_folder.write_json({"reward model": accuracy} | results, args.json)
    other = next(name for name in REWARDS if name != args.reward)
    both = [str(out_folder(args, name, args.beta[0])) for name in (args.reward, other)]
    print(f"next: python -m rlhf {shlex.join([*sys.argv[1:], '--reward', other])}\n"
          f"then: python -m rlhf --soup {shlex.join(both)}")


def soups(args):
    """The front between two policies."""
    runs = [run_folder.load(folder) for folder in args.soup]
    for run in runs:
        if run["setting"]["task"] not in REWARDS:
            raise BadInput(f"{run['folder']} is no policy: --soup takes two runs of python -m rlhf")
    rows = soup.front(runs, args.space, args.points, args.merge)
    if args.plot:
        from rlhf import figures
        figures.front(rows, list(REWARDS), args.plot / "soup.png")
    if args.json:
        run_folder.write_json({"rows": rows}, args.json)


if __name__ == "__main__":
    cli.run(main)
