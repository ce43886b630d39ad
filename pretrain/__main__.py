"""Make the built-in checkpoints from nothing.

    python -m pretrain --overwrite                   # checkpoints/vit, see vit.py
    python -m pretrain bert --overwrite              # checkpoints/bert, see bert.py
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import encoders
from encoders import safetensors
from errors import BadInput
from experiment import cli, run_folder
from pretrain import bert, vit


def make_vit(args):
    """Pretrain the image encoder; (model, its configuration, held-out accuracies)."""
    config = dict(image=28, patch=7, channels=1, width=args.width, depth=args.depth,
                  heads=args.heads, hidden=4 * args.width, mean=[0.5], std=[0.5])
    model = encoders.ViT(**config)
    head = vit.pretrain(model, steps=args.steps, lr=args.lr, seed=args.seed)
    held_out = vit.accuracy(model, head,
                            *vit.tensors(np.random.default_rng([args.seed, 2]), vit.HELD_OUT))
    return model, config, held_out


def make_bert(args):
    """Pretrain the text encoder; (model, its configuration, held-out accuracies)."""
    model, config = bert.make(args.width, args.depth, args.heads)
    head = bert.pretrain(model, steps=args.steps, lr=args.lr, seed=args.seed)
    return model, config, bert.accuracy(model, head, args.seed)


MAKERS = {"vit": (make_vit, dict(steps=5000, width=192, lr=1.5e-3), "scenes"),
          "bert": (make_bert, dict(steps=8000, width=128, lr=1.5e-3), "texts")}


def arguments():
    """The command line; what is not given depends on the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=MAKERS, default="vit")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: the built-in checkpoint of the model")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint")
    args = parser.parse_args()
    for key, value in (MAKERS[args.model][1] | {"out": encoders.BUILT_IN / args.model}).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.steps < 20:
        raise BadInput(f"--steps {args.steps}: the one-cycle schedule needs at least 20")
    if args.width % args.heads:
        raise BadInput(f"--width {args.width} is no multiple of --heads {args.heads}")
    if args.out.exists() and not args.overwrite:
        raise BadInput(f"{args.out} exists, and the runs that start from it need it: --overwrite "
                       "replaces it, --out FOLDER writes elsewhere")
    return args


def main():
    """Pretrain from the command line and write the folder of the checkpoint."""
    args = arguments()
    maker, _, what = MAKERS[args.model]
    torch.manual_seed(args.seed)
    model, config, held_out = maker(args)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {config}")
    print(f"held-out {what}: " + "  ".join(f"{a} {v:.2f}" for a, v in held_out.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() for k, v in model.state_dict().items()}
    safetensors.write(half, args.out / "model.safetensors")
    config = {"model_type": f"{args.model}_encoder"} | config
    run_folder.write_json(config, args.out / "config.json")
    if model.kind == "text":
        bert.write_vocabulary(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
