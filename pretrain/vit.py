"""Make checkpoints/vit from nothing: one ViT that names the attributes of random scenes.

    loss = sum over attributes a of weight_a * cross_entropy(W_a feature, label_a)

A scene is one symbol (40 random glyphs or 8 shapes) with dots and sometimes a small companion, on a
weak texture. Digits, letters and arrows are never drawn. The attribute heads are thrown away; the
encoder is what the eight tasks of drawn.py fine-tune, as CLIP is what the papers fine-tune. Discs
and rings have a rotation that nobody can see: they are 4 % of the scenes, and noise to that head.
"""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from encoders.vit import ViT
from pretrain.optimizer import OneCycle
from tasks import drawn

GLYPHS = 40
ROUND = 20_000                                      # scenes drawn at a time, each seen twice
HELD_OUT = 5_000                                    # scenes for the accuracies printed at the end

# attribute -> (classes, weight in the loss); a label of -1 means undefined in this scene
ATTRIBUTES = {
    "symbol": (GLYPHS + 8, 2), "x": (4, 1), "y": (4, 1), "size": (3, 1), "rotation": (4, 1),
    "pen": (2, 1), "outlined": (2, 1), "dots": (5, 1), "companion": (8, 1),
    "texture": (8, 1), "orientation": (8, 1), "frequency": (3, 1), "amplitude": (3, 1),
}


def bins(value, low, high, n):
    """Which of n equal bins of [low, high) a value falls in."""
    return np.clip(((value - low) / (high - low) * n).astype(np.int64), 0, n - 1)


def scenes(rng, n):
    """n scenes (n, 28, 28) float32 and their labels {attribute: (n,) int64}."""
    alphabet = drawn.lattice_walks(np.random.default_rng(7), GLYPHS)
    symbol, label = rng.integers(0, GLYPHS + 8, n), {}
    is_shape = symbol >= GLYPHS
    x, y = rng.uniform(-0.5, 0.5, (2, n))
    size, angle = rng.uniform(0.35, 0.65, n), rng.uniform(-np.pi / 4, np.pi / 4, n)
    pen, outlined = rng.uniform(0.1, 0.25, n), is_shape & (rng.random(n) < 0.5)
    alpha = np.zeros((n, drawn.SIZE, drawn.SIZE), np.float32)
    glyph, shape = np.flatnonzero(~is_shape), np.flatnonzero(is_shape)
    alpha[glyph] = drawn.strokes(alphabet[symbol[glyph]], x[glyph], y[glyph], size[glyph] * 0.9,
                                 angle[glyph], width=pen[glyph])
    alpha[shape] = drawn.blobs(symbol[shape] - GLYPHS, x[shape], y[shape], size[shape] * 1.1,
                               angle[shape], np.where(outlined, 0.6 * pen, 0)[shape])
    label |= {"symbol": symbol, "x": bins(x, -0.5, 0.5, 4), "y": bins(y, -0.5, 0.5, 4),
              "size": bins(size, 0.35, 0.65, 3),
              "pen": np.where(is_shape, -1, bins(pen, 0.1, 0.25, 2)),
              "rotation": bins(angle, -np.pi / 4, np.pi / 4, 4),
              "outlined": np.where(is_shape, outlined, -1)}

    dots = rng.integers(0, 5, n)                     # small discs anywhere, also on the symbol
    for i in range(4):
        px, py = rng.uniform(-0.9, 0.9, (2, n))
        has = np.flatnonzero(i < dots)
        dot = drawn.blobs(np.zeros(len(has), int), px[has], py[has], rng.uniform(0.09, 0.14))
        alpha[has] = np.maximum(alpha[has], dot)

    heading, has = rng.uniform(0, 2 * np.pi, n), np.flatnonzero(rng.random(n) < 0.3)
    reach = (size + 0.3)[has]                        # a small shape beside the symbol, in the frame
    x2 = np.clip(x[has] + reach * np.cos(heading[has]), -0.8, 0.8)
    y2 = np.clip(y[has] + reach * np.sin(heading[has]), -0.8, 0.8)
    small = drawn.blobs(rng.integers(0, 8, len(has)), x2, y2, 0.2, rng.uniform(0, 6, len(has)))
    alpha[has] = np.maximum(alpha[has], small)
    companion = np.full(n, -1)
    direction = np.arctan2(y2 - y[has], x2 - x[has]) % (2 * np.pi)     # as clipped to the frame
    companion[has] = bins((direction + np.pi / 8) % (2 * np.pi), 0, 2 * np.pi, 8)
    label |= {"dots": dots, "companion": companion}

    texture, turn = rng.integers(0, 8, n), rng.uniform(0, np.pi, n)
    frequency, amplitude = rng.uniform(2, 6, n), rng.uniform(0.1, 0.5, n)
    back = amplitude[:, None, None] * drawn.textures(rng, texture, turn, frequency)
    striped = np.isin(texture, (0, 1, 5))    # only these show one orientation
    label |= {"texture": texture, "amplitude": bins(amplitude, 0.1, 0.5, 3),
              "orientation": np.where(striped, bins(turn, 0, np.pi, 8), -1),
              "frequency": np.where(texture < 6, bins(frequency, 2, 6, 3), -1)}
    images = drawn.finish(rng, alpha, back, rng.uniform(0.6, 1, n), rng.uniform(0, 0.12, n))
    return images, label


