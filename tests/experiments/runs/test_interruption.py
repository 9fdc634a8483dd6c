"""Signals end a run in good order: the chunk ends, its checkpoint is written, the same call goes on."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments import configure, load_run, train
from experiments.__main__ import main
from experiments.commands import report
from experiments.runs import cohort as groups
from experiments.runs import driver
from experiments.runs.interruption import OVER, Ending, Stopped, end_at_once, requests_to_stop

TINY = ["--world", "garnet", "--algorithm", "alternating", "--gradients", "exact", "--policy", "table"]
TINY += ["--reward", "table", "--segment-length", "2", "--num-policy-steps", "1", "--width", "2", "--seeds", "2"]
TINY += ["--steps", "6", "--chunk", "2"]


def tiny():
    tables = {"policy": "table", "reward": "table", "gradients": "exact"}
    return configure(
        "garnet", "alternating", **tables, segment_length=2, num_policy_steps=1, width=2, seeds=2, steps=6, chunk="2"
    )


@pytest.fixture
def signalled(monkeypatch):
    """A function of (signal, how many times, step): sends it when the chunk that starts at that step is written."""

    honest = groups.write_metrics

    def plan(number, times=1, at=2):
        def write(folder, group, first, arrays):
            honest(folder, group, first, arrays)
            for _ in range(times if first == at else 0):
                os.kill(os.getpid(), number)

        monkeypatch.setattr(groups, "write_metrics", write)

    monkeypatch.setattr(driver, "write_report", lambda folder, *rest: folder / "report.html")
    return plan


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "write_report", lambda folder, *rest: folder / "report.html")
        return load_run(train(tiny(), tmp_path_factory.mktemp("whole") / "run"))


def assert_same_run(ours, theirs):
    for name in theirs:
        np.testing.assert_array_equal(ours[name].values, theirs[name].values, err_msg=name)


@pytest.fixture(autouse=True)
def heeds_sighup():
    """SIGHUP has its usual meaning, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


