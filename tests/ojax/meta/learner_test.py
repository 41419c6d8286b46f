"""Episodes, and the gradient through them, against the float64 statement of the paper."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ojax import datasets, meta, online, plasticity
from tests.ojax.meta import statement
from tests.ojax.online.networks import assert_same_scores

pytestmark = pytest.mark.compiled_quickly

WIDTHS = (12, 8, 7, 6)
EPISODES = meta.Episodes(num_classes=3, num_train=5, num_query=4)
# Large enough that each rule shows after fifteen samples.
COEFFICIENTS = dict(zip(plasticity.POOL, [0.05, 0.04, -0.1, 0.01, 0.02, 0.03, -0.2, 0.1, 0.15, 0.05], strict=True))


@functools.cache
def images():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 20)
    inputs = rng.uniform(size=(5, 12))[labels] * rng.uniform(0.5, 1, size=(len(labels), 12))
    return datasets.Dataset.from_arrays(inputs, labels, inputs, labels)


def by_class():
    return jnp.asarray(EPISODES.of(images(), 1).train["images"].arrays)


def meta_learner(feedback="random", per_layer=False, **options):
    inner = meta.classifier(WIDTHS, plasticity.POOL, feedback=feedback)
    initial = {name: np.full(3, value) * [1, 0.5, -1] if per_layer else value for name, value in COEFFICIENTS.items()}
    return inner, meta.learner(inner, initial, lambda hyper: optax.sgd(1e-3), episodes=EPISODES, **options)


def stated_loss(inner, key, feedback, coefficients):
    """Returns the float64 statement's loss on the query samples of a key's episode."""
    of_data, of_weights = jax.random.split(key)
    train, query = EPISODES.draw(of_data, by_class())
    weights, back = statement.as_statement(*inner.init(of_weights, {}), feedback)
    learned = statement.learn(weights, back, np.asarray(train.inputs, np.float64), train.targets, coefficients, feedback)
    return statement.loss(learned, np.asarray(query.inputs, np.float64), query.targets), learned


@pytest.mark.parametrize("feedback", ["random", "direct"])
def test_feedback_to_the_inputs_has_random_numbers_of_its_own(feedback):
    params, state = meta.classifier((20,) * 6, plasticity.POOL, feedback=feedback).init(jax.random.key(0), {})
    matrices = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.shape == (20, 20)]
    found = np.abs(np.corrcoef(np.reshape(matrices, (len(matrices), -1))) - np.eye(len(matrices)))
    assert len(matrices) >= 6 and found.max() < 0.2


@pytest.mark.parametrize(("feedback", "per_layer"), [("random", False), ("direct", True), ("backprop", False)])
def test_the_meta_gradient_agrees_with_finite_differences_in_float64(feedback, per_layer):
    inner, learner = meta_learner(feedback, per_layer)
    params, state = learner.init(jax.random.key(0), {})
    sample = {"episode": jnp.int32(3), "images": datasets.Shared(by_class())}
    found = jax.jit(learner.gradient)(params, state, sample, {})
    key = jax.random.fold_in(state["train"], 3)
    values = {name: np.asarray(value, np.float64) for name, value in params.items()}
    loss, learned = stated_loss(inner, key, feedback, values)
    np.testing.assert_allclose(found.sums["train_loss"].total, loss, rtol=1e-5)

    # The weights are equal too, not only the loss.
    weights = jax.jit(lambda: meta.episode(inner, params, key, by_class(), EPISODES)[0].params)()
    for got, want in zip(jax.tree.leaves(weights), learned, strict=True):
        np.testing.assert_allclose(got.T, want, atol=1e-5)

    for name, value in values.items():
        differences = np.zeros(value.shape)
        for place in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = value.copy()
                moved[place] += sign * 1e-5
                ends.append(stated_loss(inner, key, feedback, values | {name: moved})[0])
            differences[place] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(found.grads[name], differences, rtol=2e-3, atol=2e-4, err_msg=name)
        assert np.abs(differences).max() > 1e-3, name  # So that agreement is meaningful.


def test_an_episode_is_what_learn_does():
    """With segments recomputed for the gradient, and as a single scan: programs that may round differently."""
    rules = {name: plasticity.POOL[name] for name in ("pseudo_gradient", "ehebb", "oja")}
    inner = meta.classifier(WIDTHS, rules, feedback="random")
    params = {name: jnp.float32(COEFFICIENTS[name]) for name in rules}
    of_data, of_weights = jax.random.split(jax.random.key(1))
    train, query = EPISODES.draw(of_data, by_class())
    start = jax.jit(inner.init)(of_weights, params)
    plain = jax.jit(functools.partial(online.learn, inner))(params, *start, train)

    @jax.jit
    def differentiated(params, weights, inner_state, train, query):
        def loss(params):
            learned = online.learn(inner, params, weights, inner_state, train, segment=4)  # Three, and a shorter one.
            return inner.evaluate(learned.params, learned.state, query, params)["test_loss"], learned

        return jax.grad(loss, has_aux=True)(params)

    _, learned = differentiated(params, *start, train, query)
    for got, want in zip(jax.tree.leaves(learned), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert learned.sums["train_loss"].total.shape == (15,)


def test_segments_bound_the_memory_of_a_gradient():
    inner = meta.classifier((64, 64, 8), {"oja": plasticity.POOL["oja"]}, feedback="random")
    params, state = inner.init(jax.random.key(0), {})
    samples = datasets.Examples(jnp.ones((256, 64)), jnp.zeros(256, jnp.int32))

    def temporary(segment):
        def loss(coefficients):
            learned = online.learn(inner, coefficients, params, state, samples, segment=segment)
            return jnp.sum(learned.params["layers"][0]["kernel"])

        return jax.jit(jax.grad(loss)).lower({"oja": 1e-3}).compile().memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(None) / 4


def test_an_episode_has_its_classes_and_no_image_twice():
    flat = by_class().reshape(-1, 12)
    train, query = jax.jit(EPISODES.draw)(jax.random.key(5), by_class())
    drawn = np.concatenate([train.inputs, query.inputs])
    rows = [int(np.flatnonzero((flat == image).all(axis=1))[0]) for image in drawn]
    assert len(set(rows)) == len(rows) == 3 * 9
    labels = np.concatenate([train.targets, query.targets])
    np.testing.assert_array_equal(labels, np.array(rows) // 20)
    assert sorted(np.unique(train.targets, return_counts=True)[1]) == [5, 5, 5]
    assert sorted(np.unique(query.targets, return_counts=True)[1]) == [4, 4, 4]
    assert (np.diff(train.targets) < 0).any()  # Shuffled.
    other, _ = EPISODES.draw(jax.random.key(6), by_class())
    assert not np.array_equal(other.targets, train.targets)


def test_the_penalty_adds_its_sign_to_the_gradient():
    inner = meta.classifier(WIDTHS, {"oja": plasticity.POOL["oja"], "ehebb": plasticity.POOL["ehebb"]})
    initial = {"oja": 0.1, "ehebb": -0.1}
    penalty = {"penalty": lambda hyper: hyper["l1"]}
    learner = meta.learner(inner, initial, lambda hyper: optax.sgd(1e-3), episodes=EPISODES, **penalty)
    params, state = learner.init(jax.random.key(0), {})
    sample, gradient = {"episode": jnp.int32(0), "images": datasets.Shared(by_class())}, jax.jit(learner.gradient)
    without, penalized = (gradient(params, state, sample, {"l1": jnp.float32(l1)}).grads for l1 in (0, 0.25))
    np.testing.assert_allclose(penalized["oja"] - without["oja"], 0.25, atol=1e-5)
    np.testing.assert_allclose(penalized["ehebb"] - without["ehebb"], -0.25, atol=1e-5)


def explosive():
    """Returns an inner learner of one number, which grows by `rate` times its square: unbounded from 1, little from 0.1."""

    def gradient(w, state, sample, hyper):
        return online.Gradient(-(w**2), {}, state, {"train_loss": online.Sum(w, jnp.float32(1))})

    return online.Learner(
        init=lambda key, hyper: (jnp.where(jax.random.bernoulli(key), 1.0, 0.1), {}),
        gradient=gradient,
        optimizer=lambda hyper: optax.sgd(hyper["rate"]),
        evaluate=lambda w, state, test, hyper: {"test_loss": w, "test_accuracy": jnp.isfinite(w).astype(jnp.float32)},
    )


def test_a_lost_episode_changes_nothing_and_the_learner_continues():
    inner = explosive()

    def optimizer(hyper):
        return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(hyper["meta_rate"]))

    learner = meta.learner(inner, {"rate": 0.2}, optimizer, episodes=EPISODES)
    count, meta_rate = 20, 1e-3
    plan = online.Plan(count, (count,), shuffle=False)
    trained = online.train(learner, {"meta_rate": [meta_rate]}, [7], EPISODES.of(images(), count), plan)
    ((_, scores),) = trained

    def stated(key, rate):
        """Returns the number after an episode and its derivative by the rate, in float64."""
        w, slope = np.float64(inner.init(jax.random.split(key)[1], {})[0]), 0.0
        for _ in range(3 * 5):
            w, slope = w + rate * w**2, slope + w**2 + 2 * rate * w * slope
        return w, slope

    most = np.finfo(np.float32).max
    _, state = online.initial_params(learner, {}, 7)
    rate, losses = 0.2, []
    with np.errstate(over="ignore", invalid="ignore"):
        for number in range(count):
            w, slope = stated(jax.random.fold_in(state["train"], number), rate)
            if w < most:
                losses.append(w)
                rate -= meta_rate * min(slope, 1)
        tests = [stated(key, rate)[0] for key in jax.random.split(state["test"], 10)]
    assert 0 < len(losses) < count and 0 < np.sum(np.array(tests) > most) < 10
    assert scores["diverged_at"] == -1
    np.testing.assert_allclose(scores["coefficient_rate"], rate, rtol=1e-5)
    np.testing.assert_allclose(scores["train_lost"], 1 - len(losses) / count, rtol=1e-6)
    np.testing.assert_allclose(scores["train_loss"], np.mean(losses), rtol=1e-3)
    finite = [w for w in tests if w < most]
    np.testing.assert_allclose(scores["test_lost"], 1 - len(finite) / 10, rtol=1e-6)
    np.testing.assert_allclose(scores["test_loss"], np.mean(finite), rtol=1e-3)
    np.testing.assert_allclose(scores["test_accuracy"], len(finite) / 10, rtol=1e-6)
    assert np.isfinite(scores["meta_gradient"]).all()


def test_a_stopped_meta_learner_resumes_bit_for_bit(tmp_path):
    learner = meta.learner(explosive(), {"rate": 0.2}, lambda hyper: optax.adam(hyper["meta_rate"]), episodes=EPISODES)
    data, plan = EPISODES.of(images(), 12), online.Plan(12, (4, 12), shuffle=False)

    def train(checkpoints=None):
        return online.train(learner, {"meta_rate": [1e-3, 1e-2]}, [0, 1], data, plan, checkpoints=checkpoints)

    undisturbed = list(train())
    calls = itertools.count()
    with (
        online.Checkpoints(tmp_path, every_samples=2, stop=lambda: next(calls) == 3) as checkpoints,
        pytest.raises(online.Interrupted, match="Stopped after 8 samples"),
    ):
        list(train(checkpoints))
    with online.Checkpoints(tmp_path, every_samples=2) as checkpoints:
        resumed = list(train(checkpoints))
    assert_same_scores(resumed, undisturbed)
    assert (undisturbed[1][1]["coefficient_rate"] != undisturbed[0][1]["coefficient_rate"]).all()


def test_data_that_have_too_little_for_an_episode_are_refused():
    with pytest.raises(ValueError, match="takes 9 images of 6 classes; the training data have 5 classes of 20 to 20"):
        EPISODES._replace(num_classes=6).of(images(), 1)
    with pytest.raises(ValueError, match="takes 24 images of 3 classes"):
        EPISODES._replace(num_train=20).of(images(), 1)
    two = EPISODES._replace(among=slice(3, None))
    with pytest.raises(ValueError, match=r"3 classes; the training data have 5 classes .2 of them in slice.3, None, None"):
        two.of(images(), 1)
    with pytest.raises(ValueError, match=r"takes 3 classes; there are 2 in slice.3, None, None"):
        two.draw(jax.random.key(0), by_class())
    assert len(EPISODES._replace(among=slice(2, None)).of(images(), 1).test) == 5
