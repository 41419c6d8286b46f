"""Sentences on the page of results that people write. `results.py` prints an answer only where the records agree."""

# The questions that the page answers first, and the comparisons on new seeds that answer them. README shows the first of
# each.
IN_SHORT = {
    "Does Oja's rule improve on pure backprop in deep networks, learning online, as the paper claims?": (
        "10 layers, Glorot: constant Oja over no rule",
        "15 layers, Glorot: constant Oja over no rule",
        "20 layers, Glorot: constant Oja over no rule",
        "10 layers, Glorot: fading Oja over no rule",
        "20 layers, He: fading Oja over no rule",
    ),
    "What does the rule cost in five layers? (A positive number is a loss with the rule.)": (
        "5 layers, Glorot: no rule over constant Oja",
        "5 layers, Glorot: no rule over fading Oja",
    ),
    "With backprop in deep networks, does anything simpler do as well?": (
        "15 layers, Glorot: gain homeostasis over constant Oja in hidden layers",
        "20 layers: He without a rule over Glorot with fading Oja",
    ),
    "Under random feedback, does the rule in the hidden layers do better than anything simpler?": (
        "10 layers, Glorot, random feedback: constant Oja in hidden layers over layer norm",
        "10 layers, Glorot, random feedback: constant Oja in hidden layers over gain homeostasis",
    ),
    "And the rule in all layers, with random or direct feedback?": (
        "10 layers, Glorot, random feedback: constant Oja over layer norm",
        "10 layers, Glorot, random feedback: constant Oja over normalized weights",
        "20 layers, Glorot, random feedback: constant Oja over gain homeostasis",
        "10 layers, Glorot, random feedback, inputs x 0.3: layer norm over constant Oja",
        "10 layers, Glorot, direct feedback: layer norm over constant Oja",
        "5 layers, Glorot, random feedback: layer norm over constant Oja",
    ),
}
# Answers in words, in the order of the questions, each with what it rests on: in how many columns its comparisons hold. An
# answer is printed only if that is so in the records.
ANSWERS = (
    (
        "In fifteen and twenty layers of Glorot's weights yes, where enough is learned. In ten layers a constant rate, "
        "which is the paper's, gains nothing clear on Fashion-MNIST, and on MNIST and EMNIST its gain holds with one of "
        "two sets of seeds; with a fading rate the gain holds in all columns.",
        ("2 of 6", "4 of 6", "4 of 6", "6 of 6", "4 of 6"),
    ),
    (
        "With a constant rate it loses some 0.03 to 0.06 on Fashion-MNIST and EMNIST. With a fading rate it clearly "
        "loses on EMNIST alone.",
        ("4 of 6", "2 of 6"),
    ),
    (
        "On Fashion-MNIST and MNIST yes. In fifteen layers gain homeostasis does better than the rule, in three of four "
        "columns. In twenty layers He's weights do better than Glorot's with the rule, in three of four columns. On EMNIST "
        "gain homeostasis learns nothing, and twenty layers of He's weights without a rule learn too little to judge.",
        ("3 of 6", "3 of 6"),
    ),
    (
        "In ten layers of Glorot's weights without stress yes, in all columns, for the two methods that were tested on "
        "new seeds (layer norm on the second set alone). Other methods score lower in `feedback_rivals` and `controls`, "
        "which are exploratory.",
        ("3 of 3", "6 of 6"),
    ),
    (
        "Under random feedback, in ten layers, it does better than normalized weights, and mostly better than layer norm. "
        "Layer norm does better with direct feedback and, except on EMNIST, with small inputs or in five layers. In twenty "
        "layers the rule does better than gain homeostasis on Fashion-MNIST; on MNIST and EMNIST both learn too little to "
        "judge (on one set of MNIST gain homeostasis is ahead).",
        ("4 of 6", "6 of 6", "2 of 6", "4 of 6", "6 of 6", "4 of 6"),
    ),
)
# Studies that were run again in another way: what differs, by their names.
VARIANTS = {
    "networks/feedback_rivals": "5 to 20 layers, random and direct feedback",
    "longer/feedback_rivals": "60,000 samples of MNIST, labels permuted once, two rivals",
    "longer_emnist/feedback_rivals": "67,680 samples of EMNIST, labels permuted once, two rivals",
    "wide/continual": "the main study's widths, 5 and 10 layers, fewer rivals",
    "upgd/continual": "200,000 samples of MNIST, with UPGD",
    "upgd_l2/continual": "300,000 samples of MNIST, with L2",
    "upgd_mnist/continual": "a million samples of MNIST, one setting of each method",
    "upgd_mnist_nine/continual": "200,000 samples of MNIST, nine settings of each method",
    "upgd_emnist_one/continual": "a million samples of EMNIST, one setting of each method",
    "upgd_emnist/continual": "half a million samples of EMNIST, nine settings of each method",
}
# What the name of the data does not say.
DATA = {
    "uniform": " `uniform` are independent random numbers from -0.5 to 0.5.",
    "copy": " `copy` are five random bits, to be repeated after a delay.",
    "idx:emnist47": " `idx:emnist47` is a balanced subset of EMNIST by-merge with its 47 classes, 480 training and 100 "
    "test images each. Studies score the first 2,000 test images, studies of streams 500. The official balanced split "
    "(`--dataset=emnist/balanced`) was not run.",
}
# Above the table of comparisons on new seeds, and above README's.
FROZEN = (
    "Each comparison and its settings were fixed before its seeds ran. A cell is empty if those seeds had already run when "
    "the comparison was fixed. "
    "*Holds* is after Holm's correction over all comparisons on these seeds. The rule is in all layers unless a name says "
    "otherwise. One method may have two settings here, as comparisons come from different studies. A setting "
    "at the edge of its study's grid does not make a comparison undecided here."
)
HEADLINES = (
    "Gains in accuracy on new seeds or images, at settings fixed before; *holds* is after Holm's correction, other words "
    "are among the [terms](docs/how/rule.md#how-results-are-measured). `embedded` is the part of Fashion-MNIST that ships "
    "with ojax, `idx:emnist47` a part of EMNIST by-merge:"
)
