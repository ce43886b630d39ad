"""The built-in suite: eight small image tasks and the pretraining scenes, drawn in memory.

Grey 28x28 pictures, float32 in [0, 1], made of three primitives, each batched over images in numpy:

    strokes    polylines -> distance of every pixel to the nearest segment -> soft threshold
    blobs      eight shapes as signed distance functions, filled or outlined
    textures   eight kinds of background, with orientation, frequency and phase

Coordinates run from -1 to 1, x to the right, y down; a pixel is 2/28 wide. A drawing is a coverage
`alpha` (n, 28, 28) in [0, 1]. The scenes of `pretrain/vit.py` use the same primitives but never a
digit, a letter or an arrow, and less noise, rotation and clutter: each task is a domain shift of
its own. `sample` cuts the stream of a task into chunks of 500 images, each from its own generator
`default_rng([seed, task, start])`: a longer sample begins with the same pictures.
"""

import numpy as np

SIZE = 28
PIXEL = 2 / SIZE
CHUNK = 500
SLOTS = 8                                               # segments of a glyph
SHAPES = ["disc", "square", "triangle", "cross", "ring", "star", "bar", "crescent"]
TEXTURES = ["sine", "square_wave", "product", "checker", "rings", "thin_lines", "noise", "blocks"]

# Glyphs are polylines over lattice points "column row", columns 0-2 and rows 0-4 of [-1, 1]^2.
GLYPHS = {
    "0": "00 20 24 04 00", "1": "01 10 14", "2": "00 20 22 02 04 24", "3": "00 20 12 22 24 04",
    "4": "10 03 23 21 24", "5": "20 00 02 22 24 04", "6": "20 00 04 24 22 02", "7": "00 20 14",
    "8": "00 20 24 04 00 02 22", "9": "22 02 00 20 24 04",
    "A": "04 10 24 23 03", "E": "20 00 04 24 02 22", "F": "20 00 04 02 22",
    "H": "00 04 02 22 20 24", "K": "00 04 02 20 02 24", "T": "00 20 10 14", "X": "00 24 12 20 04",
    "Y": "00 12 20 12 14", "P": "04 00 20 22 02", "C": "20 00 04 24", "arrow": "14 10 02 10 22",
}
# The faces of a die, places "column row" on a 3x3 lattice.
FACES = ["11", "00 22", "00 11 22", "00 02 20 22", "00 02 20 22 11", "00 01 02 20 21 22"]

X, Y = np.meshgrid(*[((np.arange(SIZE) + 0.5) * PIXEL - 1).astype(np.float32)] * 2)      # centres


def segments(name):
    """The glyph `name` as (8, 4) segments x0 y0 x1 y1; short glyphs repeat their last one."""
    points = np.array([[int(p[0]) - 1, int(p[1]) / 2 - 1] for p in GLYPHS[name].split()])
    lines = np.concatenate([points[:-1], points[1:]], 1)
    return lines[np.minimum(np.arange(SLOTS), len(lines) - 1)].astype(np.float32)


def lattice_walks(rng, n):
    """n random glyphs (n, 8, 4): 4 to 6 strides between neighbours on a 3x3 lattice."""
    strides, points = rng.integers(4, 7, n), [rng.integers(-1, 2, (n, 2))]
    for _ in range(SLOTS):
        here = points[-1]
        step = rng.integers(-1, 2, (n, 2))
        step = np.where(np.abs(here + step) > 1, -step, step)
        still = (step == 0).all(1)
        step[still, 0] = np.where(here[still, 0] > 0, -1, 1)
        points.append(here + step)
    lines = np.concatenate([np.stack(points[:-1], 1), np.stack(points[1:], 1)], 2)
    keep = np.minimum(np.arange(SLOTS)[None], strides[:, None] - 1)
    return np.take_along_axis(lines, keep[:, :, None], 1).astype(np.float32)


def columns(n, *values):
    """Numbers or arrays (n,) as float32 (n, 1, 1), to be used with pictures."""
    return [np.broadcast_to(np.asarray(v, np.float32), (n,))[:, None, None] for v in values]


