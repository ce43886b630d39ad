"""The table of merged models: rows of scoring.py, of one or several seeds, as text."""

import statistics


def report(seeds, costs):
    """The table of one or several seeds: mean, and the spread where there are several.

    seeds   {name of the row: row} each
    costs   False: a column per task; True: the worst task, seconds and memory of each rule
    """
    def cell(values):
        if len(values) == 1:
            return f"{values[0]:.3f}"
        return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"

    tasks, lines = list(seeds[0]["base"]["scores"]), []
    for name, first in seeds[0].items():
        rows = [rows[name] for rows in seeds]
        score = lambda task: f"{statistics.fmean(row['scores'][task] for row in rows):.3f}"
        line = [name, " / ".join(dict.fromkeys(map(chosen, rows))) or "-"]
        line += [] if costs else [score(task) for task in tasks]
        line += [cell([row[k] for row in rows]) for k in ("absolute", "normalised", "share")]
        if costs:
            line.append(f"{first['worst']} {score(first['worst'])}")
            line += [f"{statistics.fmean(row[k] for row in rows) / unit:.1f}" if k in first else "-"
                     for k, unit in (("seconds", 1), ("bytes", 2 ** 20))]
        lines.append(line)
    header = ["model", "settings", *([] if costs else tasks), "absolute", "normalised",
              "share", *(["worst task", "s", "MiB"] if costs else [])]
    return table(header, lines)


def chosen(row):
    """The settings of a row, as text."""
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                     for k, v in row.get("chosen", {}).items() if v is not None)


def table(header, rows):
    """An aligned Markdown table; numbers to the right, three decimals."""
    text = lambda v: f"{v:.3f}" if isinstance(v, float) else str(v)
    cells = [header, *[[text(v) for v in row] for row in rows]]
    first, *widths = [max(map(len, column)) for column in zip(*cells)]
    top, *lines = [" | ".join([left.ljust(first), *map(str.rjust, row, widths)])
                   for left, *row in cells]
    rule = "|" + "-" * (first + 2) + "|" + "".join("-" * (w + 1) + ":|" for w in widths)
    return "\n".join([f"| {top} |", rule, *(f"| {line} |" for line in lines)])
