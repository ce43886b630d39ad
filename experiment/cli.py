"""What the commands share: reporting errors, reading names and `key=value`, printing tables."""

import ast
import sys
from collections import Counter

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
        print("interrupted: finished runs are kept, --resume continues this one", file=sys.stderr)
        sys.exit(130)


def keywords(pairs, options, owner):
    """["density=0.2"] -> {"density": 0.2}, each key checked against {key: default} of `owner`."""
    out = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if key not in options:
            raise unknown(f"key for {owner}", key, options or ["(none)"])
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        default = options[key]
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if not equals or (default is not None and type(value) is not type(default)):
            raise BadInput(f"--set {pair}: {key} takes a {type(default).__name__} such as "
                           f"{key}={default}")
        out[key] = value
    return out


def grid(text):
    """lam=0:1:0.05 -> ("lam", [0, 0.05, ..., 1]);  density=0.1,0.2 -> ("density", [0.1, 0.2])."""
    key, _, values = text.partition("=")
    try:
        if ":" in values:
            low, high, step = (float(v) for v in values.split(":"))
            count = round((high - low) / step)
            return key, [round(low + i * step, 10) for i in range(count + 1)]
        return key, [float(v) for v in values.split(",")]
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"--sweep {text}: write KEY=FROM:TO:STEP such as lam=0:1:0.05, "
                       "or KEY=a,b,c") from None


def names(text, what, choices):
    """"a,b" -> ["a", "b"]; BadInput for a name that is not among the choices."""
    given = [name for name in text.split(",") if name]
    if strange := [name for name in given if name not in choices]:
        raise unknown(what, strange[0], choices)
    return given


def positive(args, *names):
    """BadInput for a number of the command line that is given and below 1."""
    for name in names:
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInput(f"--{name} {value}: give a positive number")


def device(name):
    """The device to use; "auto" is cuda where there is one. BadInput if it is not available."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name} is not available here: use auto or cpu") from None
    return name


def table(header, rows):
    """An aligned Markdown table; numbers to the right, three decimals."""
    text = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
    cells = [header, *[[text(v) for v in row] for row in rows]]
    first, *widths = [max(map(len, column)) for column in zip(*cells)]
    top, *lines = [" | ".join([left.ljust(first), *map(str.rjust, row, widths)])
                   for left, *row in cells]
    rule = "|" + "-" * (first + 2) + "|" + "".join("-" * (w + 1) + ":|" for w in widths)
    return "\n".join([f"| {top} |", rule, *(f"| {line} |" for line in lines)])


def entry(name, title, summary, options):
    """One entry of --list: name, paper, one line, keys with defaults."""
    keys = ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
    return f"{name}\n    {title}\n    {summary}\n    keys: {keys}"


def describe(model, setting, names):
    """Print the settings, what is adapted and what is frozen; returns the parameter counts."""
    encoder = encoder_of(model)
    layers, reading = lora.adapters(encoder).values(), setting["linearize"]
    print("  ".join(f"{k} {v}" for k, v in setting.items() if v is not None and k != "hp"))
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
