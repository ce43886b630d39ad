"""Merge two encoders of different origin: two pretrainings from different random starts.

    python -m pretrain --seed 1 --out other
    python -m analysis.match checkpoints/vit other --out merged     # then: train.py --model merged

Their weights have nothing in common coordinate by coordinate, so the mean of both is neither.
rules/pleas.py undoes what can be undone exactly, a permutation P of every set of units, found by
assignment on unlabelled inputs of all tasks, and fits what is left:

    stream   one permutation of the residual stream, by the outputs z (rows, D) of all blocks
    units    the hidden units and the heads of every block
    PLeaS    arXiv:2407.02447: after both, least squares for every layer

A row is the mean accuracy over the tasks of classifiers fitted to that encoder's own features, as
no pretrained model is common to both: class prototypes and a linear probe (encoders/heads.py).
"""

import argparse
import contextlib
import shlex
import statistics
from functools import partial
from pathlib import Path

import torch
from torch.func import functional_call
from tqdm import tqdm

import data
import encoders
from encoders.heads import EXAMPLES, HEADS, correct, features
from errors import BadInput
from exchange import huggingface
from experiment import cli, tables
from experiment.scoring import RULES
from experiment.spaces import layer_inputs, with_weights
from rules.matching import assignment, correlation, match_blocks, permute_stream
from rules.pleas import rows_of

WRITTEN = "PLeaS, stream and units matched"
FITTED = ("prototypes", "probe")                    # heads made from the features of an encoder


def check_alike(a, b):
    """BadInput unless both encoders compute the same function of their weights and inputs."""
    described = lambda model: (
        str(model), [(block.heads, block.activation) for block in model.blocks],
        {k: v.flatten().tolist() for k, v in model.named_buffers()},
        model.tokenizer.vocab if model.kind == "text" else None)
    if described(a) != described(b):
        raise BadInput(f"{a.name} and {b.name} are not of one architecture: only encoders with the "
                       "same layers, heads, normalisation and vocabulary can be matched")


def weights_of(encoder):
    """{name: tensor} of all its weights."""
    return {k: v.detach().clone() for k, v in encoder.named_parameters()}


@torch.no_grad()
def stream_of(encoder, params, batches):
    """The residual stream z (rows, D): what every block puts out, for every real token."""
    outputs = []
    for inputs in batches:
        real = encoder.tokens(inputs)
        keep = lambda module, given, out, real=real: outputs.append(out[real])
        with contextlib.ExitStack() as hooks:
            for block in encoder.blocks:
                hooks.enter_context(block.register_forward_hook(keep))
            functional_call(encoder, params, (inputs,))
    return torch.cat(outputs)


def merged(encoder, a, b, batches):
    """{what was done: weights} of the encoders a and b and of five ways to merge them; and the
    mean correlation of the matched coordinates of their residual streams."""
    layers = [n for n, m in encoder.blocks.named_modules() if isinstance(m, torch.nn.Linear)]
    inputs_of = partial(layer_inputs, encoder, [f"blocks.{n}.weight" for n in layers])
    heads = encoder.blocks[0].heads
    mean = lambda b: {k: (a[k] + b[k]) / 2 for k in a}

    def pleas(b):
        tau = {k: b[k] - a[k] for k in a}
        return RULES["pleas"](a, [{k: torch.zeros_like(v) for k, v in a.items()}, tau],
                              activations=inputs_of, batches=batches, heads=heads)

    likeness = correlation(*(stream_of(encoder, params, batches) for params in (a, b)))   # (D, D)
    order = assignment(likeness)
    turned = permute_stream(b, order)                    # its residual stream in the order of a's
    rows = [rows_of(inputs_of, params, batches) for params in (a, turned)]
    ways = {"a": a, "b": b, "mean": mean(b), "mean, stream matched": mean(turned),
            "mean, stream and units matched": mean(match_blocks(a, turned, rows, heads)),
            "PLeaS, units matched": pleas(b), WRITTEN: pleas(turned)}
    return ways, likeness.gather(1, order[:, None]).mean().item()


def scores(encoder, tasks, encode, split, limit):
    """Mean accuracies over the tasks of heads fitted to features of `train`; one for each head."""
    rows = []
    for task in tasks:
        inputs, labels = data.load(task, "train", limit=limit or EXAMPLES, encode=encode)
        scored, truth = data.load(task, split, limit=limit, encode=encode)
        training, test = features(encoder, inputs), features(encoder, scored)
        heads = [HEADS[name](encoder.width, data.classes(task)) for name in FITTED]
        rows.append([correct(head.fit(training, labels), test, truth) for head in heads])
    return [statistics.fmean(column) for column in zip(*rows)]


def main():
    """Match, merge, score; write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("a", help="a checkpoint, as train.py --model takes it; its order is kept")
    add("b", help="another one of the same architecture")
    add("--examples", type=int, default=250, help="unlabelled inputs of every task to match by")
    add("--split", choices=["val", "test"], default="test")
    add("--limit", type=int, metavar="N", help="at most N examples per split")
    add("--out", type=Path, help=f"write the encoder '{WRITTEN}' to this folder")
    args = parser.parse_args()
    cli.check_numbers(args)
    if args.out:
        huggingface.check_new("--out", args.out)
    encoder, other = encoders.load(args.a), encoders.load(args.b)
    check_alike(encoder, other)
    if args.out:
        huggingface.type_of(encoder)                       # BadInput if it cannot be written
    encode = encoders.encoding(args.a)
    tasks = list(data.suite(encoder.kind).TASKS)
    batches = [data.load(task, "calib", limit=args.examples, encode=encode)[0] for task in tasks]
    print(f"{len(tasks)} tasks, {len(batches[0])} unlabelled inputs of each, scored on "
          f"{args.split}")
    ways, likeness = merged(encoder, weights_of(encoder), weights_of(other), batches)
    print(f"matched coordinates of the residual streams correlate with {likeness:.2f} in the mean")
    rows = []
    for name, params in tqdm(ways.items(), desc="encoders"):
        model = with_weights(encoder, params)
        rows.append([name, *scores(model, tasks, encode, args.split, args.limit)])
    print(tables.table(["encoder", *FITTED], rows))
    if args.out:
        with huggingface.new_folder(args.out) as folder:
            huggingface.write_encoder(with_weights(encoder, ways[WRITTEN]), folder)
        words = shlex.join(["--adapter", "l_lora", "--model", str(args.out)])
        print(f"wrote {args.out}\nnext: python train.py {words}")


if __name__ == "__main__":
    cli.run(main)
