"""What a run needs is known before it is launched, and refused where there is less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configure, load_run, train
from experiments.runs import cohort, memory
from experiments.runs.memory import Need
from experiments.settings.job import resolve
from experiments.settings.options import OptionError

GIGA = 10**9


def study(**options):
    tables = {"policy": "table", "reward": "table", "gradients": "exact"}
    config = configure("garnet", "alternating", **tables, segment_length=2, steps=4, chunk="2", **options)
    return cohort.Cohort(resolve(config)._replace(devices=tuple(jax.devices()[:1])), cohort.Group(0, config.run.seeds))


def need_of(ours):
    return ours.compile(2)[1]


def test_what_a_run_needs_grows_by_the_lane():
    few, many = need_of(study(seeds=4, width=4)), need_of(study(seeds=64, width=4))
    assert (few.num_lanes, many.num_lanes) == (4, 64)
    state = cohort._size(study(seeds=64, width=4).state_spec())
    assert many.total > 3 * state  # before, after, and on the way to the disk
    assert many.per_lane == pytest.approx(few.per_lane, rel=0.1)
    assert many.fixed < 2 * few.fixed + 10_000


def test_as_many_lanes_fit_as_the_bytes_allow():
    need = Need(fixed=GIGA, per_lane=1e6, num_lanes=500)
    assert need.total == 1.5 * GIGA
    assert need.fitting(3 * GIGA) == 2000
    assert need.fitting(GIGA // 2) == 0


def test_more_than_there_is_is_refused_with_the_seeds_that_would_fit(monkeypatch):
    ours = study(seeds=64, width=4)
    wanted = need_of(ours)
    room = wanted.fixed + 42.5 * wanted.per_lane  # ten blocks, and half of one
    monkeypatch.setattr(memory, "room", lambda devices: room)
    with pytest.raises(OptionError, match=r"this run needs about .* on each of 1 devices") as refusal:
        ours.check_memory(2)
    seeds = int(str(refusal.value).partition("--seeds ")[2].split()[0])
    assert seeds == 40
    study(seeds=seeds, width=4).check_memory(2)
    monkeypatch.setattr(memory, "room", lambda devices: 1)
    with pytest.raises(OptionError, match="ask for a smaller --width than 4"):
        ours.check_memory(2)


def test_a_run_that_does_not_fit_leaves_its_folder_for_one_that_does(tmp_path, monkeypatch):
    tables = {"policy": "table", "reward": "table", "gradients": "exact", "segment_length": 2, "steps": 2, "width": 2}

    def config(seeds):
        return configure("garnet", "alternating", **tables, seeds=seeds)

    def go(seeds):
        return load_run(train(config(seeds), tmp_path / "run")).sizes["seed"]

    check = memory.refuse_too_much
    monkeypatch.setattr(
        memory,
        "refuse_too_much",
        lambda wanted, room, *rest: check(wanted, wanted.fixed + 4.5 * wanted.per_lane, *rest),
    )
    devices = len(jax.devices())
    with pytest.raises(OptionError, match=f"--seeds {4 * devices} would fit"):
        go(1000)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert go(4 * devices) == 4 * devices
    with pytest.raises(OptionError, match=f"--seeds {8 * devices} would fit"):  # beside those that are there
        go(1000)
    assert go(4 * devices + 1) == 4 * devices + 1


def test_the_memory_of_this_machine_is_known_and_shared_by_the_devices_of_a_run(monkeypatch):
    assert 2**20 < memory.host_memory() < 2**50
    monkeypatch.setattr(memory, "host_memory", lambda: 6e9)
    assert memory.room(jax.devices()[:1]) == 6e9
    assert memory.room(2 * jax.devices()[:1]) == 3e9
    # A second process on this host halves it; one on another host does not.
    here = memory.of_all(np.uint32(7))[0]
    for other, each in ((here, 1.5e9), (here + np.uint32(1), 3e9)):
        monkeypatch.setattr(
            memory, "of_all", lambda x, other=other: np.array([x, other if x.dtype == np.uint32 else x])
        )
        monkeypatch.setattr(memory.zlib, "crc32", lambda name: int(here))
        assert memory.room(2 * jax.devices()[:1]) == each


def test_the_limit_of_a_control_group_or_of_one_around_it_counts(tmp_path, monkeypatch):
    step = tmp_path / "job" / "step"
    step.mkdir(parents=True)
    for group, limit in ((tmp_path / "job", "3000000"), (step, "max")):
        (group / "memory.max").write_text(limit)
        (group / "memory.current").write_text("1500000")
        (group / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n")
    found = memory._control_groups(tmp_path, own)
    assert found == [step, tmp_path / "job", tmp_path]
    monkeypatch.setattr(memory, "_control_groups", lambda: found)
    assert memory.host_memory() == 2_000_000


def test_prediction_is_close_to_what_arrays_take():
    state, lanes = jnp.zeros((8, 1000)), 8
    compiled = jax.jit(lambda x: x + 1).lower(state).compile()
    need = memory.need(compiled, lanes, state.nbytes)
    assert need.per_lane * lanes == pytest.approx(3 * state.nbytes, rel=0.01)
    assert np.isfinite(need.total)
