"""Every experiment's programs, compiled for TPUs and a GPU that are not here: `make accelerators`.

Networks are small, but of every kind, since a program's operations do not depend on widths. Memory is measured for the main
study's own network. Only its programs are compiled as for a user, since a TPU's compiler is slow.
"""

import importlib
import re

import jax
import jax.numpy as jnp
import pytest

from experiments.common import dry_run, grid, hardware
from ojax import _compat, online
from ojax.datasets.dataset import map_rows
from ojax.online import memory, samples
from tests.experiments.conducting import parse

# One process compiles all programs of a target, but for those that only repeat its operations. Each kind of operation is in
# one of the small studies; their combinations are not, as a program takes these compilers seconds.
TARGETS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("v5e:2x2", "h100")]
DEFAULTS = ("--learning_rate=1e-2", "--oja_rate=0,1e-3", "--seeds=2", "--num_train=64", "--num_test=50", "--evals=1")
WIDTHS = ("--widths=12,9",)
CHANNELS = ("--channels=3,2", "--strides=4,2", "--init=glorot_uniform", "--init_gain=1")
EPISODES = ("--side=7", "--widths=8", "--outputs=10", "--classes=3", "--images=4", "--queries=2", "--feedback=random")
SMALL = {
    "deep_mlp": (*WIDTHS, "--oja_half_life=inf,50"),
    "critical_period": (*WIDTHS, "--feedback=random", "--oja_half_life=50,inf"),
    "controls": ("--depth=5", "--init_gain=0.3", "--strength=1", "--rival=oja_in_hidden,sanger,residual,nlms"),
    "anatomy": ("--depth=5", "--init_gain=0.3", "--strength=1", "--rival=off_direction", "--measures=false"),
    "feedback_rivals": (*WIDTHS, "--feedback=random", "--strength=1", "--rival=layer_norm,normalized_weights"),
    "continual": (*WIDTHS, "--change=pixels", "--period=32", "--strength=1", "--rival=fading_again", "--evals=2"),
    "weight_init": (*WIDTHS, "--init=glorot_uniform,orthogonal", "--init_gain=1"),
    "engineering_tricks": (*WIDTHS, "--batch_size=8", "--optimizer=sgd", "--normalization=batch"),
    "engineering_tricks, Adam": (*WIDTHS, "--batch_size=1", "--optimizer=adam", "--normalization=none"),
    "feedback_alignment": (*WIDTHS, "--feedback=direct", "--measures=false"),
    "feedback_alignment, measured": ("--widths=9", "--feedback=random"),
    "data_scarcity": (*WIDTHS, "--evals=30,60"),
    "mechanism": WIDTHS,
    "convolution": (*CHANNELS, "--feedback=backprop", "--rule=oja_tied"),
    "convolution, direct": (*CHANNELS, "--feedback=direct", "--rule=oja"),
    "short_term_memory": (
        *("--units=8", "--delays=4", "--num_train=600", "--num_test=300", "--init_gain=0.98", "--input_scale=0.5"),
    ),
    "blank_rows": ("--units=8", "--delay=2", "--init=normal", "--init_gain=1"),
    "copy_task": ("--units=8", "--delay=2", "--length=2", "--init_gain=1"),
    "meta_learning": (*EPISODES, "--num_test=2", "--num_train=4", "--pool=all"),
    "transfer": (*EPISODES, "--num_test=2", "--num_train=4", "--place=home", "--rule=by_hand"),
}
COMPILED: dict[str, set[str]] = {}  # For each target, programs that trained, and operations of all programs.
NAMES_AND_SIZES = re.compile(r"while\(.*|dense<.*?>|array<i64.*?>|[%@#]\w+|\d+(?=x)|(?<=\[)[^]a-z\"]*(?=])")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


@pytest.fixture(scope="module", autouse=True)
def as_in_a_dry_run():
    """Prepares the process as a dry run does; not if this file is only imported."""
    hardware.prepare()
    jax.config.update("jax_enable_compilation_cache", False)


def study_of(name, *flags):
    question = importlib.import_module(f"experiments.{name.partition(',')[0]}").QUESTION
    own = [flag.name for flag in question.declared()]
    given = {flag[2:].partition("=")[0]: flag for flag in (*DEFAULTS, *flags)}  # The question's replace the default ones.
    used = [flag for flag_name, flag in given.items() if flag_name in own]
    settings = parse(question._replace(requires={}, verdict=None), *used)
    data = (question.data or question.task.load)(settings)
    # A TPU's compiler takes ten seconds for the order of all 8,000 images.
    few = map_rows(lambda leaf: leaf[: max(600, settings["num_train"])], data.train)
    return grid.make(question, settings, data._replace(train=few))


