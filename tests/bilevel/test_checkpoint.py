"""Checkpoints: bit for bit what was saved, or refused by name."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_same_bits

from bilevel.checkpoint import CheckpointError, digest, open_checkpoints, strange_checkpoints

# What a reader of a damaged file leaves behind is reported by pytest, which collects it on its own.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = pathlib.Path(__file__).parents[2]


class State(NamedTuple):
    """A state with all that algorithms put into theirs."""

    weights: jax.Array
    optimizer: Any
    step: jax.Array
    nothing: None = None


def state_of(step: int, size: int = 5000) -> State:
    """The state at a step: random bits, so that no two steps share a leaf and nothing is compressed."""
    weights = jax.random.normal(jax.random.key(step), (size,))
    return State(weights, optax.adam(1e-3).init({"w": weights[:6].reshape(2, 3)}), jnp.int32(step))


def save_steps(directory: pathlib.Path, steps: range | list[int], keep: int = 3, identity: str = "") -> None:
    with open_checkpoints(directory, keep, identity) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step))


def restore(directory: pathlib.Path, template: Any, identity: str = "") -> tuple[int, Any, list[str]]:
    with open_checkpoints(directory, identity=identity) as checkpoints:
        return checkpoints.restore(template)


def largest_file(directory: pathlib.Path) -> pathlib.Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    save_steps(directory, range(1, 4))
    return directory


@pytest.fixture
def three(saved, tmp_path):
    """A directory of one's own with checkpoints 1, 2 and 3."""
    return shutil.copytree(saved, tmp_path / "three")


