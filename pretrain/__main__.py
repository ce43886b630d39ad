"""Make the built-in checkpoints from nothing.

    python -m pretrain --overwrite                   # checkpoints/vit, see vit.py
    python -m pretrain bert --overwrite              # checkpoints/bert, see bert.py
    python -m pretrain gpt --overwrite               # checkpoints/gpt, see gpt.py
"""

import argparse
from pathlib import Path

import torch

import encoders
from encoders import safetensors
from errors import BadInput, read_json
from experiment import cli, run_folder
from pretrain import bert, gpt, vit

FILES = {"model.safetensors", "config.json", "vocab.txt"}
# model -> (its module with make, pretrain and accuracy, model_type, --steps, --width, --lr, sees)
MODELS = {"vit": (vit, "vit_encoder", 5000, 192, 1.5e-3, "scenes"),
          "bert": (bert, "bert_encoder", 8000, 128, 5e-4, "texts"),
          "gpt": (gpt, "gpt_decoder", 4000, 96, 1.5e-3, "next words")}


def arguments():
    """The command line; what is not given depends on the model."""
    parser = argparse.ArgumentParser("python -m pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=MODELS, default="vit")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: the built-in checkpoint of the model")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint")
    args = parser.parse_args()
    cli.check_numbers(args)
    _, _, steps, width, lr, _ = MODELS[args.model]
    args.steps, args.width, args.lr = args.steps or steps, args.width or width, args.lr or lr
    args.out = args.out or encoders.BUILT_IN / args.model
    if args.steps < 20:
        raise BadInput(f"--steps {args.steps}: the one-cycle schedule needs at least 20")
    if args.width % args.heads:
        raise BadInput(f"--width {args.width} is no multiple of --heads {args.heads}")
    if args.out.exists():
        check_own(args.out)
        if not args.overwrite:
            raise BadInput(f"{args.out} exists, and the runs that start from it need it: "
                           "--overwrite replaces it, --out FOLDER writes elsewhere")
    cli.check_place("--out", args.out / "model.safetensors")
    return args


def check_own(folder):
    """BadInput unless a folder holds a checkpoint made here and nothing else."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    try:
        made = read_json(folder / "config.json", "make it again").get("model_type")
    except BadInput:
        made = None
    if names - FILES or made not in [model_type for _, model_type, *_ in MODELS.values()]:
        raise BadInput(f"{folder} is no checkpoint made here: --out FOLDER writes elsewhere")


def main():
    """Pretrain from the command line and write the folder of the checkpoint."""
    args = arguments()
    module, model_type, *_, what = MODELS[args.model]
    torch.manual_seed(args.seed)
    model, config = module.make(args.width, args.depth, args.heads)
    head = module.pretrain(model, steps=args.steps, lr=args.lr, seed=args.seed)
    held_out = module.accuracy(model, head, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {config}")
    print(f"held-out {what}: " + "  ".join(f"{a} {v:.2f}" for a, v in held_out.items()))
    half = {k: v.half() for k, v in model.state_dict().items()}
    with safetensors.replacing(args.out) as folder:                 # all of it, or nothing
        safetensors.write(half, folder / "model.safetensors")
        run_folder.write_json({"model_type": model_type} | config,
                              folder / "config.json")
        if model.kind != "image":
            (folder / "vocab.txt").write_text("\n".join(bert.vocabulary()) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
