"""A stopped training resumes exactly, even if its newest checkpoint is damaged."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import modules, online
from ojax.online import CheckpointError, Checkpoints, Interrupted, checkpoints, checks, checksums, samples
from tests.ojax.online.networks import assert_same_scores, compilations, small_data

pytestmark = pytest.mark.compiled_quickly

PLAN = online.Plan(num_train=400, evaluate_at=(0, 100, 250, 400))
HYPER = {"learning_rate": [1e-2, 1e6, 1e-2], "oja_rate": [1e-3, 1e6, 0.0]}  # The second diverges.
SEEDS = [0, 0, 1]


@pytest.fixture(scope="module")
def data():
    return small_data()


@pytest.fixture(scope="module")
def learner():
    return online.classifier(
        lambda rngs: ojax.MLP([784, 12, 10], normalization=modules.BatchNorm, rngs=rngs),
        lambda hyper: optax.chain(
            optax.sgd(hyper["learning_rate"], momentum=0.9),  # It has a state.
            ojax.oja(hyper["oja_rate"]),
        ),
    )


@pytest.fixture(scope="module")
def undisturbed(learner, data):
    return list(online.train(learner, HYPER, SEEDS, data, PLAN))


def train(learner, data, folder, stop=lambda: False, **options):
    """Returns the scores, and whether the training was interrupted."""
    options = {"every_samples": 50} | options
    scores = []
    with Checkpoints(folder, stop=stop, **options) as kept:
        try:
            for found in online.train(learner, HYPER, SEEDS, data, PLAN, checkpoints=kept):
                scores.append(found)
        except Interrupted as interrupted:
            assert str(folder) in str(interrupted)
            return scores, True
    return scores, False


def after(calls):
    """Returns a `stop` that returns True at a given call."""
    counter = itertools.count(1)
    return lambda: next(counter) == calls


def states(folder):
    return sorted(path for path in folder.iterdir() if path.name.isdecimal())


@pytest.mark.parametrize("calls", [1, 2, 4, 7])
def test_interrupted_and_resumed_it_ends_with_the_same_bits(learner, data, undisturbed, tmp_path, calls):
    first, interrupted = train(learner, data, tmp_path, stop=after(calls))
    assert interrupted and len(first) < len(undisturbed)
    assert_same_scores(first, undisturbed[: len(first)])
    resumed, interrupted = train(learner, data, tmp_path, every_samples=None, every_seconds=1e-9)
    assert not interrupted
    assert_same_scores(resumed, undisturbed)


def test_it_resumes_from_the_saved_state(learner, data, undisturbed, tmp_path):
    train(learner, data, tmp_path, stop=after(5))
    seen = []
    with Checkpoints(tmp_path) as kept:
        list(online.train(learner, HYPER, SEEDS, data, PLAN, checkpoints=kept, on_progress=seen.append))
    assert 0 < seen[0] < 400 and seen[-1] == 400 and seen == sorted(seen)


def test_what_is_kept_and_when(learner, data, tmp_path):
    train(learner, data, tmp_path / "samples", every_samples=90)
    assert [path.name for path in states(tmp_path / "samples")] == ["270", "360"]
    train(learner, data, tmp_path / "one", every_samples=90, keep=1)
    assert [path.name for path in states(tmp_path / "one")] == ["360"]
    train(learner, data, tmp_path / "seconds", every_samples=None, every_seconds=1e-9)
    assert len(states(tmp_path / "seconds")) == 2
    train(learner, data, tmp_path / "never", every_samples=None, every_seconds=3600)
    assert not states(tmp_path / "never")


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 3 + 64):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def lose_metadata(folder):
    for path in folder.rglob("_METADATA"):
        path.unlink()


def empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


@pytest.mark.parametrize("damage", [truncate, flip, lose_metadata, empty])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(learner, data, undisturbed, tmp_path, damage):
    train(learner, data, tmp_path, stop=after(7))
    kept = sorted(int(path.name) for path in states(tmp_path))
    assert len(kept) == 2
    damage(tmp_path / str(kept[1]))
    with pytest.warns(UserWarning, match=rf"{kept[1]} is damaged"):
        resumed, _ = train(learner, data, tmp_path)
    assert_same_scores(resumed, undisturbed)


def test_with_all_checkpoints_damaged_it_starts_again(learner, data, undisturbed, tmp_path):
    train(learner, data, tmp_path, stop=after(7))
    for path in states(tmp_path):
        truncate(path)
    with pytest.warns(UserWarning, match="is damaged"):
        resumed, _ = train(learner, data, tmp_path)
    assert_same_scores(resumed, undisturbed)


def test_a_checkpoint_under_another_name_is_not_taken(learner, data, undisturbed, tmp_path):
    train(learner, data, tmp_path, stop=after(7))
    newest = max(states(tmp_path), key=lambda path: int(path.name))
    newest.rename(tmp_path / "390")
    with pytest.warns(UserWarning, match="390 is damaged .its checksum is wrong"):
        resumed, _ = train(learner, data, tmp_path)
    assert_same_scores(resumed, undisturbed)


def test_checkpoints_of_another_training_are_refused(learner, data, undisturbed, tmp_path):
    """Other runs, other data or another plan of equal shapes are refused, and the checkpoints are kept."""
    train(learner, data, tmp_path, stop=after(7))
    other_data = data._replace(train=data.train._replace(inputs=data.train.inputs[::-1].copy()))
    for seeds, dataset, plan, word in (
        ([5, 6, 7], data, PLAN, "runs"),
        ([0, 0, 1, 1], data, PLAN, "runs"),
        (SEEDS, other_data, PLAN, "data"),
        (SEEDS, data, PLAN._replace(evaluate_at=(0, 10, 20, 400)), "plan"),
        (SEEDS, data, PLAN._replace(shuffle=False), "plan"),
    ):
        hyper = {name: [*values, *values][: len(seeds)] for name, values in HYPER.items()}
        words = f"another training, which differs in its {word}:"
        with Checkpoints(tmp_path) as kept, pytest.raises(ValueError, match=words):
            online.train(learner, hyper, seeds, dataset, plan, checkpoints=kept)
    resumed, _ = train(learner, data, tmp_path)
    assert_same_scores(resumed, undisturbed)


def test_checkpoints_of_another_learner_are_refused(learner, data, undisturbed, tmp_path):
    """Also where only the number of a rule, an array that it closes over, or the loss differs."""
    train(learner, data, tmp_path, stop=after(7))
    weights, drawn = jnp.arange(3.0), jax.random.key(0)

    def doubled(*arguments):
        found = learner.gradient(*arguments)
        return found._replace(grads=jax.tree.map(lambda grad: 2 * grad, found.grads))

    def scored(*arguments):
        return learner.evaluate(*arguments) | {"test_loss": weights[1]}

    others = (learner._replace(gradient=doubled), learner._replace(evaluate=scored))
    for other in others:
        with (
            Checkpoints(tmp_path) as kept,
            pytest.raises(ValueError, match="another training, which differs in its learner:"),
        ):
            online.train(other, HYPER, SEEDS, data, PLAN, checkpoints=kept)
    shapes = checks.shapes(data.train, data.test)

    def digest(score):
        return checks.traced(learner._replace(evaluate=lambda *_: {"s": score()}), PLAN, HYPER, shapes).digest

    one, other = weights, weights.at[1].set(5.0)
    kinds = (
        lambda w: lambda: w[1],
        lambda w: jax.jit(lambda: w[1]),
        lambda w: jax.checkpoint(lambda: w[1]),
        lambda w: lambda: w[1] + jax.random.uniform(drawn),
    )
    for make in kinds:
        assert digest(make(one)) == digest(make(one)) != digest(make(other))
    jax.eval_shape(lambda x: (digest(kinds[-1](one)), x)[1], 0.0)  # Also where something else is traced.

    product = learner._replace(evaluate=lambda *_: {"s": jnp.ones((2, 2)) @ weights[:2]})
    plain, precise = (checks.traced(product, PLAN, HYPER, shapes).digest, None)
    with jax.default_matmul_precision("highest"), jax.disable_jit():
        precise = checks.traced(product, PLAN, HYPER, shapes).digest
    assert precise != plain == checks.traced(product, PLAN, HYPER, shapes).digest

    class Shown(str):
        consts = ()

    in_a_terminal = Shown("\x1b[34m\x1b[1mlet\x1b[0m f at 0x7f12")
    assert (
        samples.digest_of(in_a_terminal) == samples.digest_of(Shown("let f at ")) != samples.digest_of(Shown("let g at "))
    )
    resumed, _ = train(learner, data, tmp_path)
    assert_same_scores(resumed, undisturbed)


def test_states_of_another_training_are_not_taken_if_the_identity_is_lost(learner, data, undisturbed, tmp_path):
    train(learner, data, tmp_path, stop=after(7))
    (tmp_path / "identity.json").write_text("")
    other_data = data._replace(train=data.train._replace(inputs=data.train.inputs[::-1].copy()))
    with pytest.warns(UserWarning, match="is damaged .its checksum is wrong"):
        resumed, _ = train(learner, other_data, tmp_path)
    assert not np.array_equal(resumed[-1][1]["test_loss"], undisturbed[-1][1]["test_loss"])


def test_other_things_in_the_folder_do_not_matter(learner, data, undisturbed, tmp_path):
    train(learner, data, tmp_path, stop=after(7))
    for name in ("٣", "007", "-5", "1e9", "9" * 40, "damaged-300", "300.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "500").write_text("no folder")
    with pytest.warns(UserWarning, match="500 is damaged"):
        resumed, _ = train(learner, data, tmp_path)
    assert_same_scores(resumed, undisturbed)


def test_a_checkpoint_of_another_network_is_not_taken(learner, data, undisturbed, tmp_path):
    with Checkpoints(tmp_path, every_samples=1) as kept:
        kept.update(50, {"kernel": jnp.ones((3, 4))})
    with pytest.warns(UserWarning, match="50 is damaged"):
        resumed, _ = train(learner, data, tmp_path)
    assert_same_scores(resumed, undisturbed)


def test_the_checksum_changes_with_every_word_and_bit():
    rng = np.random.default_rng(0)
    state = {
        "a": rng.normal(size=(2, 5, 3)).astype(np.float32),
        "b": np.array([1, 2], np.int32),
        "c": np.array([True, False]),
    }
    checksum = partial(checksums.checksum, seen=np.uint32(5))
    before = np.asarray(checksum(state))
    assert (np.asarray(checksums.checksum(state, np.uint32(6))) != before).all()
    for place in np.ndindex(5, 3):
        for bit in (0, 17, 31):
            changed = state["a"].copy()
            changed.view(np.uint32)[(1, *place)] ^= np.uint32(1 << bit)
            after = np.asarray(checksum(state | {"a": changed}))
            assert after[0] == before[0] and after[1] != before[1]
    assert np.asarray(checksum(state | {"c": np.array([True, True])}))[1] != before[1]
    swapped = state["a"][:, ::-1]
    assert (np.asarray(checksum(state | {"a": swapped})) != before).all()


def test_a_folder_that_will_not_do(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file"):
        Checkpoints(tmp_path / "file")
    for options in ({"keep": 0}, {"every_samples": 0}, {"every_seconds": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Checkpoints(tmp_path, **options)


def test_the_reason_of_a_failure_is_named(tmp_path):
    """Orbax's errors are told whole; of TensorStore's, which name each file on their way, the end."""
    with (
        pytest.raises(CheckpointError, match=r"arrays with zero size.*memory"),
        Checkpoints(tmp_path, every_samples=1) as kept,
    ):
        kept.update(50, {"memory": jnp.ones((3, 0, 4))})
    long = "OUT_OF_RANGE: Error writing \"a/0.0\": Failed to write 9 bytes to file 5: File too large [os_error_code='27']"
    assert checkpoints._reason(ValueError(long)) == "File too large"


def test_blocks_of_other_sizes_share_a_compilation_and_change_nothing(learner, data, undisturbed):
    hyper = {name: values[:1] for name, values in HYPER.items()}
    with compilations() as compiled:
        alone = list(online.train(learner, hyper, SEEDS[:1], data, PLAN, num_slots=3))
        assert not compiled  # For three runs, before.
        list(online.train(learner, hyper, SEEDS[:1], data, PLAN))
    assert len(compiled) == 3 and len(set(compiled)) == 2  # Begin, advance in a thread of its own, evaluate.
    assert_same_scores(alone, [(count, jax.tree.map(lambda column: column[:1], scores)) for count, scores in undisturbed])
