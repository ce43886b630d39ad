"""The figures that eval.py and bench draw. matplotlib is optional: without it, a line says so.

Every figure has axes with units and a caption below that says what to see.
"""

import statistics
import textwrap
from pathlib import Path

from encoders.safetensors import replacing
from errors import BadInput
from experiment import cli


def folder(path):
    """The folder for figures, as a path; BadInput if matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--plot needs matplotlib: pip install -r requirements-figures.txt "
                       "(all tables are printed without it)") from None
    matplotlib.use("Agg")
    cli.check_place("--plot", Path(path, "figure"))
    return Path(path)


def canvas(width=6.4, height=4.6):
    """(figure, axes) of one panel."""
    from matplotlib import pyplot
    return pyplot.subplots(figsize=(width, height), layout="constrained")


def save(figure, axes, x_label, y_label, title, caption, path):
    """Label the axes, add the caption and write the file."""
    from matplotlib import pyplot
    axes.set_xlabel(x_label), axes.set_ylabel(y_label), axes.set_title(title)
    figure.supxlabel(textwrap.fill(caption, 88), fontsize=8.5, ha="left", x=0.02)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)
    print(f"wrote {path}")


def matrix(values, names, title, caption, path, low=None, high=None):
    """A heat map of a (T, T) matrix with its numbers, rows and columns named."""
    figure, axes = canvas(6.4, 6.2)
    image = axes.imshow(values.numpy(), cmap="viridis", vmin=low, vmax=high)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if value < middle else "black")
    figure.colorbar(image, shrink=0.8)
    save(figure, axes, "", "", title, caption, path)


def plane(values, lams, names, title, caption, path, low=None, high=None):
    """A map over two coefficients: values (n, n), rows lam of names[0], columns of names[1]."""
    figure, axes = canvas(5.6, 5.2)
    edge = (lams[1] - lams[0]) / 2
    extent = (lams[0] - edge, lams[-1] + edge) * 2
    image = axes.imshow(values.numpy(), origin="lower", extent=extent, cmap="magma_r", vmin=low,
                        vmax=high)
    axes.plot([0], [0], "o", color="tab:cyan", label="pretrained")
    axes.plot([0, 1], [1, 0], "^", color="tab:green", label="single tasks")
    axes.plot([1], [1], "s", color="tab:blue", label="sum of both")
    axes.legend(fontsize=8, loc="upper left")
    figure.colorbar(image, shrink=0.85)
    x_label, y_label = (f"coefficient of {name}" for name in (names[1], names[0]))
    save(figure, axes, x_label, y_label, title, caption, path)


def curves(lines, x_label, y_label, title, caption, path, log=False):
    """Lines {label: [(x, y), ...] or [(x, y, low, high), ...]}, the latter with a band."""
    figure, axes = canvas()
    for label, points in lines.items():
        x, y, *band = zip(*points)
        drawn, = axes.plot(x, y, marker="o", markersize=3, label=label)
        if band:
            axes.fill_between(x, *band, alpha=0.15, color=drawn.get_color())
    if log:
        axes.set_xscale("log", base=2), axes.set_yscale("log", base=2)
    axes.grid(alpha=0.3), axes.legend(fontsize=8)
    save(figure, axes, x_label, y_label, title, caption, path)


def coefficient(rows, path):
    """Accuracy on val over lam, from rows {eval.Group: {rule: row}}: a line per method and rule."""
    scores = {}                                              # {label: {lam: [one of each seed]}}
    for group in rows:
        for rule, row in rows[group].items():
            label = f"{group.label()} {rule}".strip()
            curve = [(choice["lam"], score) for choice, score in row.get("val_curve", ())
                     if "lam" in choice]
            for lam in sorted({lam for lam, _ in curve}):
                best = max(score for at, score in curve if at == lam)     # over other swept keys
                scores.setdefault(label, {}).setdefault(lam, []).append(best)
    lines = {label: [(lam, statistics.fmean(seeds), min(seeds), max(seeds))
                     for lam, seeds in points.items()] for label, points in scores.items()}
    score = "normalised " * (next(iter(rows)).choose == "normalised") + "validation accuracy"
    curves(lines, "coefficient lam", score, "Merging coefficient",
           "Mean accuracy of the merged model over its tasks. A line is the mean of the seeds, its "
           "band goes from the lowest to the highest. A flat line forgives a wrong lam.", path)


def points(places, names, labels, title, caption, path):
    """Named points (T, 2); labels of the two axes."""
    figure, axes = canvas()
    axes.scatter(*zip(*places))
    for (x, y), name in zip(places, names):
        axes.annotate(name, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=9)
    axes.axhline(0, color="gray", linewidth=0.6), axes.axvline(0, color="gray", linewidth=0.6)
    save(figure, axes, *labels, title, caption, path)


def scatter(groups, x_label, y_label, title, caption, path):
    """Points (x, y) of several groups {label: [(x, y), ...]}, with the point (1, 1) marked."""
    figure, axes = canvas(5.6, 5.2)
    for (label, places), marker in zip(groups.items(), "os^Dvx"):
        axes.scatter(*zip(*places), marker=marker, s=18, alpha=0.7, label=label)
    axes.plot([1], [1], "k*", markersize=12, label="both single models")
    low = min(v for places in groups.values() for place in places for v in place)
    axes.plot([low, 1], [low, 1], color="gray", linewidth=0.6)
    axes.grid(alpha=0.3), axes.legend(fontsize=8)
    save(figure, axes, x_label, y_label, title, caption, path)
