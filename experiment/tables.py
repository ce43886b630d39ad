"""The table of merged models: rows of scoring.py, of one or several seeds, as text."""

import statistics

from experiment import cli


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
    header = ["model", "chosen on val", *([] if costs else tasks), "absolute", "normalised",
              "share", *(["worst task", "s", "MiB"] if costs else [])]
    return cli.table(header, lines)


def chosen(row):
    """The settings of a row, as text."""
    return ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                     for k, v in row.get("chosen", {}).items() if v is not None)