def strokes(lines, x=0, y=0, scale=0.5, angle=0, shear=0, width=0.12):
    """Coverage (n, 28, 28) of segments (n, s, 4), scaled, sheared, rotated, then moved to (x, y).

    Every other argument is a number or (n,); `width` is the full width of the pen.
    """
    n = len(lines)
    x, y, scale, angle, shear, width = columns(n, x, y, scale, angle, shear, width)
    p = lines.reshape(n, -1, 2)
    u, v = scale * (p[..., :1] + shear * p[..., 1:]), scale * p[..., 1:]
    p = np.concatenate([x + u * np.cos(angle) - v * np.sin(angle),
                        y + u * np.sin(angle) + v * np.cos(angle)], 2).reshape(n, -1, 2, 2)
    a, ab = p[:, :, 0], p[:, :, 1] - p[:, :, 0]                      # (n, s, 2) start and direction
    nearest = np.full((n, SIZE, SIZE), 9, np.float32)
    for s in range(a.shape[1]):
        ax, ay, dx, dy = (t[:, s, i, None, None] for t in (a, ab) for i in (0, 1))
        t = ((X - ax) * dx + (Y - ay) * dy) / np.maximum(dx * dx + dy * dy, 1e-6)
        t = np.clip(t, 0, 1)
        nearest = np.minimum(nearest, (X - ax - t * dx) ** 2 + (Y - ay - t * dy) ** 2)
    return np.clip((width / 2 - np.sqrt(nearest)) / PIXEL + 0.5, 0, 1)


def signed_distance(shape, u, v):
    """Distance to SHAPES[shape] of unit size in its own frame, negative inside."""
    r = np.hypot(u, v)
    box = lambda w, h: np.maximum(np.abs(u) - w, np.abs(v) - h)
    match shape:
        case 0: return r - 0.9
        case 1: return box(0.8, 0.8)
        case 2: return np.maximum(v - 0.6, 0.866 * np.abs(u) - 0.5 * v - 0.55)
        case 3: return np.minimum(box(0.95, 0.3), box(0.3, 0.95))
        case 4: return np.abs(r - 0.72) - 0.22
        case 5: return r - 0.62 - 0.36 * np.cos(5 * np.arctan2(u, v))
        case 6: return box(1.0, 0.32)
        case 7: return np.maximum(r - 0.95, 0.8 - np.hypot(u - 0.5, v))


def blobs(shape, x=0, y=0, size=0.5, angle=0, outline=0):
    """Coverage (n, 28, 28) of SHAPES[shape], shape (n,); `outline` > 0 draws a rim that wide."""
    x, y, size, angle, outline = columns(len(shape), x, y, size, angle, outline)
    u = ((X - x) * np.cos(angle) + (Y - y) * np.sin(angle)) / size
    v = ((Y - y) * np.cos(angle) - (X - x) * np.sin(angle)) / size
    d = np.empty_like(u)
    for k in range(len(SHAPES)):
        d[shape == k] = signed_distance(k, u[shape == k], v[shape == k])
    d = d * size
    d = np.where(outline > 0, np.abs(d + outline / 2) - outline / 2, d)
    return np.clip(0.5 - d / PIXEL, 0, 1)


def pips(face, shape, x, y, reach, size, angle):
    """Coverage (n, 28, 28) of a die's face, 0 to 5 for one to six pips; `reach` from its middle to
    its rows. All (n,) or numbers."""
    places = [FACES[f].split() for f in range(6)]
    lattice = np.array([[[int(c) - 1 for c in p] for p in (row + row[:1] * 6)[:6]]
                        for row in places])[face]                                    # (n, 6, 2)
    u, v = np.moveaxis(lattice * np.reshape(reach, (-1, 1, 1)), 2, 0)
    cos, sin = np.cos(angle), np.sin(angle)
    alpha = np.zeros((len(face), SIZE, SIZE), np.float32)
    for i in range(6):
        alpha = np.maximum(alpha, blobs(shape, x + u[:, i] * cos - v[:, i] * sin,
                                        y + u[:, i] * sin + v[:, i] * cos, size, angle))
    return alpha


def textures(rng, texture, angle, frequency):
    """Backgrounds (n, 28, 28) in [0, 1], texture (n,); frequency in cycles over the picture."""
    out = np.empty((len(texture), SIZE, SIZE), np.float32)
    for k, name in enumerate(TEXTURES):
        rows = np.flatnonzero(texture == k)
        phase, cross_phase = rng.uniform(0, 2 * np.pi, (2, len(rows), 1, 1))
        a, f = (np.asarray(v)[rows, None, None] for v in (angle, frequency))
        wave = np.sin(np.pi * f * (X * np.cos(a) + Y * np.sin(a)) + phase)
        cross = np.sin(np.pi * f * (Y * np.cos(a) - X * np.sin(a)) + cross_phase)
        match name:
            case "sine": out[rows] = 0.5 + 0.5 * wave
            case "square_wave": out[rows] = wave > 0
            case "product": out[rows] = 0.5 + 0.5 * wave * cross
            case "checker": out[rows] = wave * cross > 0
            case "rings": out[rows] = 0.5 + 0.5 * np.sin(np.pi * f * np.hypot(X, Y) + phase)
            case "thin_lines": out[rows] = wave > 0.75
            case "noise": out[rows] = rng.random((len(rows), SIZE, SIZE))
            case "blocks": out[rows] = rng.random((len(rows), 7, 7)).repeat(4, 1).repeat(4, 2)
    return out


