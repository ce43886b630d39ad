"""Three schemes for a lecture: W0 + s B A, the tangent, theta_0 + lam sum tau."""

import math

from analysis import plots

FROZEN, TRAINED, OTHER = "#BBBBBB", plots.COLOURS[1], plots.COLOURS[0]


def low_rank(axes):
    """W0 (out, in) frozen, plus B (out, r) times A (r, in)."""
    boxes = [(0, 0, 4, 3, FROZEN, "$W_0$\nfrozen\n(out, in)"),
             (5.5, 0, 0.7, 3, TRAINED, "B"), (7, 2.3, 4, 0.7, TRAINED, "A")]
    for x, y, width, height, colour, text in boxes:
        axes.fill([x, x + width, x + width, x], [y, y, y + height, y + height], color=colour)
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=12)
    for x, y, text in ((4.75, 1.5, "+ s"), (5.85, -0.35, "(out, r)"), (9, 1.95, "(r, in)")):
        axes.text(x, y, text, ha="center", va="center", fontsize=12 if text == "+ s" else 10)
    axes.set_xlim(-0.3, 11.3), axes.set_ylim(-1.2, 4), axes.set_aspect("equal"), axes.axis("off")
    axes.set_title("LoRA: $W_0 + s\\,BA$")


def tangent(axes, theta0=0.6, tau=1.3):
    """A function of one weight, and its first-order expansion around the pretrained weight."""
    f, slope = math.tanh, 1 - math.tanh(theta0) ** 2
    x = [i / 50 - 0.6 for i in range(191)]
    axes.plot(x, [f(v) for v in x], color=OTHER, label=r"network $f(\theta)$")
    axes.plot(x, [f(theta0) + slope * (v - theta0) for v in x], color=TRAINED, linestyle="--",
              label=r"$f(\theta_0) + J\,(\theta - \theta_0)$")
    axes.plot([theta0], [f(theta0)], "o", color="black")
    axes.annotate(r"$\theta_0$ pretrained", (theta0, f(theta0)), xytext=(8, -14),
                  textcoords="offset points")
    at = theta0 + tau
    axes.vlines([at], f(at), f(theta0) + slope * tau, color="gray", linestyle=":")
    axes.annotate("what linearizing\nleaves out", (at, (f(at) + f(theta0) + slope * tau) / 2),
                  xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xticks([]), axes.set_yticks([]), axes.legend(loc="upper left", fontsize=9)
    axes.set_xlabel(r"weights $\theta$"), axes.set_ylabel("output")
    axes.set_title("L-LoRA trains on the tangent")


def arithmetic(axes, tau_a=(1.0, 0.25), tau_b=(0.2, 0.9), lam=0.7):
    """Two task vectors from the pretrained weights, their sum times lam, and the average."""
    def arrow(end, colour, start=(0, 0), style="-"):
        axes.annotate("", end, start, arrowprops=dict(arrowstyle="->", color=colour, lw=2,
                                                      linestyle=style, shrinkA=0, shrinkB=0))

    both = tau_a[0] + tau_b[0], tau_a[1] + tau_b[1]
    merged, average = ((v * both[0], v * both[1]) for v in (lam, 0.5))
    arrow(tau_a, OTHER), arrow(tau_b, OTHER), arrow(merged, TRAINED)
    arrow(both, FROZEN, tau_a, ":"), arrow(both, FROZEN, tau_b, ":")
    marks = [((0, 0), r"$\theta_0$", (-16, -12)), (tau_a, r"$\theta_0 + \tau_1$", (6, -12)),
             (tau_b, r"$\theta_0 + \tau_2$", (-30, 8)), (average, "average", (10, -10)),
             (merged, "merged", (-48, 4))]
    for place, text, aside in marks:
        axes.plot(*place, "o", color="black", markersize=4)
        axes.annotate(text, place, xytext=aside, textcoords="offset points")
    axes.set_xlim(-0.25, 1.75), axes.set_ylim(-0.2, 1.3), axes.axis("off")
    axes.set_title(r"Task arithmetic: $\theta_0 + \lambda(\tau_1 + \tau_2)$")


def draw(path):
    """The three side by side."""
    figure, panels = plots.canvas(13.5, 4.2, 3)
    for axes, scheme in zip(panels, (low_rank, tangent, arithmetic)):
        scheme(axes)
    plots.save(figure, panels[0], "", "", panels[0].get_title(),
               "Orange is what is trained, or what is merged. W0 stays as it was pretrained. s is "
               "alpha / rank, J the derivative of the output by the weights at the pretrained "
               "weights, tau what fine-tuning added.", path)
