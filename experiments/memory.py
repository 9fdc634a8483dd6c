"""What a run will need in memory, known from its compiled program, against what there is."""

from pathlib import Path
from typing import NamedTuple

import jax

from experiments.options import OptionError


class Need(NamedTuple):
    """Bytes that a device needs while a chunk runs.

    Attributes:
        fixed: whatever the number of lanes: the temporaries of one block.
        per_lane: of each lane on the device: its state before and after the chunk, its copy on the way to the disk, and
            its metrics.
        num_lanes: lanes on the device, padding among them.
    """

    fixed: int
    per_lane: float
    num_lanes: int

    @property
    def total(self) -> float:
        """Bytes a device."""
        return self.fixed + self.per_lane * self.num_lanes

    def fitting(self, available: float) -> int:
        """Lanes a device that fit into so many bytes."""
        return max(int((available - self.fixed) / self.per_lane), 0)


def need(advance: jax.stages.Compiled, num_lanes: int, state_bytes: int) -> Need:
    """Of a compiled advance.

    Args:
        advance: compiled for devices that hold `num_lanes` lanes each.
        num_lanes: lanes a device.
        state_bytes: of the state of these lanes.
    """
    analysis = advance.memory_analysis()
    resident = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Need(int(analysis.temp_size_in_bytes), (resident + state_bytes) / num_lanes, num_lanes)


def available(device: jax.Device) -> float:
    """Bytes that the device has left for a run; the devices of a CPU share them equally. inf where it is not known."""
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else float("inf")
    return _host_memory() / len(jax.local_devices())


def _host_memory() -> float:
    root, limits = Path("/sys/fs/cgroup"), []
    try:  # the container's own limit; what the page cache holds can be had back
        cache = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((root / "memory.current").read_text()) - int(cache)
        limits.append(int((root / "memory.max").read_text()) - used)
    except (OSError, ValueError, KeyError):
        pass  # no container, or one without a limit ("max")
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, ValueError, KeyError):
        pass
    return min(limits, default=float("inf"))


def refuse_too_much(wanted: Need, devices, num_points: int, width: int) -> None:
    """Raises OptionError if a device of this process has less memory than the run needs, with how many seeds would fit."""
    room = min(available(device) for device in devices if device.process_index == jax.process_index())
    if wanted.total <= room:
        return
    seeds = wanted.fitting(room) // width * width * len(devices) // num_points  # lanes come in whole blocks
    remedy = f"--seeds {seeds} would fit" if seeds else f"ask for a smaller --width than {width}"
    raise OptionError(
        f"this run needs about {_shown(wanted.total)} on each of {len(devices)} devices, which have {_shown(room)} each; "
        f"required: at most that; {remedy}"
    )


def _shown(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