@pytest.fixture
def float64():
    """64 bits in every thread, the threads of orbax among them."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_every_dtype_comes_back_bit_for_bit(tmp_path, float64):
    odd = np.array([np.nan, -0.0, np.inf, -np.inf, 1e-310, 1 / 3])
    nan_with_payload = jax.lax.bitcast_convert_type(jnp.uint32(0x7FC12345), jnp.float32)
    tree = {
        **{name: jnp.asarray(odd, name) for name in ("float16", "bfloat16", "float32", "float64")},
        **{name: jnp.arange(6).astype(name) - 3 for name in ("int8", "uint8", "int32", "uint32", "int64", "uint64")},
        "bool": jnp.array([True, False]),
        "scalar": nan_with_payload,
    }
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
    step, restored, notes = restore(tmp_path, tree)
    assert (step, notes) == (1, [])
    assert_same_bits(restored, tree)


def test_named_tuples_and_optimizer_states_come_back_whole(three):
    step, state, _ = restore(three, jax.eval_shape(lambda: state_of(0)))
    assert step == 3 and isinstance(state, State) and type(state.optimizer[0]).__name__ == "ScaleByAdamState"
    assert_same_bits(state, state_of(3))


def test_a_restored_leaf_is_strongly_typed_and_where_the_template_is(tmp_path):
    weak = {"x": jnp.asarray(2.0)}
    assert weak["x"].weak_type
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, weak)
    _, restored, _ = restore(tmp_path, weak)
    assert not restored["x"].weak_type and restored["x"].sharding == weak["x"].sharding


def test_saved_arrays_may_be_donated_at_once(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 2 + 1, state), donate_argnums=0)
    state = state_of(7, 1_000_000)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state)
        for _ in range(5):
            state = overwrite(state)
    _, restored, notes = restore(tmp_path, state)
    assert not notes
    assert_same_bits(restored, state_of(7, 1_000_000))


def test_no_save_is_dropped_while_another_runs(tmp_path):
    save_steps(tmp_path, range(1, 7), keep=10)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("keep", [2, 3])
def test_the_newest_are_kept_and_no_others(tmp_path, keep):
    save_steps(tmp_path, [1, 2, 5, 7, 100], keep)
    assert {path.name for path in tmp_path.iterdir()} == {str(step) for step in [1, 2, 5, 7, 100][-keep:]}
    with pytest.raises(CheckpointError, match="keep=1 was given; at least 2"), open_checkpoints(tmp_path, 1):
        pass


def test_a_flipped_byte_is_noticed_named_and_the_checkpoint_before_is_used(three):
    path = largest_file(three / "3")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0b100
    path.write_bytes(content)
    step, state, notes = restore(three, state_of(0))
    assert step == 2
    assert_same_bits(state, state_of(2))
    (note,) = notes
    assert "checkpoint 3" in note and "leaf .weights has digest" in note and "\n" not in note


@pytest.mark.parametrize("damage", ["truncated", "emptied", "no data", "no record", "altered record", "no arrays"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(three, damage):
    path, record = largest_file(three / "3"), three / "3" / "_CHECKPOINT_METADATA"
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "emptied":
        os.truncate(path, 0)
    elif damage == "no data":
        path.unlink()
    elif damage == "no record":
        record.unlink()
    elif damage == "altered record":
        record.write_text(record.read_text().replace("float32", "float64"))
    else:
        shutil.rmtree(three / "3" / "state")
    step, state, notes = restore(three, state_of(0))
    assert step == 2 and len(notes) == 1 and "checkpoint 3" in notes[0] and "\n" not in notes[0]
    assert_same_bits(state, state_of(2))


def test_without_the_newest_the_one_before_is_used(three):
    shutil.rmtree(three / "3")
    step, _, notes = restore(three, state_of(0))
    assert (step, notes) == (2, [])


def test_restoring_changes_nothing_and_the_first_save_after_it_replaces_what_was_passed_over(three):
    os.truncate(largest_file(three / "3"), 10)
    with open_checkpoints(three) as checkpoints:
        assert checkpoints.restore(state_of(0))[0] == 2
        assert checkpoints.steps() == [3, 2, 1]
        checkpoints.save(3, state_of(3))
        assert checkpoints.steps() == [3, 2, 1]
    step, state, notes = restore(three, state_of(0))
    assert (step, notes) == (3, [])
    assert_same_bits(state, state_of(3))


def test_a_checkpoint_of_another_identity_is_named_and_the_one_before_is_used(three, tmp_path):
    for name in ("run 1", "run 2"):
        save_steps(tmp_path / name, [1, 2, 3], identity=name)
    shutil.rmtree(tmp_path / "run 1" / "3")
    shutil.copytree(tmp_path / "run 2" / "3", tmp_path / "run 1" / "3")
    shutil.copytree(three / "3", tmp_path / "run 1" / "4")
    step, state, (first, second) = restore(tmp_path / "run 1", state_of(0), "run 1")
    assert step == 2 and "checkpoint 4" in first and "it is of a run without identity, not of run 1" in first
    assert "checkpoint 3" in second and "it is of run 2, not of run 1" in second
    assert_same_bits(state, state_of(2))
    with pytest.raises(CheckpointError, match="it is of run 1, not of run 3"):
        restore(tmp_path / "run 1", state_of(0), "run 3")


def test_a_checkpoint_under_the_number_of_another_step_is_named_and_the_one_before_is_used(three):
    shutil.copytree(three / "2", three / "12")
    step, state, (note,) = restore(three, state_of(0))
    assert step == 3 and "checkpoint 12" in note and "it was saved as step 2" in note
    assert_same_bits(state, state_of(3))


def test_a_directory_that_was_copied_elsewhere_is_restored(tmp_path):
    save_steps(tmp_path / "here", [1, 2], identity="mine")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    step, state, notes = restore(tmp_path / "there", state_of(0), "mine")
    assert (step, notes) == (2, [])
    assert_same_bits(state, state_of(2))


def test_a_checkpoint_from_before_there_were_identities_is_taken_where_none_is_asked_for(three):
    for step in (2, 3):
        path = three / str(step) / "_CHECKPOINT_METADATA"
        content = json.loads(path.read_text())
        leaves = json.dumps(json.loads(content["custom_metadata"]["record"])["leaves"])
        content["custom_metadata"] = {"leaves": leaves, "crc32": zlib.crc32(leaves.encode())}
        path.write_text(json.dumps(content))
    assert restore(three, state_of(0))[::2] == (3, [])
    with pytest.raises(CheckpointError, match="it is of a run without identity, not of run 1"):
        restore(three, state_of(0), "run 1")


def test_no_step_after_the_last_one_asked_for_is_restored_and_the_next_save_replaces_them(three):
    with open_checkpoints(three) as checkpoints:
        step, state, notes = checkpoints.restore(state_of(0), last_step=2)
        assert (step, notes) == (2, [])
        assert_same_bits(state, state_of(2))
        with pytest.raises(CheckpointError, match=r"no checkpoint .* there is none"):
            checkpoints.restore(state_of(0), last_step=0)
        checkpoints.save(4, state_of(4))
        assert checkpoints.steps() == [4, 2, 1]


def test_what_is_no_checkpoint_is_named_and_never_restored(three):
    (three / "4.orbax-checkpoint-tmp").mkdir()
    assert strange_checkpoints(three) == []
    for name in ("3 (conflicted copy)", "03", "-5", "٣"):
        shutil.copytree(three / "3", three / name)
    for name in ("5", ".DS_Store", "notes.npz"):
        (three / name).write_text("")
    assert strange_checkpoints(three) == ["-5", ".DS_Store", "03", "3 (conflicted copy)", "5", "notes.npz", "٣"]
    assert restore(three, state_of(0))[::2] == (3, [])
    assert strange_checkpoints(three / "nowhere") == []


def test_a_directory_that_is_deleted_meanwhile_is_told_and_not_made_anew(three):
    with (
        pytest.raises(CheckpointError, match="which is there no longer: it was moved or deleted") as caught,
        open_checkpoints(three) as checkpoints,
    ):
        checkpoints.restore(state_of(0))
        shutil.rmtree(three)
        checkpoints.save(4, state_of(4))
    assert "\n" not in str(caught.value) and not three.exists()


def test_when_all_are_damaged_the_error_lists_each(three):
    for step in (1, 2, 3):
        os.truncate(largest_file(three / str(step)), 10)
    with pytest.raises(CheckpointError, match=r"checkpoint 3 .*; checkpoint 2 .*; checkpoint 1 .*") as caught:
        restore(three, state_of(0))
    assert "\n" not in str(caught.value)


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* there is none"):
        restore(tmp_path, state_of(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": jnp.float32(0)}, r"leaf .step is int32\[\] in checkpoint 3 and float32\[\] in the template"),
        ({"weights": jnp.zeros(4)}, r"leaf .weights is float32\[5000\] in checkpoint 3 and float32\[4\] in the temp"),
        ({"nothing": jnp.zeros(1)}, r"leaf .nothing is absent in checkpoint 3 and float32\[1\] in the template"),
        ({"weights": None}, r"leaf .weights is float32\[5000\] in checkpoint 3 and absent in the template"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_by_leaf(three, change, message):
    with pytest.raises(CheckpointError, match=message):
        restore(three, state_of(0)._replace(**change))


def test_64_bits_in_one_thread_suffice_and_without_them_float64_is_refused(tmp_path):
    with jax.enable_x64(True):
        tree = {"x": jnp.array([1 / 3, np.nan, -0.0]), "n": jnp.array(-1)}
        assert tree["x"].dtype == jnp.float64 and tree["n"].dtype == jnp.int64
        with open_checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, tree)
        step, restored, notes = restore(tmp_path, tree)
    assert (step, notes) == (1, [])
    assert_same_bits(restored, tree)
    with pytest.raises(CheckpointError, match=r"leaf \['n'\] is int64\[\]; 64 bits are required"):
        restore(tmp_path, tree)


def test_a_reader_leaves_the_save_of_another_alone_and_a_writer_clears_what_a_killed_one_left(three):
    unfinished = three / "4.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    with open_checkpoints(three) as checkpoints:
        assert checkpoints.steps() == [3, 2, 1] and checkpoints.restore(state_of(0))[0] == 3
        time.sleep(0.2)
        assert unfinished.exists()
        checkpoints.save(5, state_of(5))
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.random.key(0), r"key<fry>\[\]"),
        (3, "int"),
        (np.ones(3), "ndarray"),
        (jnp.zeros((0, 2)), r"float32\[0,2\]"),
        (jnp.ones(2, "complex64"), r"complex64\[2\]"),
    ],
)
def test_a_leaf_that_cannot_be_kept_is_refused_by_name(tmp_path, leaf, message):
    with (
        pytest.raises(CheckpointError, match=r"leaf \['bad'\] is " + message),
        open_checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(1, {"good": jnp.ones(2), "bad": leaf})
    assert not list(tmp_path.iterdir())


def test_steps_grow_and_a_used_directory_is_restored_first(three):
    with open_checkpoints(three) as checkpoints:
        with pytest.raises(CheckpointError, match="restore first"):
            checkpoints.save(9, state_of(9))
        checkpoints.restore(state_of(0))
        with pytest.raises(CheckpointError, match="step 3 was given after 3; steps must grow"):
            checkpoints.save(3, state_of(3))
        assert checkpoints.steps() == [3, 2, 1]


def test_a_path_that_is_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file cannot hold checkpoints") as caught:
        save_steps(tmp_path / "file", [1])
    assert "\n" not in str(caught.value)


def test_the_digest_sees_every_exchange_of_unequal_numbers():
    x = np.array([1.0, -1.0, 2.0, 4.0, 0.0, 1.5, -1.5, 1.0], np.float32)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    exchanged = np.tile(x, (len(pairs), 1))
    for row, (i, j) in zip(exchanged, pairs, strict=True):
        row[[i, j]] = row[[j, i]]
    for dtype in ("float32", "bfloat16", "int8", "bool"):
        same = jax.vmap(digest)(jnp.asarray(exchanged, dtype)) == digest(jnp.asarray(x, dtype))
        assert same.tolist() == [bool(x.astype(dtype)[i] == x.astype(dtype)[j]) for i, j in pairs]


def test_the_digest_sees_every_single_bit(float64):
    x = jax.lax.bitcast_convert_type(jax.random.normal(jax.random.key(0), (3, 2), "float64"), "uint64")
    flipped = x.ravel() ^ (jnp.uint64(1) << jnp.arange(64, dtype="uint64"))[:, None, None] * jnp.eye(6, dtype="uint64")
    assert not jnp.any(jax.vmap(digest)(flipped.reshape(-1, 3, 2)) == digest(x))


def test_the_digest_is_the_sum_its_formula_says():
    def mix(h: int) -> int:
        h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    x = jax.random.normal(jax.random.key(1), (3, 5))
    words = np.asarray(x).view(np.uint32).ravel().tolist()
    assert int(digest(x)) == sum(mix(word ^ mix(i)) for i, word in enumerate(words)) % 2**32


SHARDED = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
jax.config.update("jax_num_cpu_devices", 2)
from bilevel.checkpoint import open_checkpoints
mesh = jax.make_mesh((2,), ("seed",), axis_types=(AxisType.Auto,))
x = jax.device_put(jax.random.normal(jax.random.key(0), (6, 4)), NamedSharding(mesh, PartitionSpec("seed")))
with open_checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, {"x": x, "step": jnp.int32(1)})
with open_checkpoints(sys.argv[1]) as checkpoints:
    _, tree, _ = checkpoints.restore({"x": x, "step": jnp.int32(1)})
    assert tree["x"].sharding == x.sharding and (tree["x"] == x).all()
    checkpoints.save(2, {"x": x, "step": jnp.int32(2)})
    sys.exit(7)
"""

