"""One kind of error for everything a user can get wrong.

A module raises `BadInput` with one sentence that names the thing and the remedy; `train.py` and
`eval.py` print that sentence and exit with code 2. Anything else is a bug and keeps its traceback.
"""

import difflib


class BadInput(ValueError):
    """Something given cannot be used; the message names it and says what to do."""


def unknown(kind, given, known):
    """The error for a name that does not exist: what was probably meant, and what exists."""
    close = difflib.get_close_matches(str(given), list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return BadInput(f"unknown {kind} {given!r}: {hint}known: {', '.join(known)}")
