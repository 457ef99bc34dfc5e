"""What a runtime answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._library import ffi, lib

MOVED = 0


def label(code: int) -> str:
    """The name of an outcome."""
    text: bytes = ffi.string(lib.hetmem_outcome_label(code))
    return text.decode()


class Outcomes:
    """What became of each page of a migration: ``"moved"``, or the reason for which it was kept where it is, such as ``"hole"`` of a page that was never
    written."""

    def __init__(self, codes: npt.NDArray[np.uint8]) -> None:
        self.codes = codes
        """The outcomes as the library numbers them: 0 is moved."""

    @property
    def moved(self) -> int:
        """How many pages moved."""
        return int(np.count_nonzero(self.codes == MOVED))

    @property
    def kept(self) -> dict[str, int]:
        """How many pages did not, by reason."""
        counts = np.bincount(self.codes)
        return {label(code): int(count) for code, count in enumerate(counts) if code != MOVED and count > 0}

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, page: int) -> str:
        return label(int(self.codes[page]))

    def __iter__(self) -> Iterator[str]:
        return (label(int(code)) for code in self.codes)

    def __repr__(self) -> str:
        return f"Outcomes(moved={self.moved}, kept={self.kept})"


@dataclass(frozen=True)
class Device:
    """A device of a runtime."""

    name: str
    index: int
    """Its place in the list of devices."""
    memory_type: str
    """``"private"`` or ``"coherent"``."""
    capacity_bytes: int


@dataclass(frozen=True)
class DeviceStatistics:
    """What was counted of a device."""

    used_bytes: int
    """Of frames that hold a page."""
    peak_used_bytes: int
    stray_pages: int
    """Pages that were found elsewhere than on the device."""


@dataclass(frozen=True)
class Statistics:
    """What was counted since the runtime began."""

    adopted_bytes: int
    """Under management."""
    pages_migrated_to_device: int
    pages_migrated_to_system: int
    """By request or by a touch."""
    cpu_faults: int
    """Touches of pages that were away."""
    bytes_copied: int
    errors: int
    """Failures that were survived."""
    fault_latency_p50_ns: int
    """Of half of the touches at most, as the program waits."""
    fault_latency_p99_ns: int
    fault_latency_max_ns: int
    pages_kept: dict[str, int]
    """Pages that were kept where they were, by reason."""
    devices: dict[str, DeviceStatistics]
    """By name."""


def by_name(places: npt.NDArray[np.uint32], names: dict[int, str]) -> dict[str, int]:
    """How many pages are at each place."""
    return dict(Counter({names[int(place)]: int(count) for place, count in zip(*np.unique(places, return_counts=True), strict=True)}))
