"""One kind of error for everything a user can get wrong, and the reader of small files.

A module raises `BadInput` with one sentence that names the thing and the remedy; a command prints
that sentence and exits with code 2 (cli.run). Anything else is a bug and keeps its traceback.
"""

import difflib
import json


class BadInput(ValueError):
    """Something given cannot be used; the message names it and says what to do."""


def unknown(kind, given, known):
    """The error for a name that does not exist: what was probably meant, and what exists."""
    close = difflib.get_close_matches(str(given), list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return BadInput(f"unknown {kind} {given!r}: {hint}known: {', '.join(known)}")


def read_json(path, remedy):
    """The JSON object in a file, a pathlib.Path; BadInput if it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path} cannot be read ({reason}): {remedy}") from None
    return value
