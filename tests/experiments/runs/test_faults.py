"""Faults, each tried many times at moments drawn from fixed seeds: nothing complete is lost, and no bit changes.

A table of what was tried, lost and wrong is printed at the end. *Lost*: a resumed run began before the newest whole
checkpoint. *Wrong*: a metric or a learned parameter of the finished run differs from those of an undisturbed one. Gradients
are sampled, so that every seed and step has numbers of its own: lanes that were exchanged and keys of other steps show, as
mutants prove. Chunks of metrics are merged early, so that it happens under each fault. `BILEVEL_FAULT_TIMES=2` tries each
fault twice, for a quick look.
"""

import contextlib
import dataclasses
import gc
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.run import DIVERGED
from experiments import configure, load_params, load_run, train
from experiments.__main__ import main
from experiments.files import RunFolderError
from experiments.runs import cohort, driver, metrics

# What tensorstore left unread is collected where nobody sees it, except for pytest.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_runs"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TIMES = int(os.environ.get("BILEVEL_FAULT_TIMES", "20"))
SEEDS, STEPS, HALF, CHUNK = 3, 12, 6, 2
OPTIONS = {"states": 3, "actions": 2, "successors": 2, "policy": "table", "reward": "table"}
OPTIONS |= {"critic_model": "table", "num_targets": 1, "num_transitions": 4, "num_chains": 2, "batch_size": 4}
OPTIONS |= {"rollout_length": 3, "segment_length": 2, "num_policy_steps": 1}
OPTIONS |= {"seeds": SEEDS, "chunk": str(CHUNK), "width": 2}
MERGED = 4  # chunks that are merged into one file
LONG = 30  # outer steps of the runs that get signals: about a second
ROOT = pathlib.Path(__file__).parents[3]
GROUP = f"000000-{SEEDS - 1:06d}"


def tiny(steps=STEPS, **options):
    """A configuration whose run takes a second once it is compiled."""
    return configure("garnet", "alternating", **(OPTIONS | {"steps": steps} | options))


def words(folder, steps=STEPS) -> list[str]:
    """The same as arguments of the command line."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (OPTIONS | {"steps": steps}).items()]
    return ["train", "--world", "garnet", "--algorithm", "alternating", *flags, "--out", str(folder)]


# What happened --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Tally:
    """How often a fault was tried, how often it was noticed, and what it cost."""

    tried: int = 0
    noticed: int = 0
    lost: int = 0
    wrong: int = 0
    began: float = dataclasses.field(default_factory=time.monotonic)
    seconds: float = 0.0


@pytest.fixture(scope="module")
def tallies(request):
    """Fault -> Tally; the table is printed when the module is over."""
    found: dict[str, Tally] = {}
    yield found
    plugins = request.config.pluginmanager
    terminal = plugins.getplugin("terminalreporter")
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        terminal.ensure_newline()
        terminal.write_line(f"{'fault':62s}{'tried':>7s}{'noticed':>9s}{'lost':>6s}{'wrong':>7s}{'seconds':>9s}")
        for fault, tally in found.items():
            row = f"{fault:62s}{tally.tried:7d}{tally.noticed:9d}{tally.lost:6d}{tally.wrong:7d}{tally.seconds:9.1f}"
            terminal.write_line(row)


@pytest.fixture
def tally(tallies, request):
    """Of this test's fault; a test that did not try it often enough, or lost anything, fails here."""
    name = request.node.name.removeprefix("test_").replace("_", " ")
    ours = tallies[name] = Tally()
    yield ours
    ours.seconds = time.monotonic() - ours.began


@pytest.fixture
def begun(monkeypatch):
    """The first step of every chunk that was computed in this process."""
    honest, steps = cohort.write_metrics, []

    def write(folder, group, first, arrays):
        steps.append(first)
        honest(folder, group, first, arrays)

    monkeypatch.setattr(cohort, "write_metrics", write)
    return steps


@pytest.fixture
def draws(request):
    """Random moments, bytes and files: the same ones in every run of a test."""
    return random.Random(request.node.name)