def answers(logits):
    """{attribute: its logits (n, classes)} out of those of all heads."""
    return dict(zip(ATTRIBUTES, logits.split([n for n, _ in ATTRIBUTES.values()], 1)))


def tensors(rng, n):
    """`scenes` as torch tensors, images (n, 1, 28, 28)."""
    images, label = scenes(rng, n)
    return torch.from_numpy(images)[:, None], {a: torch.from_numpy(v) for a, v in label.items()}


def make(width, depth, heads):
    """A new ViT and its configuration."""
    config = dict(image=28, patch=7, channels=1, width=width, depth=depth, heads=heads,
                  hidden=4 * width, mean=[0.5], std=[0.5])
    return ViT(**config), config


def pretrain(model, *, steps, lr, seed=0, batch=128, wd=0.05):
    """Train model and attribute heads with AdamW and a one-cycle schedule; return the heads."""
    head = torch.nn.Linear(model.width, sum(n for n, _ in ATTRIBUTES.values()))
    optimizer = OneCycle([model, head], steps, lr, wd)
    order, rng = torch.Generator().manual_seed(seed), np.random.default_rng([seed, 1])
    bar = tqdm(total=steps, desc="pretraining", mininterval=1)
    while bar.n < steps:
        images, label = tensors(rng, ROUND)
        twice = torch.cat([torch.randperm(ROUND, generator=order) for _ in range(2)])
        for rows in twice.split(batch):
            if bar.n == steps:
                break
            losses = {a: F.cross_entropy(part, label[a][rows], ignore_index=-1)
                      for a, part in answers(head(model(images[rows]))).items()}
            loss = sum(ATTRIBUTES[a][1] * value for a, value in losses.items())
            optimizer.descend(loss)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.2f}", symbol=f"{losses['symbol'].item():.2f}",
                            texture=f"{losses['texture'].item():.2f}", refresh=False)
    bar.close()
    return head


@torch.no_grad()
def accuracy(model, head, seed):
    """{attribute: share of right answers among the new scenes where it is defined}."""
    images, label = tensors(np.random.default_rng([seed, 2]), HELD_OUT)
    logits = torch.cat([head(model(chunk)) for chunk in images.split(500)])
    right = {a: part.argmax(1) == label[a] for a, part in answers(logits).items()}
    return {a: r[label[a] >= 0].float().mean().item() for a, r in right.items()}
