"""The path of a training and its reported reason; training with a JAX whose programs cannot be read."""

import warnings

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import Primitive

import ojax
from ojax import _compat, online
from ojax.online import checks, fast, first_layer
from ojax.trees import map_named
from tests.ojax.online.networks import RATES, mlp_learner, oja_sgd, small_data

pytestmark = pytest.mark.compiled_quickly
PLAN = online.Plan(40, (40,))


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    def forget():
        fast._found.cache_clear()
        first_layer._check_words.cache_clear()

    forget()
    yield
    forget()


def trained(learner, **options):
    """Returns the final scores and weights of a run."""
    training = online.train(learner, {"learning_rate": [1e-2], "oja_rate": [1e-3]}, [0], small_data(), PLAN, **options)
    ((_, scores),) = training
    return scores, jax.tree.leaves(training.params)


def final_scores(learner, **options):
    return trained(learner, **options)[0]


def network(optimizer=oja_sgd):
    return mlp_learner((784, 12, 10), optimizer)


def chained(hyper):
    return optax.chain(optax.sgd(hyper["learning_rate"]), ojax.oja(hyper["oja_rate"]))


@pytest.mark.parametrize(
    ("learner", "plan", "reason"),
    [
        (network(chained), PLAN, "the optimizer is not ojax.oja_sgd"),
        (network(), online.Plan(40, (40,), batch_size=4), "a batch has 4 samples"),
        (
            online.classifier(lambda rngs: ojax.CNN((28, 28, 1), [2], 10, rngs=rngs), oja_sgd),
            PLAN,
            "no kernel is only used to multiply",
        ),
    ],
    ids=["another optimizer", "batches", "a convolution"],
)
def test_the_reason_for_no_windows_is_reported_and_refused_where_they_are_required(learner, plan, reason):
    data = small_data()
    if reason.startswith("no kernel"):
        data = ojax.datasets.load(flatten=False)
    found = online.fast_path(learner, RATES, data, plan)
    assert found.layer is None and reason in str(found) and "each sample updates every kernel" in str(found)
    with pytest.raises(ValueError, match=f'windows="require", but .*{reason}'):
        online.train(learner, {name: [1e-3] for name in RATES}, [0], data, plan, windows="require")


def test_windows_can_be_required_and_turned_off():
    found = online.fast_path(network(), RATES, small_data(), PLAN)
    assert found.layer.kernel == "layers/0/kernel" and "windows of 16 samples: layers/0/kernel" in str(found)
    assert online.fast_path(network(), RATES, small_data(), PLAN, windows="off").layer is None
    (required, _), (auto, weights), (off, others) = (trained(network(), windows=how) for how in ("require", "auto", "off"))
    for name, column in auto.items():
        np.testing.assert_array_equal(required[name], column)
        np.testing.assert_allclose(off[name], column, rtol=1e-4)
    assert not all(map(np.array_equal, weights, others))  # The order of summation differs.
    with pytest.raises(ValueError, match='"auto", "require" or "off", got True'):
        final_scores(network(), windows=True)


