"""What the commands share: reporting errors, reading names and `key=value`, checking numbers."""

import ast
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import lora
from errors import BadInput, unknown
from linearize import encoder_of


def run(main):
    """Run a command's main(): BadInput becomes one line on stderr and exit code 2."""
    try:
        main()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                                    # the reader, head or less, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:                                   # a full disk, no permission
        print(f"error: {error.filename}: {error.strerror}: make room there, or give another place",
              file=sys.stderr)
        sys.exit(2)


def check_place(flag, path):
    """BadInput unless a file can be written at `path`: tried in the nearest folder there is."""
    path = Path(path).absolute()
    if path.is_dir():
        raise BadInput(f"{flag} {path} is a folder: give the name of a file")
    nearest = next(parent for parent in path.parents if parent.exists())
    try:
        tempfile.NamedTemporaryFile(dir=nearest, prefix=path.name).close()
    except OSError as error:
        raise BadInput(f"{flag} {path} cannot be written ({error.strerror}): give another "
                       "place") from None


def filled_in(out, **words):
    """The folder that --out names, with {model}, {seed} and whatever else `words` has."""
    try:
        return Path(out.format(**words))
    except (KeyError, IndexError, ValueError):
        *most, last = (f"{{{word}}}" for word in words)
        raise BadInput(f"--out {out}: only {', '.join(most)} and {last} are filled in") from None


def keywords(pairs, options, owner):
    """["density=0.2"] -> {"density": 0.2}, each key checked against {key: default} of `owner`."""
    out = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if key in out:
            raise BadInput(f"--set {pair}: {key} is {out[key]} already; give it once")
        if key not in options:
            raise unknown(f"key for {owner}", key, options or ["(none)"])
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        default = options[key]
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        wrong = not isinstance(value, (int, float, list, tuple, dict, type(None))) \
            if default is None else type(value) is not type(default)
        if not equals or wrong:
            kind = "number or a list" if default is None else type(default).__name__
            raise BadInput(f"--set {pair}: {key} takes a {kind} such as {key}={default}")
        if key == "lr" and value < 0:
            raise BadInput(f"--set {pair}: give a learning rate of 0 or more")
        out[key] = in_reach(value, f"--set {pair}")
    return out


def in_reach(value, source):
    """The value; BadInput if it is a number that is not finite, beyond 1e6, or a negative count."""
    for v in value if isinstance(value, (list, tuple)) else ():
        if not isinstance(v, (int, float)):
            raise BadInput(f"{source}: give a list of numbers")
        in_reach(float(v), source)
    if isinstance(value, float) and not abs(value) <= 1e6:
        raise BadInput(f"{source}: give a number between -1e6 and 1e6")
    if isinstance(value, int) and value < 0:
        raise BadInput(f"{source}: give a whole number of 0 or more")
    return value


def grid(text, options):
    """lam=0:1:0.05 -> ("lam", [0, 0.05, ..., 1]);  density=0.1,0.2 -> ("density", [0.1, 0.2]).

    options   {key: default}: a key whose default is a whole number takes whole numbers
    """
    key, _, values = text.partition("=")
    whole, points = isinstance(options.get(key), int), []
    try:
        if ":" in values:
            low, high, step = (float(v) for v in values.split(":"))
            points = [round(low + i * step, 10) for i in range(int((high - low) / step + 1e-9) + 1)]
        else:
            points = [float(v) for v in values.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        pass
    if not points:
        raise BadInput(f"--sweep {text}: write KEY=FROM:TO:STEP such as lam=0:1:0.05, or KEY=a,b,c")
    if whole and any(v % 1 for v in points):
        raise BadInput(f"--sweep {text}: {key} takes whole numbers")
    return key, [in_reach(int(v) if whole else v, f"--sweep {text}") for v in points]


def names(text, what, choices):
    """"a,b" -> ["a", "b"]; BadInput for a name that is not among the choices."""
    given = [name for name in text.split(",") if name]
    if strange := [name for name in given if name not in choices]:
        raise unknown(what, strange[0], choices)
    return given


# flag -> (least, most, in words): every number of every command line
COUNTS = ("steps", "epochs", "every", "batch", "limit", "jobs", "rank", "size", "examples",
          "rounds", "width", "depth", "heads", "pairs", "reward_steps")
RANGES = dict.fromkeys(COUNTS, (1, 10 ** 9, "a whole number of 1 or more")) | {
    "lr": (1e-12, 1e30, "a number above 0"), "alpha": (1e-6, 1e6, "a number above 0"),
    "wd": (0, 1e3, "a number of 0 or more"), "lam": (-1e3, 1e3, "a number such as 0.3"),
    "seed": (0, 2 ** 32 - 1, "a whole number from 0 to 4294967295"),
    "millions": (0.1, 1e4, "a number above 0.1"), "points": (2, 1e3, "a whole number of 2 or more"),
    "temperature": (1e-2, 1e3, "a number above 0")}


def check_numbers(args):
    """BadInput for a number of the command line outside its range; NaN is outside every one."""
    for name, value in vars(args).items():
        least, most, words = RANGES.get(name, (None, None, None))
        if words and value is not None and not least <= value <= most:
            raise BadInput(f"--{name.replace('_', '-')} {value}: give {words}")


def device(name):
    """The device to use; "auto" is cuda where there is one. BadInput if it is not available."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name} is not available here: use auto or cpu") from None
    return name


def entry(name, title, summary, options):
    """One entry of --list: name, paper, one line, keys with defaults."""
    keys = ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
    return f"{name}\n    {title}\n    {summary}\n    keys: {keys}"


def describe(model, setting, names):
    """Print the settings, what is adapted and what is frozen; returns the parameter counts."""
    encoder = encoder_of(model)
    layers, reading = lora.adapters(encoder).values(), setting["linearize"]
    print("  ".join(f"{k} {v}" for k, v in setting.items() if not isinstance(v, dict | None)))
    print(f"{encoder.name}: width {encoder.width}, depth {len(encoder.blocks)}, heads "
          f"{encoder.blocks[0].heads}")
    print("adapter keys: " + ("  ".join(f"{k} {v}" for k, v in setting["hp"].items()) or "none"))
    ends = Counter(name.rpartition(".")[2] for name in names)
    print(f"adapted {len(names)} layers: " + ", ".join(f"{n} x {e}" for e, n in ends.items()))
    trainable = sum(p.numel() for p in lora.trainable(encoder).values())
    frozen = sum(p.numel() for p in encoder.parameters()) - trainable
    if setting["quantize"]:                                # what is in 4 bits is no parameter
        frozen += sum(layer.base.in_features * layer.base.out_features for layer in layers)
    print(f"frozen {frozen:,} parameters of the encoder; trainable {trainable:,}, "
          f"{trainable / frozen:.2%} of that "
          f"(closed form {sum(layer.trainable_count() for layer in layers):,})")
    what = {"off": "not linearized",
            "layer": "each layer expanded to first order (the paper's released code)",
            "model": "the whole model expanded to first order (the paper's equation)"}
    print(f"linearize {reading}: {what[reading]}")
    return trainable, frozen
