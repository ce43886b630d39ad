"""Make the tables and figures of docs/ again, one step at a time; stop and start it as you like.

    python -m bench.tables --list              # the steps, and the commands of each
    python -m bench.tables --jobs 2            # all of them: hours
    python -m bench.tables claim rules         # some

A step is a few commands of train.py and eval.py, as the docs print them. What they say goes to
runs/tables/STEP.txt; a step with that file is done. Numbers go to STEP-KIND.json, which `python -m
bench.claims` reads. Runs are made with --resume, so a step that was interrupted goes on where it
stopped. The docs are written by hand from these files.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from errors import BadInput
from experiment import cli

HERE = Path(__file__).parents[1]
SEEDS = range(3)
# what is trained for most tables: name of the runs -> the words of train.py
KINDS = {"full": "--adapter full", "lora": "--adapter lora", "l_lora.model": "--adapter l_lora",
         "l_lora.layer": "--adapter l_lora --linearize layer",
         "lora_gentle": "--adapter lora --lr 3e-4 --out runs/{model}-lora_gentle-{task}-s{seed}",
         "lora_large": "--adapter lora --lr 1e-2 --out runs/{model}-lora_large-{task}-s{seed}"}
THREE = ("full", "lora", "l_lora.model")
# on the written tasks, each at the rate that validation chose there
WRITTEN = ({name: KINDS[name] for name in (*THREE, "lora_gentle")}
           | {"l_lora.model": "--adapter l_lora --lr 3e-3"})
RANKS = (4, 64)


def each(text, names=KINDS):
    """The command for every kind of run: KIND stands for its name."""
    return [text.replace("KIND", name) for name in names]


STEPS = {
    "train": [f"train.py {words} --task all --seed {seed} --resume"
              for seed in SEEDS for words in KINDS.values()],
    "joint": [f"train.py --adapter full --task all --joint --seed {seed} --resume"
              for seed in SEEDS],
    "claim": each("eval.py runs/vit-KIND-*-s? --by seed --sweep lam=0.1,0.2,0.3,0.4,0.6,0.8,1 "
                  "--merge average,task_arithmetic,ties,adamerging_layer --limit 500 "
                  "--json runs/tables/claim-KIND.json"),
    "rules": each("eval.py runs/vit-KIND-*-s? --by seed --sweep lam=0.1,0.2,0.3,0.5,0.8,1.2 "
                  "--merge all --limit 200 --json runs/tables/rules-KIND.json", THREE),
    "coefficient": ["eval.py runs/vit-full-*-s? runs/vit-lora-*-s? runs/vit-l_lora.model-*-s? "
                    "runs/vit-lora_gentle-*-s? --by adapter,lr,seed --merge task_arithmetic "
                    "--sweep lam=0:1:0.1 --limit 500 --plot docs/figures"],
    "spaces": [f"eval.py runs/vit-lora-*-s? --by seed --merge average --space {space}"
               for space in ("weight", "adapter")],
    "look": each("eval.py runs/vit-KIND-*-s0 --lam 0.3 --limit 100 --plot docs/figures --analyze "
                 "cosine,spectrum,disentangle,landscape,subsets "
                 "--json runs/tables/look-KIND.json", THREE),
    "disentangle": each("eval.py runs/vit-KIND-*-s? --by seed --lam 0.3 --limit 200 --analyze "
                        "disentangle --json runs/tables/disentangle-KIND.json", THREE),
    "subsets": each("eval.py runs/vit-KIND-*-s? --by seed --lam 0.3 --limit 100 --analyze subsets "
                    "--json runs/tables/subsets-KIND.json", THREE),
    "apart": each("eval.py runs/vit-KIND-*-s? --by seed --lam 0.3 --limit 200 --analyze "
                  "unseen,corruption --json runs/tables/apart-KIND.json", THREE[:2]),
    **{name: each(f"eval.py runs/vit-KIND-*-s? --by seed --lam 0.3 --limit 100 --analyze {name} "
                  f"--json runs/tables/{name}-KIND.json", THREE[:2])
       for name in ("forget", "analogy")},
    "text": [f"train.py --model bert {words} --steps 400 --task all --seed {seed} --resume"
             for seed in SEEDS for words in WRITTEN.values()]
    + each("eval.py runs/bert-KIND-*-s? --by seed --sweep lam=0.1,0.2,0.3,0.4,0.6,0.8,1,1.3,1.6,2 "
           "--sweep init=0.3,0.6 --merge average,task_arithmetic,ties,adamerging_layer --limit 500 "
           "--json runs/tables/text-KIND.json", WRITTEN),
    "ranks": [f"train.py --adapter {name} --rank {rank} --lr 1e-3 --task all --seed {seed} "
              f"--resume --out runs/compare/{name}-r{rank}-{{task}}-s{{seed}}"
              for seed in SEEDS for name in ("lora", "rslora") for rank in RANKS],
}


def command(text, jobs):
    """The words of a command, with the runs that its patterns match and --jobs."""
    script, *words = text.split()
    found = [sorted(map(str, Path().glob(w))) if "*" in w else [w] for w in words]
    if missing := [w for w, runs in zip(words, found) if not runs]:
        raise BadInput(f"no runs {missing[0]}: python -m bench.tables train, or text, makes them")
    many = [] if jobs == 1 or {"--joint", "--analyze"} & {*words} else ["--jobs", str(jobs)]
    return [sys.executable, str(HERE / script), *(w for part in found for w in part), *many]


def run(name, jobs, folder):
    """The commands of a step, one after the other; what they print, into one file at the end."""
    began, printed = time.time(), []
    for text in STEPS[name]:
        print(f"{name}: python {text}", flush=True)
        done = subprocess.run(command(text, jobs), stdout=subprocess.PIPE, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"} if jobs > 1 else None)
        if done.returncode:
            raise BadInput(f"{name}: python {text} ended with exit code {done.returncode}")
        printed.append(f"$ python {text}\n{done.stdout}")
    minutes = (time.time() - began) / 60
    (folder / f"{name}.txt").write_text("\n".join([*printed, f"{minutes:.0f} minutes", ""]))
    print(f"{name}: {minutes:.0f} minutes  ->  {folder / name}.txt", flush=True)


def main():
    """The steps that are not done."""
    parser = argparse.ArgumentParser("python -m bench.tables", description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="*", metavar="STEP", help="default: all of them")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--list", action="store_true", help="print every command and stop")
    args = parser.parse_args()
    cli.check_numbers(args)
    names = cli.names(",".join(args.step), "step", STEPS) or list(STEPS)
    if args.list:
        for name in names:
            print(name, *(f"    python {text}" for text in STEPS[name]), sep="\n")
        return
    folder = Path("runs/tables")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}.txt"
        said = path.read_text().splitlines() if path.exists() else []
        if not {f"$ python {text}" for text in STEPS[name]} <= {*said}:
            run(name, args.jobs, folder)


if __name__ == "__main__":
    cli.run(main)