def result(folder) -> dict[str, np.ndarray]:
    """Every metric and every learned parameter of a run."""
    run, params = load_run(folder), load_params(folder, SEEDS - 1)
    found = {name: run[name].values for name in run}
    with np.load(folder / "tables.npz") as tables:  # of every seed, as the run itself wrote them
        found |= {f"final {name}": tables[name] for name in ("learned_reward", "policy")}
    return found | {f"leaf {i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}


def same_bits(one, other) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


def whole_steps(folder) -> list[int]:
    """Steps of the checkpoints that have their final name, newest first."""
    found = (path.name for path in (folder / "checkpoints" / GROUP).glob("*"))
    return sorted((int(name) for name in found if name.isdigit()), reverse=True)


def go_on(folder, whole, tally, begun, keeps, steps=STEPS) -> list[str]:
    """Resumes a run to its end and counts what it lost; `keeps`: the step that it must go on from. Says its notes."""
    said: list[str] = []
    begun.clear()
    train(tiny(steps), folder, say=said.append)
    tally.tried += 1
    tally.lost += min([*begun, steps]) < keeps
    tally.wrong += not same_bits(result(folder), whole)
    assert min([*begun, steps]) == keeps
    return [line for line in said if line.startswith("note: checkpoint")]


def one_line(text) -> str:
    """The only line that is there."""
    (line,) = [line for line in text.splitlines() if line.strip()]
    return line


def assert_harmless(tally, noticed):
    """Tried often enough, noticed often enough, and nothing lost or wrong."""
    assert tally.tried >= TIMES and tally.noticed >= noticed and (tally.lost, tally.wrong) == (0, 0), tally


@pytest.fixture(scope="module", autouse=True)
def merging():
    """Merges `MERGED` chunks of metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MERGED", MERGED)
        yield


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The folder of a run that was stopped halfway, with checkpoints at 2, 4 and 6."""
    jax.devices()  # first, so that a command run in this process leaves the devices as they are
    precision = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")  # the command line's
    folder, honest = tmp_path_factory.mktemp("half") / "run", cohort.Checkpoints.save

    def save(checkpoints, step, state):
        honest(checkpoints, step, state)
        if step == HALF:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort.Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), folder)
    assert whole_steps(folder) == [6, 4, 2]
    gc.collect()
    gc.freeze()  # what is there now need not be searched at every restore
    yield folder
    gc.unfreeze()
    jax.config.update("jax_default_matmul_precision", precision)


def undisturbed(tmp_path_factory, steps):
    found = result(train(tiny(steps), tmp_path_factory.mktemp("whole") / "run"))
    for name in (
        "gradient_norm",
        "learned_return",
    ):  # [hyper, seed, step]: a lane or a step in another's place would show
        assert len(np.unique(found[name])) == found[name].size == SEEDS * steps, name
    for name in ("final learned_reward", "final policy"):
        assert len(np.unique(found[name][0], axis=0)) == SEEDS, name
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, half):
    """The result of an undisturbed run."""
    return undisturbed(tmp_path_factory, STEPS)


@pytest.fixture(scope="module")
def long(tmp_path_factory, half):
    """The result of an undisturbed run of `LONG` steps."""
    return undisturbed(tmp_path_factory, LONG)


def copied(half, tmp_path, trial) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(half, tmp_path / str(trial)))


# Signals --------------------------------------------------------------------------------------------------------------

NURSERY = (
    f"""
import json, os, resource, sys
import jax, tyro, xarray
from experiments.runs import driver, metrics
from experiments.__main__ import command
metrics.MERGED = {MERGED}
"""
    + """
driver.write_report = lambda folder, *rest: folder / "report.html"
for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, int):
        print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        for path, number in ((os.devnull, 0), (order["out"], 1), (order["err"], 2)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        if order["limit"]:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # read, not written to in halves
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        sys.argv[1:] = order["arguments"]
        command()
    print(child, flush=True)
"""
)