def finish(rng, alpha, background=0.0, contrast=1.0, noise=0.1):
    """Lay coverage over a background in [0, 1], set contrast and random polarity, add noise."""
    contrast, noise = columns(len(alpha), contrast, noise)
    c = background * (1 - alpha) + alpha
    c = 0.5 + (c - 0.5) * contrast * rng.choice([-1, 1], (len(alpha), 1, 1))
    c = c + noise * rng.standard_normal(c.shape, np.float32)
    return np.clip(c, 0, 1).astype(np.float32)


def backdrop(rng, n, amplitude):
    """A random texture scaled to [0, amplitude], of any kind and orientation."""
    texture = rng.integers(0, 8, n)
    return amplitude * textures(rng, texture, rng.uniform(0, np.pi, n), rng.uniform(2, 6, n))


def apart(rng, n, least):
    """Two points (n, 2) each in [-.65, .65]^2 at least `least` apart, by redrawing."""
    a, b = rng.uniform(-0.65, 0.65, (2, n, 2))
    while (close := np.hypot(*(a - b).T) < least).any():
        a[close], b[close] = rng.uniform(-0.65, 0.65, (2, close.sum(), 2))
    return a, b


# ---- the eight tasks: draw(rng, y) -> (n, 28, 28), y the labels ---------------------------------


def digits(rng, y):
    """The digit in the middle, between two others that the frame cuts off."""
    n, glyph = len(y), np.stack([segments(str(d)) for d in range(10)])
    pose = lambda: dict(y=rng.uniform(-0.15, 0.15, n), scale=rng.uniform(0.35, 0.5, n),
                        angle=rng.uniform(-0.25, 0.25, n), shear=rng.uniform(-0.3, 0.3, n),
                        width=rng.uniform(0.12, 0.2, n))
    alpha = strokes(glyph[y], x=rng.uniform(-0.12, 0.12, n), **pose())
    for side in (-1, 1):
        neighbour = glyph[rng.integers(0, 10, n)]
        alpha = np.maximum(alpha, strokes(neighbour, x=side * rng.uniform(1.05, 1.25, n), **pose()))
    return finish(rng, alpha, contrast=rng.uniform(0.5, 1, n), noise=rng.uniform(0.04, 0.12, n))


def letters(rng, y):
    """One of AEFHKTXYPC, turned by up to 57 degrees, on a strong texture."""
    n, glyph = len(y), np.stack([segments(c) for c in "AEFHKTXYPC"])
    x, v = rng.uniform(-0.25, 0.25, (2, n))
    alpha = strokes(glyph[y], x=x, y=v, scale=rng.uniform(0.4, 0.6, n), angle=rng.uniform(-1, 1, n),
                    shear=rng.uniform(-0.2, 0.2, n), width=rng.uniform(0.12, 0.22, n))
    return finish(rng, alpha, backdrop(rng, n, 0.45), noise=rng.uniform(0.05, 0.15, n))


def texture_kinds(rng, y):
    """The dominant one (.8) of two blended textures, noisy and of any contrast."""
    n = len(y)
    other = (y + rng.integers(1, 8, n)) % 8
    look = lambda texture: textures(rng, texture, rng.uniform(0, np.pi, n), rng.uniform(3, 8, n))
    blend = 0.8 * look(y) + 0.2 * look(other)
    return finish(rng, np.zeros((n, SIZE, SIZE)), blend, rng.uniform(0.5, 1, n),
                  rng.uniform(0.1, 0.2, n))


def stripes(rng, y):
    """Orientation of a grating in 15-degree bins, under two glyphs and strong noise."""
    n = len(y)
    angle = (y + rng.uniform(-0.4, 0.4, n)) * np.pi / 12
    texture = rng.integers(0, 2, n)                                  # sine or square wave
    grating = 0.6 * textures(rng, texture, angle, rng.uniform(4, 8, n))
    alpha = np.zeros((n, SIZE, SIZE))
    for _ in range(2):
        x, v = rng.uniform(-0.6, 0.6, (2, n))
        alpha = np.maximum(alpha, strokes(lattice_walks(rng, n), x=x, y=v, scale=0.25, width=0.14))
    return finish(rng, alpha, grating, noise=rng.uniform(0.2, 0.4, n))


