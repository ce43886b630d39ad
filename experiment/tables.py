"""The table of merged models: rows of scoring.py, of one or several groups, as text."""

import statistics


def report(groups, costs):
    """The table of merged models: the mean over seeds, and the spread where there are several.

    groups  [(values, {name of the row: row})]: groups of equal values ((key, value), ...) are seeds
            of each other; a column per key, in its order
    costs   False: a column per task; True: the worst task, seconds and memory of each rule
    """
    seeds, tasks, lines = {}, [], []
    rank = lambda group: [(v is not None, isinstance(v, str), v) for _, v in group[0]]
    for values, rows in sorted(groups, key=rank):
        seeds.setdefault(values, []).append(rows)
        tasks += [] if costs else [task for task in rows["base"]["scores"] if task not in tasks]
    for values, same in seeds.items():
        for name in same[0]:
            rows = [rows[name] for rows in same if name in rows]
            settings = " / ".join(dict.fromkeys(map(chosen, rows))) or "-"
            lines.append([name, *(str(v) for _, v in values), settings, *scores(rows, tasks)])
            lines[-1] += spent(rows) if costs else []
    header = ["model", *(key for key, _ in groups[0][0]), "settings", *tasks, "absolute",
              "normalised", "share", *(["worst task", "s", "MiB"] if costs else [])]
    return table(header, lines)


def scores(rows, tasks):
    """Cells of one model: the mean over seeds of every task, then mean ± spread of summaries."""
    def cell(values, spread):
        more = f" ± {statistics.stdev(values):.3f}" if spread and len(values) > 1 else ""
        return f"{statistics.fmean(values):.3f}{more}" if values else "-"

    by_task = [[row["scores"][t] for row in rows if t in row["scores"]] for t in tasks]
    summaries = [[row[k] for row in rows] for k in ("absolute", "normalised", "share")]
    return [*(cell(v, False) for v in by_task), *(cell(v, True) for v in summaries)]


def spent(rows):
    """Cells of one model: its worst task, seconds, MiB."""
    first = rows[0]
    return [f"{first['worst']} {scores(rows, [first['worst']])[0]}",
            *(f"{statistics.fmean(row[k] for row in rows) / unit:.1f}" if k in first else "-"
              for k, unit in (("seconds", 1), ("bytes", 2 ** 20)))]


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