RESTORE = """
import sys
import jax.numpy as jnp
from bilevel.checkpoint import open_checkpoints
with open_checkpoints(sys.argv[1]) as checkpoints:
    step, _, notes = checkpoints.restore({"x": jnp.zeros(2000), "step": jnp.int32(0)})
sys.exit(7 if step == 1 and len(notes) == 3 else str(notes))
"""

ENDLESS = """
import itertools, sys
import jax, jax.numpy as jnp
from bilevel.checkpoint import open_checkpoints
template = {"x": jnp.zeros(300_000)}
with open_checkpoints(sys.argv[1]) as checkpoints:
    first = checkpoints.restore(template)[0] if checkpoints.steps() else 0
    for step in itertools.count(first + 1):
        checkpoints.save(step, {"x": jax.random.normal(jax.random.key(step), (300_000,))})
"""


def start(program: str, directory: pathlib.Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_a_damaged_checkpoint_is_told_in_the_notes_and_nowhere_else(tmp_path):
    with open_checkpoints(tmp_path, keep=5) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, {"x": jax.random.normal(jax.random.key(step), (2000,)), "step": jnp.int32(step)})
    os.truncate(largest_file(tmp_path / "4"), 10)
    (tmp_path / "3" / "state" / "_METADATA").unlink()
    (tmp_path / "2" / "_CHECKPOINT_METADATA").write_text("{")
    process = start(RESTORE, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7 and errors == ""


def test_what_two_devices_saved_one_restores_and_leaving_early_loses_nothing(tmp_path):
    process = start(SHARDED, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7, errors
    x = jax.random.normal(jax.random.key(0), (6, 4))
    step, tree, notes = restore(tmp_path, {"x": x, "step": jnp.int32(0)})
    assert (step, notes) == (2, [])
    assert_same_bits(tree, {"x": x, "step": jnp.int32(2)})


def test_a_run_killed_in_the_middle_of_saves_restores_exactly(tmp_path):
    newest = 0
    for attempt in range(3):
        process = start(ENDLESS, tmp_path)
        deadline = time.monotonic() + 60
        while not (tmp_path / str(newest + 3)).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        step, tree, notes = restore(tmp_path, {"x": jnp.zeros(300_000)})
        assert step >= newest + 3 and not notes
        assert_same_bits(tree, {"x": jax.random.normal(jax.random.key(step), (300_000,))})
        newest = step


LIMITED = """
import resource, signal, sys
import jax
from bilevel.checkpoint import CheckpointError, open_checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {"x": jax.random.normal(jax.random.key(0), (2000,))}
try:
    with open_checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        checkpoints.save(2, state)
except CheckpointError as error:
    print(error, file=sys.stderr)
    sys.exit(7)
"""


def test_a_save_that_fails_is_told_on_leaving_and_spares_the_older_ones(tmp_path):
    process = start(LIMITED, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7 and "checkpoint 2 could not be written" in errors, errors
    assert restore(tmp_path, {"x": jnp.zeros(2000)})[0] == 1
