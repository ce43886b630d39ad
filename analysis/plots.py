"""The figures of eval.py, bench and rlhf. matplotlib is optional: without it, a line says so.

Every figure has axes with units and a caption below that says what to see.
"""

import statistics
import textwrap
from pathlib import Path

from encoders.safetensors import replacing
from errors import BadInput
from experiment import cli

WORDS = {"full": "full fine-tuning", "lora": "LoRA", "l_lora.model": "L-LoRA, whole model",
         "l_lora.layer": "L-LoRA, layer by layer",
         "lora_gentle": "LoRA, small learning rate", "lora_large": "LoRA, large learning rate",
         "lora_plus": "LoRA+", "rslora": "rsLoRA",
         "dora": "DoRA", "pissa": "PiSSA", "milora": "MiLoRA"}
# of Okabe and Ito: colour-blind readers tell them apart. A seventh line has a colour again, and a
# marker of its own
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000"), "os^DvxP"


def words(label):
    """A label of eval.py for a title: "lora lr=0.001" is "LoRA, lr 0.001"."""
    method, *rest = label.split(" ")
    return ", ".join([WORDS.get(method, method), *(text.replace("=", " ") for text in rest)])


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


def canvas(width=6.4, height=4.6, panels=1):
    """(figure, axes) of one panel, or an array of axes side by side."""
    from matplotlib import pyplot
    return pyplot.subplots(1, panels, figsize=(width, height), layout="constrained")


def save(figure, axes, x_label, y_label, title, caption, path):
    """Label the axes, add the caption and write the file."""
    from matplotlib import pyplot
    axes.set_xlabel(x_label), axes.set_ylabel(y_label), axes.set_title(title)
    line = int(13.75 * figure.get_figwidth())                                # letters
    figure.supxlabel(textwrap.fill(caption, line, break_on_hyphens=False), fontsize=8.5,
                     ha="left", x=0.02)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
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


def sheet(picture, names, path):
    """Grey pictures (h, w) in [0, 1], in rows of equal height, the rows named."""
    figure, axes = canvas(9, 4.1)
    axes.imshow((picture * 15).round(), cmap="gray", interpolation="nearest")     # 16 greys: small
    height = len(picture) / len(names)
    axes.set_yticks([(i + 0.5) * height for i in range(len(names))], names, fontsize=9)
    axes.set_xticks([]), axes.tick_params(length=0), axes.spines[:].set_visible(False)
    save(figure, axes, "", "", "The drawn tasks",
         "On the left what is to be recognised, on the right four prompts, from which the frozen "
         "classifier is made.", path)


def planes(maps, lams, names, title, caption, path, low=None, high=None):
    """Maps over two coefficients, {title: values (n, n)}, on one scale; rows are the lam of
    names[0], columns that of names[1]."""
    figure, panels = canvas(1.4 + 4.2 * len(maps), 5.2, len(maps))
    panels = [panels] if len(maps) == 1 else panels
    edge = (lams[1] - lams[0]) / 2
    extent = (lams[0] - edge, lams[-1] + edge) * 2
    for axes, (label, values) in zip(panels, maps.items()):
        image = axes.imshow(values, origin="lower", extent=extent, cmap="magma_r", vmin=low,
                            vmax=high)
        axes.plot([0], [0], "o", color="tab:cyan", label="pretrained")
        axes.plot([0, 1], [1, 0], "^", color="tab:green", label="single tasks")
        axes.plot([1], [1], "s", color="tab:blue", label="sum of both")
        axes.set_title(label), axes.set_xlabel(f"coefficient of {names[1]}")
    panels[0].legend(fontsize=8, loc="upper left")
    figure.colorbar(image, ax=panels, shrink=0.85)
    figure.suptitle(title)
    save(figure, panels[0], f"coefficient of {names[1]}", f"coefficient of {names[0]}",
         next(iter(maps)), caption, path)


