"""Does Oja's rule help a recurrent network to repeat bits after a delay?

The network reads five bits. After a delay of 10 to 100 steps without input, a cue tells it to repeat them in their order.
Its score is the share of bits that are right, 0.5 by chance. One sequence is one sample. Plain SGD with backpropagation
through all steps sees a new sequence each time. Oja's rule acts on the input and the recurrent weights; its changes are
averaged over the steps. The recurrent weights W start from normal weights of gain 0.5 and 1, or orthogonal. Each method has
its own best rates.
"""

from experiments import blank_rows
from experiments.common import app, figures
from experiments.common.results import Score
from experiments.tasks import sequences

QUESTION = app.Question(
    module="experiments.copy_task",
    question=__doc__,
    abstract=("improves short-term memory in recurrent networks"),
    claim="With Oja's rule a recurrent network repeats bits after longer delays.",
    verdict=blank_rows.verdict,
    task=sequences.TASK._replace(score=Score(chance=0.5)),
    varies=("delay", "init", "init_gain"),
    figures={
        "accuracy_by_delay": blank_rows.accuracy_by_delay,
        "accuracy_plane": figures.accuracy_plane,
    },
    defaults={
        "dataset": sequences.COPY,
        "delay": "10,30,100",
        "init": "normal,orthogonal",
        "init_gain": "0.5,1",
        "learning_rate": "3e-4,1e-3,3e-3,1e-2",
        "oja_rate": "0,1e-3,1e-2,1e-1",
        "num_train": 4000,
        "evals": "4",
    },
    keep=blank_rows.keep,
)

if __name__ == "__main__":
    app.run(QUESTION)
