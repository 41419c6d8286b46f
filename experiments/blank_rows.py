"""Does Oja's rule help a recurrent network to classify an image that it read some steps ago?

An image is read row by row, followed by 0 to 60 empty rows, and classified in the last step. One image is one sample. Plain
SGD with backpropagation through all steps sees each image once. Oja's rule acts on the input and the recurrent weights; its
changes are averaged over the steps. The recurrent weights W start from normal weights of gain 0.5 and 1, or orthogonal.
Each method has its own best rates.
"""

import numpy as np

from experiments.common import app, figures, statistics, verdicts
from experiments.common.statistics import METHODS
from experiments.tasks import sequences


def keep(run):
    """Keeps orthogonal weights only at gain 1."""
    return run["init"] == "normal" or run["init_gain"] == 1


def compared(results):
    """Returns the tuned comparison without and with Oja's rule, per initial scheme, gain and delay."""
    return statistics.comparisons(statistics.final_rows(results), "init", "init_gain", "delay", sort=False)


def named(init, gain):
    """Returns the initial recurrent weights in words."""
    return "orthogonal weights" if init == "orthogonal" else f"{init} weights, gain {gain:g}"


def verdict(results):
    """Judges the gain per network and delay; the evidence compares normal weights with Oja to orthogonal ones without."""
    found = compared(results)
    parts, evidence, rivals = [], [], []
    for (init, gain, delay), comparison in found.items():
        title = f"{named(init, gain)}, delay {delay}"
        parts.append(verdicts.part_of_comparison(title, comparison))
        evidence.append(verdicts.sentence(title, comparison))
        rival = found.get(("orthogonal", 1.0, delay))
        if init == "normal" and gain == 1 and rival is not None:
            more = statistics.gain(comparison.hybrid, rival.backprop)
            rivals.append(f"Delay {delay}, gain of normal weights with Oja over orthogonal ones without: {more.signed()}.")
    return verdicts.verdict_of(parts, [*evidence, *rivals])


def accuracy_by_delay(results):
    """Draws test accuracy against the delay, one panel per kind of initial weights, each method at its own best rates."""
    found = compared(results)
    starts = list(dict.fromkeys((init, gain) for init, gain, _ in found))
    figure, panels = figures.make_panels(1, len(starts), width=2.2, height=2.0, sharey=True)
    for axes, start in zip(panels[0], starts, strict=True):
        delays = [delay for *network, delay in found if tuple(network) == start]
        places = np.arange(len(delays))
        for method, shift in zip(METHODS, (-0.08, 0.08), strict=True):
            scores = [found[*start, delay].of(method).scores for delay in delays]
            for place, values in zip(places, scores, strict=True):
                figures.interval_bar(axes, place + shift, values, method)
            axes.plot(places + shift, [np.mean(values) for values in scores], color=figures.COLOURS[method])
        axes.set_xticks(places, [f"{delay}" for delay in delays])
        axes.set(title=f"{named(*start)}\neach method at its own best", xlabel="steps without input")
    panels[0][0].set(ylabel="test accuracy", ylim=(0, 1.02))
    figures.legend(figure, panels[0][0])
    return figure


QUESTION = app.Question(
    module="experiments.blank_rows",
    question=__doc__,
    abstract=("improves short-term memory in recurrent networks"),
    claim="With Oja's rule a recurrent network better classifies an image that it read some steps ago.",
    verdict=verdict,
    task=sequences.TASK,
    varies=("delay", "init", "init_gain"),
    figures={
        "accuracy_by_delay": accuracy_by_delay,
        "accuracy_plane": figures.accuracy_plane,
    },
    defaults={
        "init": "normal,orthogonal",
        "init_gain": "0.5,1",
        "learning_rate": "1e-4,3e-4,1e-3,3e-3",
        "oja_rate": "0,1e-3,1e-2,1e-1",
        "num_train": 4000,
        "evals": "4",
    },
    keep=keep,
)

if __name__ == "__main__":
    app.run(QUESTION)
