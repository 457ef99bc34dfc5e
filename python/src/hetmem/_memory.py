"""Arrays and their pages."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import InvalidInputError
from ._library import PAGE, check, ffi, lib

Array = npt.NDArray[Any]
"""Any NumPy array."""

Data = Array | memoryview | bytearray | mmap.mmap
"""An array, or something else with memory of its own."""


@dataclass(frozen=True)
class Range:
    """Addresses, the end exclusive."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """In bytes; 0 if there are none."""
        return max(0, self.end - self.start)

    @property
    def pages(self) -> int:
        """Of a range of whole pages: how many."""
        return self.length // PAGE

    @property
    def address(self) -> Any:
        """The start, as the library wants it."""
        return ffi.cast("void *", self.start)

    def touched(self) -> Range:
        """All pages that it has a byte of."""
        return Range(self.start // PAGE * PAGE, -(-self.end // PAGE) * PAGE)

    def whole(self) -> Range:
        """The pages that it has all bytes of."""
        return Range(-(-self.start // PAGE) * PAGE, self.end // PAGE * PAGE)

    def common(self, other: Range) -> Range:
        """What it shares with another."""
        return Range(max(self.start, other.start), min(self.end, other.end))


def as_array(data: Data) -> Array:
    """An array of the same memory."""
    if isinstance(data, np.ndarray):
        return data
    try:
        return np.asarray(memoryview(data))
    except TypeError:
        raise InvalidInputError(f"a NumPy array is needed, or another object with memory of its own, and not {type(data).__name__}") from None


def addresses(data: Array) -> Range:
    """Where the elements of an array are, which lie beside one another."""
    if not (data.flags.c_contiguous or data.flags.f_contiguous):
        raise InvalidInputError(
            f"the array's elements lie apart from one another (shape {data.shape}, strides {data.strides}); take whole rows, or the array that this is a view of"
        )
    start: int = data.__array_interface__["data"][0]
    return Range(start, start + data.nbytes)


# Frees the mapping that an array of one has, if there is one, without a step of Python, into which an exception of a signal handler could fall.
_free = functools.partial(min, key=lib.hetmem_mapping_free)


def mapped(length: int, make: Callable[[Any], Any]) -> Any:
    """The memory of a mapping that a call of the library makes, as a buffer that frees the mapping when nobody has it any more."""
    # It has an owner before it is there.
    owner = ffi.gc(ffi.new("hetmem_mapping *[1]"), _free, length)
    check(make(owner))
    memory = ffi.cast("char *", lib.hetmem_mapping_address(owner[0]))
    # What is called in the end does nothing, but keeps the owner until then.
    return ffi.buffer(ffi.gc(memory, [owner].count), length)


def clear(data: Array, parts: list[Range]) -> None:
    """Writes zeros to parts of an array."""
    start = addresses(data).start
    # Of a subclass assignment may mean anything.
    plain = data.view(np.ndarray)
    flat = (plain if plain.flags.c_contiguous else plain.T).reshape(-1).view(np.uint8)
    for part in parts:
        flat[part.start - start : part.start - start + part.length] = 0
