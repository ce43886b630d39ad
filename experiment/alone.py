"""Runs by themselves, before anything is merged: `eval.py RUN` without --merge."""

import shlex

from tqdm import tqdm

import lora
from experiment import run_folder, tables
from experiment.scoring import Tasks


def own_tasks(runs, device, limit, split):
    """Print the table without --merge, every run on its own tasks; returns its rows for --json."""
    splits = ["val", "test"] if split != "train" else ["train", "val", "test"]
    lines, header = [], ["run", "adapter", "linearize", "task", *splits]
    for run in tqdm(runs, "runs"):
        model = run_folder.rebuild(run, run_folder.base_encoder(run, device))
        s, tasks = run["setting"], Tasks([run], device, limit)
        scores = [tasks.scores(model, split) for split in splits]
        lines += [[run["folder"].name, s["adapter"], s["linearize"], task,
                   *(score[task] for score in scores)] for task in tasks.runs]
    print(tables.table(header, lines))
    return {"runs": [dict(zip(header, line)) for line in lines]}


def partners(run):
    """The command that trains what a single run can be merged with: the same model and adapter."""
    s, cls = run["setting"], lora.find(run["setting"]["adapter"])
    given = {"model": "vit", "size": None, "linearize": cls.linearize, "targets": cls.targets,
             "quantize": None, "limit": None, "steps": 200, "epochs": None, "batch": 32,
             "optimizer": "adamw", "lr": cls.lr[s["linearize"]], "wd": 0.0, "every": None,
             "keep": "last", "seed": 0, "dtype": "float32",
             "head": s["head"] if s["data"] else "prompts"}
    words = ["--adapter", s["adapter"]] + ["--random-weights"] * s["random_weights"]
    words += ["--trace"] * s["trace"]
    for key, default in given.items():
        words += [f"--{key}", str(s[key])] if s.get(key) not in (default, None) else []
    for key, default in lora.hyperparameters(cls).items():
        words += ["--set", f"{key}={s['hp'][key]}"] if s["hp"][key] != default else []
    return f"python train.py {shlex.join(words)} --task all --resume"