def masked(is_chosen):
    """Returns Oja's rule only at the chosen paths and shapes."""

    def mask(params):
        return map_named(lambda path, leaf: is_chosen(path, jnp.shape(leaf)), params)

    return network(lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"], mask=mask))


@pytest.mark.parametrize("layer", ["layers/0/", "layers/1/"])
def test_a_masked_rule_takes_windows_too(layer):
    learner = masked(lambda path, shape: path.startswith(layer))
    (scores, weights), (off, others) = (trained(learner, windows=how) for how in ("require", "off"))
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    everywhere = trained(network())[1]
    assert all(np.abs(one - other).max() > 1e-4 for one, other in zip(weights, everywhere, strict=True))
    np.testing.assert_allclose(scores["train_loss"], off["train_loss"], rtol=1e-4)


def test_a_mask_by_shape_takes_no_windows():
    """In a window the first kernel has other rows."""
    learner = masked(lambda path, shape: shape[0] < 100)
    assert "the mask of ojax.oja_sgd depends on the shape of layers/0/kernel" in str(
        online.fast_path(learner, RATES, small_data(), PLAN)
    )
    given = jax.tree.map(lambda leaf: True, jax.eval_shape(learner.init, jax.random.key(0), {})[0])
    whole = network(lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"], mask=given))
    assert online.fast_path(whole, RATES, small_data(), PLAN).layer is not None


def forget(monkeypatch, name):
    """Removes a name from JAX, and clears caches of results with it."""
    monkeypatch.delattr(jax.extend.core, name)
    fast._found.cache_clear()
    first_layer._check_words.cache_clear()
    checks._traced_once.cache_clear()


@pytest.mark.parametrize("name", ["ClosedJaxpr", "jaxpr_as_fun"])
def test_where_jax_cannot_evaluate_a_part_of_a_program_all_is_learned_sample_by_sample(monkeypatch, name):
    off = final_scores(network(), windows="off")
    forget(monkeypatch, name)
    with pytest.warns(UserWarning, match="cannot evaluate a part of a program, so a first layer cannot be found"):
        found = final_scores(network())
    for column in off:
        np.testing.assert_array_equal(found[column], off[column])


@pytest.mark.parametrize("change", ["no equations", "no parameters", "other parameters"])
def test_programs_in_a_form_that_is_not_known_are_not_taken_apart(monkeypatch, change):
    """JAX's programs lose their list of equations, the equations' parameters, or one parameter's name."""
    make = jax.make_jaxpr

    class Equation:
        def __init__(self, equation):
            self.primitive, self.invars, self.outvars = equation.primitive, equation.invars, equation.outvars
            if change != "no parameters":
                self.params = {f"new_{name}": value for name, value in equation.params.items()}

    class Inner:
        def __init__(self, jaxpr):
            self.invars, self.outvars = jaxpr.invars, jaxpr.outvars
            if change != "no equations":
                self.eqns = [Equation(equation) for equation in jaxpr.eqns]

    class Closed:
        def __init__(self, program):
            self.jaxpr, self.consts = Inner(program.jaxpr), program.consts

    def changed(function, **options):
        def traced(*arguments):
            program, out = make(function, **options)(*arguments)
            return Closed(program), out

        return traced

    monkeypatch.setattr(jax, "make_jaxpr", changed)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = online.fast_path(network(), RATES, small_data(), PLAN)
    assert found.layer is None
    assert any("so a first layer cannot be found" in str(warning.message) for warning in told)


def test_an_unknown_primitive_may_be_anywhere_but_at_the_input():
    """A made-up identity: elsewhere it is evaluated; a layer that reads the image through it is not a first layer."""
    identity = Primitive("made_up")
    identity.def_impl(lambda x: x)
    identity.def_abstract_eval(lambda x: x)
    jax.interpreters.mlir.register_lowering(identity, lambda _, x: [x])
    jax.interpreters.ad.deflinear2(identity, lambda error, _: [error])
    jax.interpreters.batching.defvectorized(identity)

    class Network(ojax.MLP):
        of_input = False

        def __call__(self, x):
            return super().__call__(identity.bind(x)) if self.of_input else identity.bind(super().__call__(x))

    class OfInput(Network):
        of_input = True

    plain = final_scores(network())
    for cls, windows in ((Network, True), (OfInput, False)):
        learner = online.classifier(lambda rngs, cls=cls: cls((784, 12, 10), rngs=rngs), oja_sgd)
        assert (online.fast_path(learner, RATES, small_data(), PLAN).layer is not None) == windows
        np.testing.assert_allclose(final_scores(learner)["weight_norm"], plain["weight_norm"], rtol=1e-5)


def test_what_is_left_of_a_program_must_return_what_the_whole_does(monkeypatch):
    monkeypatch.setattr(_compat, "function_of", lambda *_: lambda *leaves: [jnp.zeros(3)] * 10)
    with pytest.warns(UserWarning, match="does not evaluate a part of a program as the whole"):
        assert online.fast_path(network(), RATES, small_data(), PLAN).layer is None
