"""Clean drawings of every class of the drawn tasks: what a class is, without a picture of the task.

CLIP (2103.00020) classifies by prompts: "a photo of a dog", encoded, is the weight of the class
dog, and no labelled picture is needed. Ours are drawn: the digit alone in the middle, the pure
texture, the grating without glyphs. `--head prompts` makes the classifier of a task from their
features (encoders/heads.py). Clutter, noise, contrast and rotation are what fine-tuning learns.

Every function draws (n, 28, 28) for labels y (n,), as those of drawn.py do.
"""

import numpy as np

from tasks.drawn import SIZE, TASKS, blobs, finish, pips, segments, strokes, textures

SEED, EACH = 105, 40                                   # of the stream; drawings of a class
NOISE = 0.05


def glyphs(names):
    """draw(rng, y) of the glyph names[y], in the middle and almost upright."""
    lines = np.stack([segments(name) for name in names])

    def draw(rng, y):
        n = len(y)
        alpha = strokes(lines[y], scale=rng.uniform(0.4, 0.6, n), angle=rng.uniform(-0.2, 0.2, n),
                        width=rng.uniform(0.12, 0.22, n))
        return finish(rng, alpha, noise=NOISE)
    return draw


def texture_kinds(rng, y):
    """One texture alone."""
    n = len(y)
    ground = textures(rng, y, rng.uniform(0, np.pi, n), rng.uniform(3, 8, n))
    return finish(rng, np.zeros((n, SIZE, SIZE)), ground, noise=NOISE)


def stripes(rng, y):
    """The grating alone, at the middle of its bin."""
    n = len(y)
    grating = textures(rng, rng.integers(0, 2, n), y * np.pi / 12, rng.uniform(4, 8, n))
    return finish(rng, np.zeros((n, SIZE, SIZE)), 0.6 * grating, noise=NOISE)


def shapes(rng, y):
    """The outlined shape alone, at any rotation."""
    n = len(y)
    alpha = blobs(y, 0, 0, rng.uniform(0.5, 0.75, n), rng.uniform(0, 2 * np.pi, n),
                  outline=rng.uniform(0.1, 0.16, n))
    return finish(rng, alpha, noise=NOISE)


def count(rng, y):
    """The face of the die, upright and in the middle."""
    n = len(y)
    alpha = pips(y, rng.integers(0, 2, n), 0, 0, rng.uniform(0.42, 0.55, n),
                 rng.uniform(0.13, 0.19, n), 0)
    return finish(rng, alpha, noise=NOISE)


def relation(rng, y):
    """Ring and cross alone, on opposite sides of the middle, at the middle of the bin."""
    n, heading = len(y), y * np.pi / 4
    dx, dy = 0.42 * np.cos(heading), 0.42 * np.sin(heading)
    ring = blobs(np.full(n, 4), -dx, -dy, 0.24)
    cross = blobs(np.full(n, 3), dx, dy, 0.24, rng.uniform(0, 1.5, n))
    return finish(rng, np.maximum(ring, cross), noise=NOISE)


def arrows(rng, y):
    """The arrow alone, in the middle, at the middle of its bin."""
    n = len(y)
    alpha = strokes(np.broadcast_to(segments("arrow"), (n, 8, 4)), 0, 0, rng.uniform(0.3, 0.45, n),
                    y * np.pi / 6, width=rng.uniform(0.12, 0.2, n))
    return finish(rng, alpha, noise=NOISE)


PROMPTS = {"digits": glyphs("0123456789"), "letters": glyphs("AEFHKTXYPC"),
           "textures": texture_kinds, "stripes": stripes, "shapes": shapes, "count": count,
           "relation": relation, "arrows": arrows}


def sample(task):
    """Drawings (n, 28, 28) float32 of all classes of a task, EACH of one, and their labels (n,)."""
    labels = np.arange(TASKS[task][1]).repeat(EACH)
    return PROMPTS[task](np.random.default_rng([SEED, list(TASKS).index(task)]), labels), labels
