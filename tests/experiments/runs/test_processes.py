"""One run on several devices and several processes: the same bits, and a clear end when a process dies."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from experiments import load_run
from experiments.__main__ import main
from experiments.runs import processes
from experiments.runs.alike import differences
from experiments.runs.folder import MARK
from experiments.runs.processes import agree, any_process, is_main, of_all
from experiments.runs.relay import open_relay, split
from experiments.settings.options import OptionError

STEPS, CHUNK, SEEDS = 20, 2, 8
OPTIONS = {"policy": "table", "reward": "table", "gradients": "exact", "segment_length": 2, "num_policy_steps": 1}
OPTIONS |= {"seeds": SEEDS, "steps": STEPS, "chunk": str(CHUNK), "width": 2, "kl_weight": (0.5, 0.6)}
WORLD, ALGORITHM, TIMEOUT = "garnet", "alternating", 30


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run of one process with 1, 2, 4 and 8 devices: number of devices -> folder."""
    folder, counts = tmp_path_factory.mktemp("devices"), (1, 2, 4, 8)
    script = f"""
from pathlib import Path
from experiments import configure, train
from experiments.runs import driver
driver.write_report = lambda folder, *rest: folder / "report.html"
for devices in {counts}:
    train(configure({WORLD!r}, {ALGORITHM!r}, **{OPTIONS!r}, devices=devices), Path({str(folder)!r}) / str(devices))
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=environment(8), timeout=300)
    return {devices: load_run(folder / str(devices)) for devices in counts}


def assert_same_run(ours, theirs):
    assert ours.sizes == theirs.sizes
    for name in theirs:
        np.testing.assert_array_equal(ours[name].values, theirs[name].values, err_msg=name)


def environment(num_devices):
    return os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices), "JAX_PLATFORMS": "cpu"}


def launch(folder, num_processes, *more, own=None, devices=None, timeout=TIMEOUT, only=None):
    """The processes, or `only` some, each with its own further arguments and number of devices (1)."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = []
    for name, value in OPTIONS.items():
        arguments += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    command = [sys.executable, "-m", "experiments", "train", "--world", WORLD, "--algorithm", ALGORITHM, *arguments]
    command += ["--out", str(folder), "--distributed", "--coordinator", f"127.0.0.1:{port}"]
    command += ["--num-processes", str(num_processes), "--peer-timeout", str(timeout), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = []
    for i in only or range(num_processes):
        place = {"env": environment((devices or {}).get(i, 1))}
        started.append(subprocess.Popen([*command, "--process-id", str(i), *(own or {}).get(i, [])], **pipes, **place))
    return started


def outcome(processes):
    """(exit code, output) of each."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def wait_for(seen, started):
    """Looks until `seen()` is true, while the processes run."""
    deadline = time.monotonic() + 240
    while not seen():
        assert time.monotonic() < deadline and all(process.poll() is None for process in started)
        time.sleep(0.02)


def complaint(said):
    """The only line of the project itself; JAX and its libraries may say others, but print no stack."""
    assert not re.search(r"stack trace|Traceback|terminate called|^F\d{4} ", said, re.MULTILINE), said
    (line,) = re.findall(r"^bilevel: .*$", said, re.MULTILINE)
    return line


def test_killed_on_four_processes_a_run_goes_on_on_two_bit_for_bit(tmp_path, runs):
    folder = tmp_path / "run"
    started = launch(folder, 4)
    wait_for(lambda: len([*folder.glob("checkpoints/*/[0-9]*")]) >= 3, started)
    killed = time.monotonic()
    started[2].send_signal(signal.SIGKILL)
    ends = outcome(started)
    assert time.monotonic() - killed < 2 * TIMEOUT
    assert [code for code, _ in ends][2] == -signal.SIGKILL
    for i in (0, 1, 3):
        code, said = ends[i]
        assert code == 1 and f"process {i} ends, for the run needs all 4" in said, said
        assert "start them again with the same command" in said and "Traceback" not in said

    (first, said), (second, silent) = outcome(launch(folder, 2))
    assert first == second == 2
    assert "layout.num_processes: was 4, now 2" in said and "--allow-layout-change" in said
    assert "bilevel:" not in silent

    (first, said), (second, silent) = outcome(launch(folder, 2, "--allow-layout-change"))
    assert first == second == 0, said + silent
    assert "report:" in said and "report:" not in silent and "true return" not in silent
    assert_same_run(load_run(folder), runs[2])
    layout = json.loads((folder / "manifest.json").read_text())["layout"]
    assert (layout["num_processes"], layout["num_devices"]) == (2, 2)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({1: ["--seed", "1"]}, ["--seed is 0 in process 0, 1 in process 1"]),
        (
            {1: ["--reward-step-size", "0.5"], 2: ["--steps", "22", "--chunk", "4"], 3: ["--seeds", "6"]},
            [
                "--chunk is 2 in 3 processes (0, 1, 3), 4 in process 2",
                "in 3 processes (0, 2, 3), 0.5 in process 1",
                "--seeds is 8 in 3 processes (0, 1, 2), 6 in process 3",
                "--steps is 20 in 3 processes (0, 1, 3), 22 in process 2",
            ],
        ),
        (
            {1: ["--stopped-code", "75", "--peer-timeout", "40"]},
            [
                f"--peer-timeout is {TIMEOUT} in process 0, 40 in process 1",
                "--stopped-code is 0 in process 0, 75 in process 1",
            ],
        ),
        ({1: ["--num-processes", "3"]}, ["--num-processes is 2 in process 0, 3 in process 1"]),
    ],
)
def test_what_differs_between_processes_is_named_by_all_before_anything_compiles(tmp_path, own, words):
    count = 1 + max(own)
    assert count * OPTIONS["width"] <= 2 * 6  # every process has lanes that are no padding
    for code, said in outcome(launch(tmp_path / "run", count, own=own)):
        line = complaint(said)
        assert code == 2 and len(said.strip().splitlines()) == 1 and all(word in line for word in words), said
        assert "required: the same command" in line
    assert not (tmp_path / "run").exists()


def test_another_number_of_devices_is_named_by_all(tmp_path):
    for code, said in outcome(launch(tmp_path / "run", 2, devices={1: 2})):
        assert code == 2 and "number of devices of a process is 1 in process 0, 2 in process 1" in complaint(said)
    assert not (tmp_path / "run").exists()


def test_differences_are_named_by_value_and_missing_versions_too():
    one = {"--world": "garnet", "--states": 5, "--sigma": [0.1, 0.2], "version of jax": "1", "version of a": "2"}
    same = {"--out": ""}
    assert differences([one | same, one | same], [[0], [1]]) == []
    other = {"--world": "bandit", "--sigma": [0.1], "--contexts": 3, "version of jax": "1", "--out": ""}
    assert differences([one | same, other], [[0, 2, 3, 4, 5], [1]]) == [
        "--world is garnet in 5 processes (0, 2, 3, 4, …), bandit in process 1",
        "--sigma is 0.1 0.2 in 5 processes (0, 2, 3, 4, …), 0.1 in process 1",
        "version of a is 2 in 5 processes (0, 2, 3, 4, …), missing in process 1",
    ]
    assert differences([same, {"--out": "x"}], [[0], [1]]) == ["--out is not given in process 0, x in process 1"]


def test_process_0_listens_at_its_address_alone_and_gives_up_in_a_line_when_nobody_comes(tmp_path):
    (process,) = launch(tmp_path / "run", 2, timeout=10, only=[0])
    port = int(process.args[process.args.index("--coordinator") + 1].rpartition(":")[2])

    def answers(host):
        with socket.socket() as probe:
            return probe.connect_ex((host, port)) == 0

    wait_for(lambda: answers("127.0.0.1"), [process])
    assert not answers("127.0.0.2")  # of this machine too
    ((code, said),) = outcome([process])
    assert code == 2 and "not all 2 processes have come within 10 s" in complaint(said)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_a_process_that_waits_for_the_others(tmp_path, number, code):
    (process,) = launch(tmp_path / "run", 2, "--stopped-code", "75", timeout=200, only=[0])
    address = process.args[process.args.index("--coordinator") + 1]

    def waits():
        with socket.socket() as probe:
            return probe.connect_ex(split(address)) == 0

    wait_for(waits, [process])
    process.send_signal(number)
    said, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, said
    assert ("interrupted" if code == 130 else "stopped before it began") in complaint(said)


def test_two_processes_of_one_number_are_told_that_they_may_be_that(tmp_path):
    started = launch(tmp_path / "run", 3, timeout=10, own={2: ["--process-id", "1"]})
    waiting = [(code, said) for code, said in outcome(started) if code == 2]
    assert len(waiting) >= 2  # JAX ends one, where it learns of both
    for _, said in waiting:
        assert "or two processes have the same --process-id" in complaint(said)


def test_an_address_that_is_not_this_machines_alone_is_not_listened_at(monkeypatch, capsys):
    def resolving_to(*found):
        entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 1)) for host in found]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: entries)

    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    resolving_to("127.0.0.1")
    assert processes.bindable("localhost:0") == "localhost:0" and processes.bindable("127.0.0.1:0") == "127.0.0.1:0"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"port {port} of 127.0.0.1 is in use"):
            processes.bindable(f"localhost:{port}")
    assert capsys.readouterr().err == ""
    assert processes.bindable("node7:0") is None  # as this machine calls itself, but no other does
    resolving_to("198.51.100.7")  # of a service in front of it
    assert processes.bindable("node7:0") is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("listens on all that it has, port 0" in line and "trusted" in line for line in said)
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "127.0.0.1:0")
    assert processes.bindable("node7:0") is None and capsys.readouterr().err == ""


def test_the_relay_keeps_a_connection_whose_other_end_has_gone():
    reasons, joined = [], threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        door = open_relay(f"127.0.0.1:{server.getsockname()[1]}", 60, reasons.append, joined)
        with socket.create_connection(split(door)) as client:
            theirs, _ = server.accept()
            with theirs:
                client.sendall(b"a question")
                assert theirs.recv(100) == b"a question"
                theirs.sendall(b"an answer")
                assert client.recv(100) == b"an answer" and not reasons
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                client.recv(100)
            assert set(reasons) == {"process 0 has gone"}
    joined.set()


def end_process_0(folder, num_processes, seen, number=signal.SIGKILL, wait=0.0):
    """Ends process 0 some seconds after `seen()`; (seconds until all others have ended, outcome of each)."""
    started = launch(folder, num_processes)
    try:
        wait_for(seen, started)
        time.sleep(wait)
        began = time.monotonic()
        started[0].send_signal(number)
        ends = outcome(started[1:])
        return time.monotonic() - began, ends
    finally:
        started[0].kill()
        started[0].communicate()


def assert_told(ends, num_processes):
    for i, (code, said) in enumerate(ends, start=1):
        line = complaint(said)
        assert code == 1 and f"process {i} ends, for the run needs all {num_processes}" in line, said
        assert "start them again with the same command" in line


@pytest.mark.parametrize(("num_processes", "sign"), [(3, "lock"), (2, "checkpoints/*/[0-9]*")])
def test_the_end_of_process_0_is_told_by_all_others_in_a_line(tmp_path, num_processes, sign):
    folder = tmp_path / "run"
    seconds, ends = end_process_0(folder, num_processes, lambda: [*folder.glob(sign)])
    assert seconds < TIMEOUT
    assert_told(ends, num_processes)


@pytest.mark.slow
def test_the_end_of_process_0_at_any_moment_is_told_by_all_others(tmp_path):
    draws = random.Random(0)
    for trial in range(8):
        folder, num_processes = tmp_path / str(trial), 2 + trial % 3
        sign = ("lock", "checkpoints/*/[0-9]*")[trial % 2]
        wait = draws.uniform(0, 3 if sign == "lock" else 0.5)
        seconds, ends = end_process_0(folder, num_processes, lambda f=folder, s=sign: [*f.glob(s)], wait=wait)
        assert seconds < TIMEOUT
        assert_told(ends, num_processes)


@pytest.mark.slow
def test_the_silence_of_process_0_is_told_by_all_others(tmp_path):
    folder = tmp_path / "run"
    seconds, ends = end_process_0(folder, 3, lambda: [*folder.glob("lock")], signal.SIGSTOP)
    assert seconds < TIMEOUT
    assert_told(ends, 3)
    assert all("nothing was heard of process 0" in said for _, said in ends)


def test_a_warning_to_one_process_stops_all_of_them_and_what_was_done_is_saved(tmp_path):
    folder = tmp_path / "run"
    started = launch(folder, 2, "--steps", "2000", "--stopped-code", "75")
    wait_for(lambda: [*folder.glob("checkpoints/*/[0-9]*")], started)
    started[1].send_signal(signal.SIGUSR1)
    for code, said in outcome(started):
        assert code == 75 and "as asked; the same command goes on" in complaint(said)
    newest = max(int(path.name) for path in folder.glob("checkpoints/*/*") if path.name.isdigit())
    assert load_run(folder).sizes["step"] == newest < 2000


def test_what_process_0_alone_cannot_write_ends_all_at_once(tmp_path):
    folder = tmp_path / "run"
    (folder / "timing.json").mkdir(parents=True)  # a folder where it writes a file
    (folder / "lock").write_text(MARK)
    (first, said), (second, silent) = outcome(launch(folder, 2, "--steps", "2"))
    assert first == second == 2
    assert "timing.json cannot be read" in said and "Traceback" not in said + silent
    assert "bilevel:" not in silent and "nothing was heard" not in said


def test_two_four_and_eight_devices_give_the_same_bits(runs):
    assert len(np.unique(runs[2].gradient_norm.values[:, 0, -1])) == 2  # lanes differ, so an exchange would be seen
    for devices in (4, 8):
        assert_same_run(runs[devices], runs[2])


def test_one_device_agrees_with_two_to_rounding(runs):
    # A program for one device is not partitioned, and is simplified otherwise: the same numbers in another order.
    for name in runs[1]:
        np.testing.assert_allclose(runs[1][name][..., :10], runs[2][name][..., :10], rtol=1e-5, atol=1e-7, err_msg=name)


def test_one_process_agrees_with_itself():
    assert is_main() and agree(lambda: [1, "a"]) == [1, "a"]
    assert any_process(True) and not any_process(False)
    assert of_all(np.float32(2)).tolist() == [2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--num-processes", "2"],
            ["--num-processes came without --coordinator, --process-id, --distributed", "required: all four"],
        ),
        (
            ["--distributed", "--process-id", "0"],
            ["--process-id, --distributed came without --coordinator, --num-processes", "--distributed alone"],
        ),
        (
            ["--distributed", "--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"],
            ["--process-id is 2 with --num-processes 2", "a number below --num-processes"],
        ),
        (["--distributed", "--peer-timeout", "1"], ["--peer-timeout is 1", "at least 10"]),
    ],
)
def test_what_does_not_make_a_group_of_processes_is_refused(tmp_path, capsys, arguments, words):
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and all(word in said for word in words), said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("process", ["0", "1"])
@pytest.mark.parametrize(
    "address",
    ["nowhere", "host:99999", "localhost:0", "host:²", ":1234", "[::1]:1234:5", "::1:1234", "a b:1", "http://a:1"],
)
def test_an_address_without_a_port_that_can_be_is_refused_by_every_process(
    tmp_path, capsys, monkeypatch, address, process
):
    monkeypatch.setattr(processes, "_join", lambda *arguments: pytest.fail("this should have been refused before"))
    place = ["--distributed", "--coordinator", address, "--num-processes", "2", "--process-id", process]
    assert main(["train", *place, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"bilevel: --coordinator is {address!r}; required: HOST:PORT, a port from 1 to 65535")
    assert said.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("address", ["host0:1", "192.0.2.1:65535", "[2001:db8::1]:1234", "[fe80::1%eth0]:80"])
def test_an_address_with_a_host_and_a_port_is_taken(address):
    assert processes._check_place(processes.ProcessOptions(True, address, 2, 1))


def test_a_detected_address_whose_port_is_none_is_refused(tmp_path, capsys, monkeypatch):
    def detected(*arguments):
        return "host:99999", 2, 0, None

    monkeypatch.setattr(processes.ClusterEnv, "auto_detect_unset_distributed_params", detected)
    assert main(["train", "--distributed", "--out", str(tmp_path / "run")]) == 2
    assert "its coordinator is host:99999, whose port is none" in capsys.readouterr().err


LEAVES = """
import sys, time
from experiments.runs.processes import ProcessOptions, joined
me, port = int(sys.argv[1]), sys.argv[2]
with joined(ProcessOptions(True, f"localhost:{port}", 2, me, 10)):
    time.sleep(0 if me else 15)
print("left")
"""


@pytest.mark.slow
def test_a_process_that_waits_for_another_to_leave_is_not_taken_for_dead():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment(1)}
    processes = [subprocess.Popen([sys.executable, "-c", LEAVES, str(i), port], **pipes) for i in range(2)]
    assert [(code, said.strip()) for code, said in outcome(processes)] == [(0, "left")] * 2