def programs_of(runs, target, num_runs=8):
    for part in runs.parts:
        for name, program in dry_run.lowered(part, num_runs, target).items():
            yield part, name, program


def operations(text):
    """Returns the operations of a program: each with its attributes, and its arrays' types and numbers of axes."""
    found = re.findall(r"= (\"?(?:stablehlo|chlo|sdy)\..*)", text)
    return {re.sub(r"(, |tensor<\w+>, )\1+", r"\1", NAMES_AND_SIZES.sub("", each)) for each in found}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SMALL)
def test_programs_compile_in_place_in_float32_and_without_a_word_between_runs(name, target):
    described = hardware.described(target)
    for part, program, lowered in programs_of(study_of(name, *SMALL[name]), described):
        known, written = COMPILED.setdefault(target, set()), lowered.as_text()
        # More is asserted of a program that trains: only an equal one is left out.
        new = {written} if program == "advance" else operations(written)
        if new <= known:
            continue
        known |= new | operations(written)
        text = lowered.compile(compiler_options=_compat.quick_options(described.mesh.devices.flat[0])).as_text()
        assert not any(re.search(rf" {word}(-start)?\(", text) for word in COLLECTIVES), (part.name, program)
        if program == "advance":
            in_place = re.findall(r"\{\d*\}: \(\d+, \{\}, m\w+-alias\)", text.partition("\n")[0])
            assert len(in_place) == len(jax.tree.leaves(lowered.out_info)), part.name  # All of the state.
            for product in re.findall(r" f32\S* (?:convolution|dot)\(.*", text):
                assert "operand_precision={highest,highest}" in product, (part.name, product)


@pytest.mark.parametrize("name", SMALL)
def test_learners_have_a_lowering_on_both_platforms(name):
    runs = study_of(name, *SMALL[name])
    for part in runs.parts:
        data = memory._as_shapes((part.dataset.train, part.dataset.test))
        learner = part.learner
        hyper = dict.fromkeys(part.hyper, jax.ShapeDtypeStruct((), jnp.float32))
        seed = jax.ShapeDtypeStruct((), jnp.uint32)
        params, state = jax.eval_shape(lambda hyper, seed: online.initial_params(learner, hyper, seed), hyper, seed)  # noqa: B023
        sample, test = samples.shapes(part.plan, *data)
        both = (params, state)

        def once(params, state, sample, hyper, learner=learner):
            opt_state = learner.optimizer(hyper).init(params)
            return online.step(learner, hyper, params, state, opt_state, sample).params

        for function, arguments in ((once, (*both, sample, hyper)), (learner.evaluate, (*both, test, hyper))):
            jax.export.export(jax.jit(function), platforms=["tpu", "cuda"])(*arguments)


# The most MiB of temporaries of `advance`, five layers with windows: on JAX 0.10, and on newer ones, whose XLA copies the
# first layer's kernels on an H100. The line through 64 and 128 runs is checked at the largest number of runs.
@pytest.mark.parametrize(("target", "num_runs", "most"), [("v5e:1x1", 128, (120, 145)), ("h100", 1024, (200, 700))])
def test_what_the_main_study_takes_is_near_the_line_through_two_numbers_of_runs(target, num_runs, most):
    runs = study_of("deep_mlp", "--depth=5", "--seeds=512", "--num_train=5000", "--num_test=2000")
    (part,), described = runs.parts, hardware.described(target)
    arguments = (part.learner, tuple(part.hyper), runs.dataset, part.plan)
    with jax.default_matmul_precision("highest"):
        needed = memory.needs(*arguments, described.mesh.devices.flat[0]) if num_runs > memory._MANY else [None] * 3
    copy = memory.bytes_of_copy(*arguments)
    for need, (_, name, lowered) in zip(needed, programs_of(runs, described, num_runs), strict=True):
        if need is None and name != "advance":
            continue  # The line goes through this number of runs.
        compiled = lowered.compile()
        if name == "advance":
            assert compiled.memory_analysis().temp_size_in_bytes < most[jax.__version_info__ >= (0, 11)] * 2**20
        if need is not None:
            found = need.shared + num_runs * (need.per_run - copy)
            assert 0.9 < found / sum(memory.sizes(compiled)) < 1.1, name
