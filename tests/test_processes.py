"""One run on several devices and several processes: the same bits, and a clear end when a process dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import load_run
from experiments.__main__ import main
from experiments.processes import agree, any_process, is_main, of_all
from experiments.run_folder import MARK

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
from experiments import configure, driver, train
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


def launch(folder, num_processes, *more):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = []
    for name, value in OPTIONS.items():
        arguments += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    command = [sys.executable, "-m", "experiments", "train", "--world", WORLD, "--algorithm", ALGORITHM, *arguments]
    command += ["--out", str(folder), "--distributed", "--coordinator", f"localhost:{port}"]
    command += ["--num-processes", str(num_processes), "--peer-timeout", str(TIMEOUT), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment(1)}
    return [subprocess.Popen([*command, "--process-id", str(i)], **pipes) for i in range(num_processes)]


def outcome(processes):
    """(exit code, output) of each."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_killed_on_four_processes_a_run_goes_on_on_two_bit_for_bit(tmp_path, runs):
    folder = tmp_path / "run"
    processes = launch(folder, 4)
    deadline = time.monotonic() + 240
    while len([*folder.glob("checkpoints/*/[0-9]*")]) < 3:
        assert time.monotonic() < deadline and processes[0].poll() is None
        time.sleep(0.05)
    killed = time.monotonic()
    processes[2].send_signal(signal.SIGKILL)
    ends = outcome(processes)
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
        (["--num-processes", "2"], ["required: --distributed too"]),
        (["--distributed", "--process-id", "0"], ["--process-id 0", "all three, or none"]),
        (
            ["--distributed", "--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"],
            ["--process-id 2 of 2", "a number below --num-processes"],
        ),
        (
            ["--distributed", "--coordinator", "nowhere", "--num-processes", "2", "--process-id", "0"],
            ["'nowhere'", "HOST:PORT"],
        ),
        (["--distributed", "--peer-timeout", "1"], ["--peer-timeout is 1", "at least 10"]),
    ],
)
def test_what_does_not_make_a_group_of_processes_is_refused(tmp_path, capsys, arguments, words):
    assert main(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and all(word in said for word in words), said
    assert not (tmp_path / "run").exists()
