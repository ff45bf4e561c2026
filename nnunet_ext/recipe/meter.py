"""What every stage of a prediction costs: wall time and peak memory of the process."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Linux: resets the high-water mark of resident memory, see proc(5)."""


@dataclass
class Meter:
    """Seconds and peak resident memory per stage.

    Memory is known on Linux only; elsewhere ``peak_mb`` is missing.
    """

    stages: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage; a name that comes again adds its seconds and keeps the higher peak."""
        resettable = _reset_peak()
        start = time.perf_counter()
        try:
            yield
        finally:
            entry = self.stages.setdefault(name, {"seconds": 0.0})
            entry["seconds"] = round(entry["seconds"] + time.perf_counter() - start, 2)
            peak_mb = _peak_mb() if resettable else None
            if peak_mb is not None:
                entry["peak_mb"] = max(entry.get("peak_mb", 0.0), peak_mb)


def _reset_peak() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _peak_mb() -> float | None:
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    except OSError:
        return None
    return round(int(match[1]) / 1024, 1) if match else None