def shapes(rng, y):
    """An outlined shape at any rotation, struck through by two thin lines."""
    n = len(y)
    x, v = rng.uniform(-0.25, 0.25, (2, n))
    alpha = blobs(y, x, v, rng.uniform(0.5, 0.75, n), rng.uniform(0, 2 * np.pi, n),
                  outline=rng.uniform(0.1, 0.16, n))
    line = np.broadcast_to(np.float32([[-2, 0, 2, 0]]), (n, 1, 4))
    for _ in range(2):
        x, v = rng.uniform(-0.4, 0.4, (2, n))
        alpha = np.maximum(alpha, strokes(line, x, v, 1, rng.uniform(0, np.pi, n), width=0.07))
    return finish(rng, alpha, contrast=rng.uniform(0.5, 1, n), noise=rng.uniform(0.05, 0.2, n))


def count(rng, y):
    """The face of a die with one to six pips, discs or squares, turned by up to 23 degrees."""
    n = len(y)
    x, v = rng.uniform(-0.2, 0.2, (2, n))
    alpha = pips(y, rng.integers(0, 2, n), x, v, rng.uniform(0.42, 0.55, n),
                 rng.uniform(0.13, 0.19, n), rng.uniform(-0.4, 0.4, n))
    return finish(rng, alpha, contrast=rng.uniform(0.5, 1, n), noise=rng.uniform(0.08, 0.2, n))


def relation(rng, y):
    """Direction from the ring to the cross, in eight bins, beside a clutter glyph on texture."""
    n = len(y)
    heading = (y + rng.uniform(-0.35, 0.35, n)) * np.pi / 4
    reach = rng.uniform(0.35, 0.5, n)
    dx, dy = reach * np.cos(heading), reach * np.sin(heading)
    cx, cy = rng.uniform(-0.2, 0.2, (2, n))
    alpha = blobs(np.full(n, 4), cx - dx, cy - dy, 0.24)
    alpha = np.maximum(alpha, blobs(np.full(n, 3), cx + dx, cy + dy, 0.24, rng.uniform(0, 1.5, n)))
    side = rng.choice([-1, 1], n)                                    # clutter to the left or right
    clutter = strokes(lattice_walks(rng, n), cx - side * dy * 1.5, cy + side * dx * 1.5, 0.16,
                      width=0.1)
    alpha = np.maximum(alpha, clutter)
    return finish(rng, alpha, backdrop(rng, n, 0.4), noise=rng.uniform(0.05, 0.12, n))


def arrows(rng, y):
    """Heading of an arrow in twelve bins, on noise, beside a clutter glyph."""
    n, glyph = len(y), segments("arrow")
    (x, v), (cx, cy) = (p.T for p in apart(rng, n, 0.75))
    heading = (y + rng.uniform(-0.35, 0.35, n)) * np.pi / 6
    alpha = strokes(np.broadcast_to(glyph, (n, 8, 4)), x * 0.5, v * 0.5, rng.uniform(0.3, 0.45, n),
                    heading, width=rng.uniform(0.12, 0.2, n))
    alpha = np.maximum(alpha, strokes(lattice_walks(rng, n), cx, cy, 0.18, width=0.1))
    noise = 0.25 * rng.random((n, SIZE, SIZE))
    return finish(rng, alpha, noise, rng.uniform(0.6, 1, n), rng.uniform(0.05, 0.15, n))


# name -> (draw, number of classes); the order fixes each task's random stream
TASKS = {"digits": (digits, 10), "letters": (letters, 10), "textures": (texture_kinds, 8),
         "stripes": (stripes, 12), "shapes": (shapes, 8), "count": (count, 6),
         "relation": (relation, 8), "arrows": (arrows, 12)}


def sample(task, n, seed):
    """n images (n, 28, 28) float32 and labels (n,) int64 of a task; whole chunks, then cut to n."""
    draw, classes = TASKS[task]
    images, labels = [], []
    for start in range(0, n, CHUNK):
        rng = np.random.default_rng([seed, list(TASKS).index(task), start])
        labels.append(rng.integers(0, classes, CHUNK))
        images.append(draw(rng, labels[-1]))
    return np.concatenate(images)[:n], np.concatenate(labels)[:n]
