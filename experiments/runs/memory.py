"""What a run will need in memory, known from its compiled program, against what there is."""

import platform
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from experiments.runs.processes import of_all
from experiments.settings.options import OptionError


class Need(NamedTuple):
    """Bytes that a device needs while a chunk runs."""

    fixed: int  # whatever the number of lanes: the temporaries of one block
    per_lane: float  # of a lane: its state before and after the chunk, its copy on the way to the disk, its metrics
    num_lanes: int  # lanes on the device, padding among them

    @property
    def total(self) -> float:
        """Bytes a device."""
        return self.fixed + self.per_lane * self.num_lanes

    def fitting(self, available: float) -> int:
        """Lanes a device that fit into so many bytes."""
        return max(int((available - self.fixed) / self.per_lane), 0)


def need(advance: jax.stages.Compiled, num_lanes: int, state_bytes: int) -> Need:
    """Of an advance compiled for devices that hold `num_lanes` lanes each, whose state has `state_bytes` bytes."""
    analysis = advance.memory_analysis()
    resident = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Need(int(analysis.temp_size_in_bytes), (resident + state_bytes) / num_lanes, num_lanes)


def room(devices) -> float:
    """Bytes that each of a run's devices has left: of the one that has least, in any process, which all must call this.
    Devices of a CPU share its memory equally, over all processes on that host. inf where it is not known."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    hosts = of_all(np.uint32(zlib.crc32(platform.node().encode())))
    if local[0].platform == "cpu":
        free = host_memory() / (len(local) * int(np.sum(hosts == hosts[jax.process_index()])))
    else:
        free = min(map(_device_memory, local))
    return float(np.min(of_all(np.float32(free))))


def _device_memory(device: jax.Device) -> float:
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else float("inf")


def host_memory() -> float:
    """Bytes that this host, or the container that we run in, has left; inf where it is not known."""
    limits = []
    for group in _control_groups():
        try:  # what the page cache holds can be had back
            cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
            used = int((group / "memory.current").read_text()) - int(cache)
            limits.append(int((group / "memory.max").read_text()) - used)
        except (OSError, ValueError, KeyError):
            pass  # no such group, or one without a limit ("max")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, ValueError, KeyError):
        pass
    return min(limits, default=float("inf"))


def _control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The control group (version 2) of this process and those around it: a container's, or that of a scheduler's step."""
    try:
        (path,) = [line[3:].strip("/") for line in own.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return [root]
    inner = root / path
    return [group for group in (inner, *inner.parents) if group.is_relative_to(root)]


def refuse_too_much(
    wanted: Need, room: float, num_devices: int, num_points: int, width: int, first_seed: int = 0
) -> None:
    """Raises OptionError if a device has less room than a group of seeds needs, with how many seeds would fit."""
    if wanted.total <= room:
        return
    seeds = wanted.fitting(room) // width * width * num_devices // num_points  # lanes come in whole blocks
    if seeds or first_seed:
        remedy = f"--seeds {first_seed + seeds} would fit"
    else:
        remedy = f"ask for a smaller --width than {width}" if width > 1 else "ask for smaller models, batches or sweeps"
    raise OptionError(
        f"this run needs about {_shown(wanted.total)} on each of {num_devices} devices, which have {_shown(room)} each; "
        f"required: at most that; {remedy}"
    )


def _shown(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