class Nursery:
    """Starts `bilevel` as processes, by fork from one that has imported everything and has touched no device."""

    def __init__(self, scratch):
        self.scratch = scratch
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.parent = subprocess.Popen([sys.executable, "-c", NURSERY], cwd=ROOT, env=environment, **pipes)

    def ask(self, order) -> int:
        self.parent.stdin.write(json.dumps(order) + "\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())

    def start(self, arguments, limit=0) -> int:
        """The process id; `limit`: bytes that a file may have."""
        name = f"{time.monotonic_ns()}"
        files = {"out": f"{self.scratch}/{name}.out", "err": f"{self.scratch}/{name}.err"}
        process = self.ask({"arguments": arguments, "limit": limit} | files)
        (self.scratch / str(process)).symlink_to(files["err"])
        (self.scratch / f"{process}.said").symlink_to(files["out"])
        return process

    def end(self, process) -> tuple[int, str, str]:
        """(exit code, output, errors), when it has ended; no traceback may be among the errors."""
        code = self.ask(process)
        names = (self.scratch / f"{process}.said", self.scratch / str(process))
        said, errors = (name.read_text() for name in names)
        for name in names:
            name.unlink()
        assert "Traceback" not in said + errors and "Exception" not in said + errors, said + errors
        return code, said, errors


@pytest.fixture(scope="module")
def nursery(tmp_path_factory, half):
    """See `Nursery`."""
    ours = Nursery(tmp_path_factory.mktemp("processes"))
    yield ours
    ours.parent.stdin.close()
    ours.parent.wait(timeout=60)


def wait_until(seen, seconds=120):
    """Looks until `seen()` is true; what it was."""
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


def alive(process) -> bool:
    """Whether it runs: one that has ended is a zombie until the nursery is asked."""
    return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def metrics_of(folder):
    return list((folder / "metrics" / GROUP).glob("*.npz"))


def half_saved(folder):
    return list((folder / "checkpoints" / GROUP).glob("*tmp*"))


def kill_and_go_on(process, folder, nursery, long, tally, begun):
    os.kill(process, signal.SIGKILL)
    code, _, _ = nursery.end(process)
    assert code == -signal.SIGKILL
    go_on(folder, long, tally, begun, keeps=max([*whole_steps(folder), 0]), steps=LONG)


def test_kill_9_at_any_moment(tmp_path, nursery, long, tally, begun, draws):
    for trial in range(TIMES):
        folder = tmp_path / str(trial)
        process = nursery.start(words(folder, LONG))
        # A quarter at any moment from the start on, compilation included, the others among the chunks.
        wait_until(lambda f=folder, t=trial: metrics_of(f) if t % 4 else (f / "lock").exists())
        time.sleep(draws.uniform(0, 1))
        tally.noticed += alive(process)
        kill_and_go_on(process, folder, nursery, long, tally, begun)
    assert_harmless(tally, noticed=TIMES // 2)


def test_kill_9_in_the_middle_of_a_save(tmp_path, nursery, long, tally, begun, draws):
    for trial in range(TIMES):
        folder, after = tmp_path / str(trial), draws.randrange(0, LONG // 2, CHUNK)
        process = nursery.start(words(folder, LONG))
        wait_until(lambda f=folder, a=after: len(metrics_of(f)) * CHUNK > a and half_saved(f))
        time.sleep(draws.uniform(0, 0.01))
        os.kill(process, signal.SIGSTOP)  # nothing moves while it is looked at
        tally.noticed += bool(half_saved(folder))
        kill_and_go_on(process, folder, nursery, long, tally, begun)
    assert_harmless(tally, noticed=TIMES // 3)


def interrupted(nursery, folder, draws, numbers) -> tuple[int, str, str]:
    """What a run said that got these signals a few milliseconds after each other, at any moment of its steps."""
    process = nursery.start(words(folder, LONG))
    wait_until(lambda: metrics_of(folder))
    time.sleep(draws.uniform(0, 0.5))
    for i, number in enumerate(numbers):
        time.sleep(draws.uniform(0, 0.02) if i else 0)
        if alive(process):
            os.kill(process, number)
    return nursery.end(process)


def test_sigterm(tmp_path, nursery, long, tally, begun, draws):
    for trial in range(TIMES):
        folder = tmp_path / str(trial)
        code, said, errors = interrupted(nursery, folder, draws, [signal.SIGTERM])
        assert code == 0 and one_line(errors) == "stopping when the running chunk has ended"
        stopped = re.search(
            r"^bilevel: stopped after step (\d+) of \d+, as asked; the same command goes on", said, re.M
        )
        assert stopped or "report:" in said, said  # it came before the last chunk, or after it
        step = int(stopped[1]) if stopped else LONG
        tally.noticed += bool(stopped)
        assert whole_steps(folder)[0] == step == load_run(folder).sizes["step"]
        go_on(folder, long, tally, begun, keeps=step, steps=LONG)
    assert_harmless(tally, noticed=TIMES // 2)


def test_ctrl_c_once(tmp_path, nursery, long, tally, begun, draws):
    for trial in range(TIMES):
        folder = tmp_path / str(trial)
        code, said, errors = interrupted(nursery, folder, draws, [signal.SIGINT])
        assert code == 130 or (code == 0 and "report:" in said), said + errors
        hint = "stopping when the running chunk has ended; Ctrl-C again stops at once"
        farewell = "bilevel: interrupted; the same command resumes from the newest checkpoint"
        lines = [line for line in errors.splitlines() if line]
        assert lines == [hint, farewell][: 2 if code else 1]
        tally.noticed += code == 130
        assert whole_steps(folder)[0] == load_run(folder).sizes["step"]
        go_on(folder, long, tally, begun, keeps=whole_steps(folder)[0], steps=LONG)
    assert_harmless(tally, noticed=TIMES // 2)


def test_ctrl_c_twice(tmp_path, nursery, long, tally, begun, draws):
    for trial in range(TIMES):
        folder = tmp_path / str(trial)
        code, said, errors = interrupted(nursery, folder, draws, [signal.SIGINT] * 2)
        assert code == 130 or (code == 0 and "report:" in said), said + errors
        if code:
            assert errors.count("bilevel: interrupted; the same command resumes") == 1
        tally.noticed += code == 130
        go_on(folder, long, tally, begun, keeps=max([*whole_steps(folder), 0]), steps=LONG)
    assert_harmless(tally, noticed=TIMES // 2)


def test_two_processes_at_once(tmp_path, nursery, whole, tally, begun, draws):
    for trial in range(TIMES):
        folder, processes = tmp_path / str(trial), []
        for _ in range(2):
            processes.append(nursery.start(words(folder)))
            time.sleep(draws.choice([0, 0, 0.001, 0.01, 0.1]))
        ends = [nursery.end(process) for process in processes]
        assert sorted(code for code, _, _ in ends) == [0, 2], ends
        errors = "".join(errors for code, _, errors in ends if code == 2)
        assert "held by process" in one_line(errors) and "one process at a time may write a run" in errors
        tally.noticed += 1
        go_on(folder, whole, tally, begun, keeps=STEPS)
    assert_harmless(tally, noticed=TIMES)


# The disk -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(path, megabytes=4):
    """A disk of its own at `path`; skips the test where this process may not mount one."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(disk, leave) -> pathlib.Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    left = os.statvfs(disk)
    filler.write_bytes(bytes(max(left.f_bavail * left.f_frsize - leave, 0)))
    return filler


def largest_file(folder) -> int:
    """Bytes of the largest file of the newest checkpoint."""
    newest = folder / "checkpoints" / GROUP / str(whole_steps(folder)[0])
    return max(path.stat().st_size for path in files_of(newest))


def ended(nursery, folder, tally, limit=0) -> str:
    """Runs a command for which there may be too little room: it finishes, or ends with 2. The errors."""
    code, said, errors = nursery.end(nursery.start(words(folder), limit))
    if code:
        line = one_line(errors)
        assert code == 2 and "written" in line and "room" in line, errors
        tally.noticed += 1
    else:
        assert "report:" in said, said + errors
    return errors


def test_a_full_disk(tmp_path, nursery, half, whole, tally, begun, draws):
    for trial in range(TIMES):
        with small_disk(tmp_path / str(trial)) as disk:
            folder = shutil.copytree(half, disk / "run")
            filler = fill(disk, leave=draws.randrange(0, 60_000))
            ended(nursery, folder, tally)
            kept = whole_steps(folder)[0]
            assert kept >= HALF
            filler.unlink()
            go_on(folder, whole, tally, begun, keeps=kept)
    assert_harmless(tally, noticed=TIMES // 2)


def test_files_that_may_not_grow(tmp_path, nursery, half, whole, tally, begun, draws):
    for trial in range(TIMES):
        folder = copied(half, tmp_path, trial)
        largest = largest_file(folder)
        ended(nursery, folder, tally, limit=draws.randrange(largest * 2 // 3, largest * 13 // 12))
        go_on(folder, whole, tally, begun, keeps=whole_steps(folder)[0])
    assert_harmless(tally, noticed=TIMES // 2)


def test_a_full_disk_is_told_in_one_line(tmp_path, nursery, half):
    folder = copied(half, tmp_path, 0)
    said = ended(nursery, folder, Tally(), limit=largest_file(folder) * 3 // 4)
    assert len(said.splitlines()) == 1, said


def filled_at_the_end(disk, half, monkeypatch) -> tuple[pathlib.Path, pathlib.Path]:
    """The folder of a run on a disk that will be full once all steps are done, and the file that will fill it."""
    honest = driver.finish

    def finish(folder, *rest):
        fill(disk, leave=0)
        honest(folder, *rest)

    monkeypatch.setattr(driver, "finish", finish)
    return shutil.copytree(half, disk / "run"), disk / "filler"


def test_a_disk_that_is_full_once_all_steps_are_done(tmp_path, half, whole, tally, begun, monkeypatch):
    for trial in range(TIMES):
        with small_disk(tmp_path / str(trial)) as disk:
            with monkeypatch.context() as patch:
                folder, filler = filled_at_the_end(disk, half, patch)
                with pytest.raises(RunFolderError):
                    train(tiny(), folder)
            tally.noticed += 1
            filler.unlink()
            go_on(folder, whole, tally, begun, keeps=STEPS)
    assert_harmless(tally, noticed=TIMES)


def test_a_disk_that_is_full_at_the_end_is_told_in_one_line(tmp_path, half, monkeypatch, capfd):
    with small_disk(tmp_path / "disk") as disk:
        folder, _ = filled_at_the_end(disk, half, monkeypatch)
        capfd.readouterr()
        assert main(words(folder)) == 2
        assert "written" in one_line(capfd.readouterr().err)


# Damage ---------------------------------------------------------------------------------------------------------------


def flip(path, draws):
    """Changes one byte, at least one of its bits."""
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content))] ^= draws.randrange(1, 256)
    path.write_bytes(content)


def truncate(path, draws):
    """Leaves the beginning of a file, at least one byte less than it was."""
    os.truncate(path, draws.randrange(path.stat().st_size))


def files_of(folder) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_checkpoint(tmp_path, half, whole, tally, begun, draws, damage):
    for trial in range(TIMES):  # every file of it, in turn
        folder = copied(half, tmp_path, trial)
        files = files_of(folder / "checkpoints" / GROUP / str(HALF))
        path = files[trial % len(files)]
        damage(path, draws)
        begun.clear()
        said: list[str] = []
        train(tiny(), folder, say=said.append)
        notes = [line for line in said if line.startswith("note: checkpoint")]
        tally.tried += 1
        tally.noticed += bool(notes)
        tally.wrong += not same_bits(result(folder), whole)
        tally.lost += begun[0] < HALF - CHUNK * bool(notes)  # a byte without a meaning costs nothing
        for note in notes:
            assert f"checkpoint {HALF} in" in note and "was passed over" in note and len(note.splitlines()) == 1
    assert_harmless(tally, noticed=TIMES // 2)


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_file_of_metrics(tmp_path, half, whole, tally, begun, draws, capfd, damage):
    for trial in range(TIMES):
        folder = copied(half, tmp_path, trial)
        path = draws.choice(metrics_of(folder))
        content = path.read_bytes()
        damage(path, draws)
        capfd.readouterr()
        code, said = main(words(folder)), capfd.readouterr()
        again = "is computed again" in said.out
        if code:
            assert code == 2 and f"{path} is damaged" in one_line(said.err), said.err
            path.write_bytes(content)
        else:  # from the checkpoint before it; or it is a byte of the container that means nothing
            assert again or damage is flip
            tally.wrong += not same_bits(result(folder), whole)
        tally.noticed += code == 2 or again
        go_on(folder, whole, tally, begun, keeps=HALF if code else STEPS)  # refused before anything is computed
    assert_harmless(tally, noticed=TIMES if damage is truncate else TIMES // 2)


def test_missing_checkpoints(tmp_path, half, whole, tally, begun, draws):
    for trial in range(TIMES):
        folder, missing = copied(half, tmp_path, trial), draws.randint(1, 3)
        for step in whole_steps(folder)[:missing]:
            shutil.rmtree(folder / "checkpoints" / GROUP / str(step))
        tally.noticed += 1
        go_on(folder, whole, tally, begun, keeps=HALF - CHUNK * missing)
    assert_harmless(tally, noticed=TIMES)


def test_the_clock_set_back(tmp_path, half, whole, tally, begun, draws, monkeypatch):
    clocks = {name: getattr(time, name) for name in ("time", "time_ns")}
    for trial in range(TIMES):
        folder, back = copied(half, tmp_path, trial), draws.randrange(1, 10 * 365 * 86400)
        for path in [*folder.rglob("*"), folder]:
            later = time.time() + draws.randrange(back)
            os.utime(path, (later, later))
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda back=back: clocks["time"]() - back)
            patch.setattr(time, "time_ns", lambda back=back: clocks["time_ns"]() - back * 10**9)
            assert not go_on(folder, whole, tally, begun, keeps=HALF)
        assert whole_steps(folder) == [12, 10, 8]
        tally.noticed += 1
    assert_harmless(tally, noticed=TIMES)


# A lane that dies -----------------------------------------------------------------------------------------------------

FAR = 1000  # no critic goes so far: a radius from there on has no other use


def dying(resolve, poison):
    """`resolve`, of algorithms whose state turns to NaN at the step by which the critic's radius is above `FAR`."""

    def built(config):
        job = resolve(config)

        def make(hyper):
            algorithm, measure = job.make(hyper)

            def step(key, state):
                inner, moves = state
                inner, info = algorithm.step(key, inner)
                dies = moves == jnp.int32(hyper["critic_radius"]) - FAR
                inner = jax.tree.map(
                    lambda x: jnp.where(dies, poison, x) if jnp.issubdtype(x.dtype, jnp.floating) else x, inner
                )
                return (inner, moves + 1), info

            def init(key):
                return algorithm.init(key), jnp.int32(0)

            return algorithm._replace(init=init, step=step, params=lambda state: algorithm.params(state[0])), measure

        return job._replace(make=make)

    return built


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_lane_that_is_not_finite(tmp_path, half, tally, draws, monkeypatch, poison):
    # Three seeds and two settings in blocks of two lanes: the second block holds a lane of each setting.
    monkeypatch.setattr(driver, "resolve", dying(driver.resolve, poison))

    def metrics(trial, dies_at):
        found = result(train(tiny(critic_radius=(2.0 * FAR, FAR + dies_at)), tmp_path / trial))
        return {name: x for name, x in found.items() if not name.startswith("leaf")}

    healthy = metrics("healthy", FAR + STEPS)
    for trial in range(TIMES):
        dies_at = draws.randrange(STEPS)
        ours = metrics(str(trial), dies_at)
        tally.tried += 1
        tally.noticed += bool(np.all(ours["status"][1, :, dies_at:] == DIVERGED))
        tally.wrong += not same_bits(*({name: x[0] for name, x in both.items()} for both in (ours, healthy)))
        until = [{n: x[1, :, :dies_at] for n, x in both.items() if "final" not in n} for both in (ours, healthy)]
        tally.lost += not same_bits(*until)  # what it had before it died
        assert all(np.isfinite(x).all() for name, x in ours.items() if "final" in name)
    assert tally.noticed == tally.tried == TIMES and (tally.lost, tally.wrong) == (0, 0), tally


# Mutants --------------------------------------------------------------------------------------------------------------


def exchanged(one, other):
    """A resumption after which two lanes stand in each other's place."""
    honest = cohort.Cohort.run

    def run(study, *rest):
        def restore(checkpoints):
            step, state, notes = cohort.Cohort.restore(study, checkpoints)
            places = np.arange(study.layout.num_lanes)
            places[[one, other]] = places[[other, one]]
            return step, study.layout.spread(jax.tree.map(lambda x: x[places], study.layout.gather(state))), notes

        study.restore = restore
        return honest(study, *rest)

    return {"run": run}


def shifted(by):
    """A resumption whose step t takes the key of step t + `by`."""
    honest = cohort.Cohort.check_memory

    def check_memory(study, chunk):
        advance = honest(study, chunk)
        return lambda lanes, state, first, last: advance(lanes, state, first + by, last + by)

    return {"check_memory": check_memory}


@pytest.mark.parametrize("mutant", [exchanged(0, 1), exchanged(0, 2), exchanged(1, 2), shifted(1), shifted(-1)])
def test_a_mutant_is_caught(tmp_path, half, whole, begun, monkeypatch, mutant):
    caught = Tally()
    for trial, changes in enumerate(({}, mutant)):
        with monkeypatch.context() as patch:
            for name, function in changes.items():
                patch.setattr(cohort.Cohort, name, function)
            go_on(copied(half, tmp_path, trial), whole, caught, begun, keeps=HALF)
    assert (caught.tried, caught.lost, caught.wrong) == (2, 0, 1)  # the one that was honest is right