STOPPING = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize(
    ("number", "error"), [*((number, Stopped) for number in STOPPING), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_lets_the_chunk_end_and_its_checkpoint_be_written(tmp_path, whole, signalled, number, error):
    before = signal.getsignal(number)
    signalled(number)
    with pytest.raises(error):
        train(tiny(), tmp_path / "run")
    assert signal.getsignal(number) is before
    assert load_run(tmp_path / "run").sizes["step"] == 4
    checkpoints = [path.name for path in (tmp_path / "run/checkpoints/000000-000001").iterdir()]
    assert sorted(checkpoints) == ["2", "4"]
    signalled(number, times=0)
    assert_same_run(load_run(train(tiny(), tmp_path / "run")), whole)


def test_a_second_ctrl_c_does_not_wait_for_the_checkpoint(tmp_path, whole, signalled):
    signalled(signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints/000000-000001/4").exists()
    signalled(signal.SIGINT, times=0)
    assert_same_run(load_run(train(tiny(), tmp_path / "run")), whole)


@pytest.mark.parametrize(("more", "code"), [([], 0), (["--stopped-code", "75"], 75)])
def test_the_command_ends_with_0_on_sigterm_or_as_asked_and_says_how_to_resume(tmp_path, signalled, capsys, more, code):
    signalled(signal.SIGTERM)
    assert main(["train", *TINY, *more, "--out", str(tmp_path / "run")]) == code
    said = capsys.readouterr()
    assert "stopped after step 4 of 6, as asked; the same command goes on from there" in said.out + said.err


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_the_command_ends_on_a_closed_terminal_or_a_warning_as_on_sigterm(tmp_path, signalled, capsys, number):
    signalled(number)
    assert main(["train", *TINY, "--stopped-code", "75", "--out", str(tmp_path / "run")]) == 75
    assert "stopped after step 4 of 6" in capsys.readouterr().out


def test_sighup_stays_ignored_where_it_was(tmp_path, whole, signalled, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        signalled(signal.SIGHUP)
        assert_same_run(load_run(train(tiny(), tmp_path / "run")), whole)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


IN_A_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def test_a_run_whose_terminal_is_closed_is_saved_and_ends_in_good_order(tmp_path):
    folder, steps = tmp_path / "run", 2000
    command = [sys.executable, "-m", "experiments", "train", *TINY, "--steps", str(steps), "--out", str(folder)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *command, "--stopped-code", "75"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
    )
    os.close(theirs)
    deadline = time.monotonic() + 240
    while not [*folder.glob("metrics/*/*.npz")]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.close(ours)
    assert process.wait(timeout=120) == 75
    (newest, *_) = sorted((int(x.name) for x in folder.glob("checkpoints/*/*") if x.name.isdigit()), reverse=True)
    assert 0 < newest < steps and load_run(folder).sizes["step"] == newest


def test_the_command_ends_with_130_on_ctrl_c(tmp_path, signalled, capsys):
    signalled(signal.SIGINT)
    assert main(["train", *TINY, "--out", str(tmp_path / "run")]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_a_thread_that_cannot_listen_to_signals_runs_without():
    found = []

    def listen():
        with requests_to_stop() as requests:
            found.append(bool(requests))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_command_whose_run_a_signal_stops_ends_with_a_line(tmp_path, signalled, monkeypatch, capsys):
    signalled(signal.SIGTERM)
    monkeypatch.setattr(report, "report", lambda folder, say: train(tiny(), folder / "run"))
    assert main(["report", str(tmp_path)]) == 130
    assert "bilevel: interrupted" in capsys.readouterr().err


# Before a run listens ---------------------------------------------------------------------------------------------------

# The command, which gets a signal while it imports a module, inside a callback of Python's garbage collection: Python drops
# what is raised there, and JAX has such a callback.
WHILE_IT_IMPORTS = """
import gc, importlib.abc, os, sys
module, number, sys.argv = sys.argv[1], int(sys.argv[2]), ["bilevel", *sys.argv[3:]]


class Signals(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            gc.callbacks.append(signalled)
            gc.collect()


def signalled(phase, info):
    gc.callbacks.remove(signalled)
    os.kill(os.getpid(), number)


from experiments.__main__ import command
sys.meta_path.insert(0, Signals())
command()
"""
GOES_ON, MEASURED = "the same command resumes", "the same command goes on from what it had measured"


@pytest.mark.parametrize(
    ("module", "number", "arguments", "code", "words"),
    [
        ("jax", signal.SIGINT, ["--quiet", "train", *TINY], 130, GOES_ON),
        ("experiments.runs.driver", signal.SIGINT, ["train", *TINY], 130, GOES_ON),
        ("jax", signal.SIGTERM, ["train", *TINY], 0, "stopped before it began, as asked; the same command begins it"),
        ("jax", signal.SIGHUP, ["train", *TINY, "--stopped-code", "75"], 75, "stopped before"),
        ("experiments.runs.driver", signal.SIGTERM, ["train", "--stopped-code=75", *TINY], 75, "stopped before"),
        ("experiments.runs.driver", signal.SIGUSR1, ["train", "--stopped-code=75", *TINY], 75, "stopped before"),
        ("experiments.claims.p1.bias", signal.SIGINT, ["verify", "P1.bias", "--quick"], 130, MEASURED),
        ("experiments.claims.p1.bias", signal.SIGTERM, ["verify", "P1.bias", "--quick"], 130, MEASURED),
        ("experiments.commands.report", signal.SIGINT, ["report", "--help"], 130, "nothing was kept: run it again"),
    ],
)
def test_one_signal_ends_a_command_wherever_it_comes_and_says_so_in_a_line(
    tmp_path, module, number, arguments, code, words
):
    command = [
        sys.executable,
        "-c",
        WHILE_IT_IMPORTS,
        module,
        str(int(number)),
        *arguments,
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == code and len(lines) == 1, done.stderr
    assert lines[0].startswith("bilevel: ") and words in lines[0]


def test_a_second_ctrl_c_ends_the_command_wherever_it_comes(tmp_path):
    send = "gc.callbacks.append(twice), gc.collect()"
    script = f"""
import gc, os, signal, sys
from experiments.runs import cohort as groups
from experiments.__main__ import command
sys.argv[:] = ["bilevel", "train", *{TINY!r}, "--out", {str(tmp_path / "run")!r}]
honest, groups.write_metrics = groups.write_metrics, lambda *rest: (honest(*rest), {send})


def twice(phase, info):
    gc.callbacks.remove(twice)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


command()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line]
    assert done.returncode == 130 and len(lines) == 2 and GOES_ON in lines[1], done.stderr
    assert not [*(tmp_path / "run").glob("checkpoints/*/2")]


def test_once_a_run_has_ended_a_signal_to_stop_it_does_nothing_and_what_is_ignored_stays_so(monkeypatch):
    codes, before = [], {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT)}
    monkeypatch.setattr(os, "_exit", codes.append)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a script puts into the background
        end_at_once({signal.SIGUSR1: Ending(75, "stopped"), signal.SIGINT: Ending(130, "interrupted")})
        OVER.clear()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGUSR1)
        assert codes == [75]
        with requests_to_stop():
            pass
        signal.raise_signal(signal.SIGUSR1)
        assert codes == [75]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
