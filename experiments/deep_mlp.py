"""Does Oja's rule let a deep network learn online, one sample at a time, without tuning?

The main question of https://arxiv.org/abs/2408.08408: networks of 5 and 10 layers, Glorot-uniform weights, plain SGD at
batch size 1, each sample seen once. Every learning rate is tried with pure backprop (Oja rate 0) and with the hybrid
rule; the two are compared at equal learning rates and, separately, each at its own best.
"""

from experiments.common import app, config, figures

config.define_flags(workdir="results/deep_mlp")

FIGURES = {
    "learning_curves": figures.learning_curves,
    "accuracy_plane": figures.accuracy_plane,
    "backprop_vs_hybrid": figures.backprop_vs_hybrid,
}

if __name__ == "__main__":
    app.run("experiments.deep_mlp", FIGURES)
