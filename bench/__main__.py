"""Cost of an optimizer step of every adapter, as a ratio to plain LoRA measured in the same run.

    python -m bench                                    # every adapter as it runs by default
    python -m bench --adapters lora,l_lora,dora --rounds 40
    python -m bench --rules all                        # merge rules on 8 x 21 million parameters
    python -m bench --rules adamerging                 # one gradient of its coefficients
    python -m bench --growth                           # against rank, depth, batch, tasks
    python -m bench --peft tiny                        # training steps beside the PEFT library
    python -m bench --rlhf                             # steps of preference tuning
"""

import argparse

import lora
import merge
from analysis import plots
from bench import growth, merging, peft_library, preference, steps
from errors import BadInput
from experiment import cli, run_folder
from experiment.scoring import RULES


def main():
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--adapters", help="comma-separated (default: all)")
    add("--batch", type=int, help="default: 32; of each task with --rules adamerging 16")
    add("--rounds", type=int, help="default: 20; with --growth 10, with --rules 5")
    add("--steps", type=int, default=2, help="steps per adapter and round")
    add("--json", metavar="FILE", help="also write the ratios to a file")
    add("--rules", metavar="RULE,...", help="merge rules instead: some, all, or adamerging")
    add("--millions", type=float, default=22, help="parameters, with --rules")
    add("--rlhf", action="store_true", help="steps of python -m rlhf, LoRA against full")
    add("--growth", action="store_true", help="double rank, depth, batch, tasks")
    add("--plot", metavar="FOLDER", help="draw --growth too (needs matplotlib)")
    add("--peft", choices=["tiny", "small"],
        help="against the PEFT library, on the built-in ViT or on a ViT-S")
    args = parser.parse_args()
    cli.check_numbers(args)
    if args.rounds == 1 and not (args.rules or args.growth):
        raise BadInput("--rounds 1: quartiles need at least 2")
    if args.plot and not args.growth:
        raise BadInput("--plot draws --growth only: leave it out or add --growth")
    chosen = [f"--{name}" for name in ("rules", "growth", "peft", "rlhf") if getattr(args, name)]
    if len(chosen) > 1:
        raise BadInput(f"{' and '.join(chosen)} are tables of their own: choose one")
    if args.json and chosen:
        raise BadInput(f"--json writes the table of adapters: leave it out with {chosen[0]}")
    if args.json:
        cli.check_place("--json", args.json)
    args.batch = args.batch or (16 if args.rules == "adamerging" else 32)
    args.rounds = args.rounds or (5 if args.rules else 10 if args.growth else 20)
    if args.growth:
        growth.growth(args.rounds, plots.folder(args.plot) if args.plot else None)
    elif args.rlhf:
        preference.compare(args.batch, args.rounds)
    elif args.peft:
        peft_library.compare(args.peft == "small", args.batch, args.rounds, args.steps)
    elif args.rules == "adamerging":
        merging.adamerging(args.millions, args.rounds, args.batch)
    elif args.rules:
        free = [name for name, f in RULES.items() if not merge.needs(name) and not f.count]
        chosen = free if args.rules == "all" else cli.names(args.rules, "rule without data", free)
        merging.rules(chosen, args.millions, args.rounds)
    else:
        every = sorted(lora.ADAPTERS)
        names = cli.names(args.adapters, "adapter", every) if args.adapters else every
        variants = [("lora", "off"),
                    *((n, lora.ADAPTERS[n].linearize) for n in names if n != "lora")]
        if "l_lora" in names:
            variants += [("l_lora", "layer"), ("l_lora", "model" + steps.BY_JVP),
                         ("lora", "off" + steps.BY_JVP), ("lora", "off" + steps.RELEASED)]
        ratios = steps.compare(variants, args.batch, args.rounds, args.steps)
        if args.json:
            run_folder.write_json(ratios, args.json)


if __name__ == "__main__":
    cli.run(main)
