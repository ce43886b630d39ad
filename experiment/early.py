"""Early stopping: a run is scored while it trains, and the weights of one of these steps are kept.

    last    of the last step
    best    of the step with the best accuracy on val
    trace   of the step with the largest log tr F,   F the Fisher information of the trained
            parameters, on the first EXAMPLES inputs of train (rules/fisher.py)

Of equal steps the first is kept. With several tasks, accuracy and log tr F are means over them.
Differs  the run goes on to its last step, so that its log shows what stopping there would miss.
"""

import statistics

from torch.func import functional_call

import lora
from encoders.heads import place
from experiment import run_folder
from linearize import LinearizedModel, encoder_of
from rules.fisher import log_traces

EXAMPLES = 50


class Watch:
    """What is seen of a model while it trains, and the state to keep.

    score   () -> accuracy on val;   sets   (head, inputs, labels) per task, of train
    kept    {} or {"step", "value", "trained", "buffers"}: part of the progress of a run
    """

    def __init__(self, setting, score, sets):
        self.every, self.keep, self.trace = (setting[k] for k in ("every", "keep", "trace"))
        self.score, self.sets, self.kept = score, sets, {}
        self.columns = ("val", "log_trace") if self.trace else ("val",)

    def look(self, model, step, total):
        """The cells of `columns` after step 1, 2, ...; empty unless it is the N-th or the last."""
        if step % self.every and step < total:
            return ("",) * len(self.columns)
        seen = (self.score(), log_trace(model, self.sets)) if self.trace else (self.score(),)
        value = {"last": None, "best": seen[0], "trace": seen[-1]}[self.keep]
        if value is not None and (not self.kept or value > self.kept["value"]):
            trained, buffers = run_folder.state(model)
            self.kept = {"step": step, "value": value, "trained": trained, "buffers": buffers}
        return seen

    def restore(self, model):
        """Give the model the state that was kept; {"kept_step": its step}, or {} of the last."""
        if not self.kept:
            return {}
        run_folder.set_tensors(model, self.kept["trained"], self.kept["buffers"], "the kept step")
        print(f"kept step {self.kept['step']}, the best by --keep {self.keep}")
        return {"kept_step": self.kept["step"]}


def log_trace(model, sets):
    """log tr F of the trained parameters, natural logarithm, a mean over the tasks."""
    params = {k: v.detach() for k, v in lora.trainable(encoder_of(model)).items()}
    at = model.at if isinstance(model, LinearizedModel) else \
        lambda params, x: functional_call(model, params, (x,))
    like, traces = next(iter(params.values())), []
    for head, inputs, labels in sets:
        x = place(inputs[:EXAMPLES], like)
        logits = lambda params, x, head=head: head(at(params, x))
        traces.append(log_traces(logits, params, x, labels[:EXAMPLES])[0])
    return statistics.fmean(traces)
