"""The figures of python -m rlhf."""

from analysis import plots


def over_optimisation(results, start, path):
    """True reward and what the reward model says, against the KL to the anchor, for every beta;
    on val, as the log of the policies. start  what the anchor does there."""
    lines = {}
    for name, row in results.items():
        for kind in ("proxy", "true") if name != "anchor" else ():
            at = 2 if kind == "proxy" else 3                        # the columns of the log
            lines[f"{kind}, {name}"] = [(0.0, start[kind]), *((r[1], r[at]) for r in row["log"])]
    plots.curves(lines, "KL(policy || anchor), nats a text", "mean reward",
                 "What the reward model says, and what people like",
                 "A point is a tenth of the training. Where the proxy still rises and the true "
                 "reward does not, the policy has found what the pairs do not tell.", path)


def front(rows, rewards, path):
    """Two true rewards of the policies between two runs, and of the anchor and other rules."""
    line = [tuple(row[2:]) for row in rows if row[0] == "interpolation"]
    lines = {"soups": line} | {row[0]: [tuple(row[2:])] for row in rows
                               if row[0] != "interpolation"}
    plots.curves(lines, f"true reward, {rewards[0]}", f"true reward, {rewards[1]}",
                 "Rewarded soups", "The ends of the line are two policies, each tuned on one "
                 "reward; between them nothing was trained.", path)