def bars(heights, names, y_label, title, caption, path, bottom=0.0):
    """Bars side by side, all from `bottom`: heights {label: for each name, of every seed}."""
    figure, axes = canvas(8, 4.8)
    width = 0.8 / len(heights)
    for i, (label, groups) in enumerate(heights.items()):
        x = [j + (i - (len(heights) - 1) / 2) * width for j in range(len(names))]
        axes.bar(x, [statistics.fmean(values) - bottom for values in groups], width, bottom,
                 label=label, color=COLOURS[i % len(COLOURS)])
        axes.vlines(x, list(map(min, groups)), list(map(max, groups)), color="0.5", linewidth=1.5)
    axes.set_xticks(range(len(names)), names), axes.axhline(bottom, color="black", linewidth=0.8)
    axes.grid(axis="y", alpha=0.3), axes.set_axisbelow(True), axes.legend(fontsize=9)
    save(figure, axes, "", y_label, title, caption, path)


def curves(lines, x_label, y_label, title, caption, path, log=""):
    """Lines {label: [(x, y), ...] or [(x, y, low, high), ...]}, the latter with bars, which stand
    a little apart. log: the axes with a logarithmic scale, "x", "y" or "xy"."""
    figure, axes = canvas()
    for i, (label, points) in enumerate(lines.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        x, y, *ends = zip(*points)
        axes.plot(x, y, marker=marker, markersize=4, label=label, color=colour)
        if ends:
            aside = (i - (len(lines) - 1) / 2) * (max(x) - min(x)) / 150
            axes.vlines([v + aside for v in x], *ends, color=colour, linewidth=1)
    for name in log:
        getattr(axes, f"set_{name}scale")("log", base=2)
        getattr(axes, f"{name}axis").set_major_formatter("{x:g}")
    axes.grid(alpha=0.3), axes.legend(fontsize=9)
    save(figure, axes, x_label, y_label, title, caption, path)


def dots(rows, marks, x_label, title, caption, path):
    """A line for every row, upwards: {name: a number for each of the marks}."""
    figure, axes = canvas(6.4, 1.6 + 0.21 * len(rows))
    y, values = range(len(rows)), list(rows.values())
    axes.hlines(y, list(map(min, values)), list(map(max, values)), color="0.8", zorder=0)
    for i, (mark, x) in enumerate(zip(marks, zip(*values))):
        axes.plot(x, y, MARKERS[i], color=COLOURS[i], label=mark)
    axes.set_yticks(y, list(rows)), axes.grid(axis="x", alpha=0.3), axes.legend(fontsize=9)
    save(figure, axes, x_label, "", title, caption, path)


def coefficient(rows, path):
    """Accuracy on val over lam, from rows {eval.Group: {rule: row}}: a line per method and rule."""
    scores = {}                                     # {(group, rule): {lam: [one of each seed]}}
    for group in rows:
        for rule, row in rows[group].items():
            curve = [(choice["lam"], score) for choice, score in row.get("val_curve", ())
                     if "lam" in choice]
            for lam in sorted({lam for lam, _ in curve}):
                best = max(score for at, score in curve if at == lam)     # over other swept keys
                scores.setdefault((group.label(), rule), {}).setdefault(lam, []).append(best)
    rules = list(dict.fromkeys(rule for _, rule in scores))
    lines = {words(label if label and len(rules) == 1 else f"{label} {rule}".strip()):
             [(lam, statistics.fmean(seeds), min(seeds), max(seeds)) for lam, seeds in at.items()]
             for (label, rule), at in scores.items()}
    score = "normalised " * (next(iter(rows)).choose == "normalised") + "validation accuracy"
    title = f"Merging coefficient, {' and '.join(rules)}".replace("_", " ")
    curves(lines, "coefficient lam", score, title,
           "Mean accuracy of the merged model over its tasks. A line is the mean of the seeds, its "
           "bars go from the lowest to the highest. A flat line forgives a wrong lam.", path)


def points(places, names, labels, title, caption, path):
    """Named points (T, 2); labels of the two axes."""
    figure, axes = canvas()
    axes.scatter(*zip(*places))
    for (x, y), name in zip(places, names):
        axes.annotate(name, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=9)
    axes.axhline(0, color="gray", linewidth=0.6), axes.axvline(0, color="gray", linewidth=0.6)
    save(figure, axes, *labels, title, caption, path)
