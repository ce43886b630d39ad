"""What the commands share: reporting errors, reading names and `key=value`, printing tables."""

import ast
import sys

import torch

from errors import BadInput, unknown


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


def names(text, kind, known):
    """"a,b" -> ["a", "b"]; BadInput for a name that is not known."""
    found = [name for name in text.split(",") if name]
    for name in found:
        if name not in known:
            raise unknown(kind, name, known)
    return found


def positive(args, *names):
    """BadInput for a number of the command line that is given and below 1."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise BadInput(f"--{name} {getattr(args, name)}: give a positive number")


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
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [i > 0 for i in range(len(header))]
    line = lambda row: "| " + " | ".join(c.rjust(w) if r else c.ljust(w)
                                         for c, w, r in zip(row, widths, right)) + " |"
    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right)) + "|"
    return "\n".join([line(header), rule, *[line(row) for row in cells[1:]]])


def entry(name, title, summary, options):
    """One entry of --list: name, paper, one line, keys with defaults."""
    keys = ", ".join(f"{k}={v}" for k, v in options.items()) or "none"
    return f"{name}\n    {title}\n    {summary}\n    keys: {keys}"
