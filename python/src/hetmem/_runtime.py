"""Runtimes."""

from __future__ import annotations

import math
import operator
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from ._errors import ClosedError, Error, ExhaustedError, InvalidInputError
from ._heat import Heatmap
from ._library import PAGE, check, ffi, lib
from ._memory import Array, Data, Range, addresses, as_array, clear, mapped
from ._results import Device, DeviceStatistics, Outcomes, Statistics, by_name, label

Advice = Literal["pin", "unpin", "prefer", "no-preference", "read-mostly", "soon", "not-soon"]
"""What is known of the use of memory; the words are those of ``hetmem advise``."""

Place = str | int | Device
"""A device, by name or by its place in the list of devices; or ``"system"``."""

_ADVICE: dict[str, int] = {
    "pin": lib.HETMEM_ADVICE_PIN,
    "unpin": lib.HETMEM_ADVICE_UNPIN,
    "prefer": lib.HETMEM_ADVICE_PREFERRED_LOCATION,
    "no-preference": lib.HETMEM_ADVICE_NO_PREFERENCE,
    "read-mostly": lib.HETMEM_ADVICE_READ_MOSTLY,
    "soon": lib.HETMEM_ADVICE_SOON,
    "not-soon": lib.HETMEM_ADVICE_NOT_SOON,
}
_SYSTEM, _MIGRATING = 0, 2**32 - 1
_TYPES: dict[int, str] = {lib.HETMEM_DEVICE_PRIVATE: "private", lib.HETMEM_DEVICE_COHERENT: "coherent"}
# No address of a program lies above it.
_ADDRESS_LIMIT = 2**56
# Arrays whose memory can't be given back: some of it can't be brought home.
_kept_for_ever: list[Array] = []


class _Handle:
    """The library's runtime, as long as it is open, and who is calling it."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.process = os.getpid()
        # One that is no Python: a signal handler can't come between the steps of taking it, or of letting it go. One that runs while it is taken may
        # take it, too.
        self.lock = threading.RLock()
        # Calls that are under way, each with its thread.
        self.callers: dict[object, int] = {}
        self.is_closed = False
        self.adopted: dict[Range, Array] = {}

    # Signal handlers may run between any two steps of what follows, and use the runtime, or close it, or raise exceptions, such as KeyboardInterrupt.

    @contextmanager
    def use(self) -> Iterator[Any]:
        """The pointer, which stays good until the end."""
        # First: locks that other threads had when the process was forked are locked for ever in the child.
        if os.getpid() != self.process:
            raise InvalidInputError(f"the runtime is that of process {self.process}; a forked child must make one of its own")
        call, caller = object(), threading.get_ident()
        try:
            with self.lock:
                # First: from here on nobody closes it.
                self.callers[call] = caller
                if self.is_closed:
                    raise ClosedError("the runtime is closed")
            yield self.pointer
        finally:
            self.callers.pop(call, None)

    def adopt(self, pages: Range, array: Array) -> None:
        """Adopts the pages of an array, and keeps it alive."""
        with self.use() as runtime:
            with self.lock:
                if pages in self.adopted:
                    raise InvalidInputError("the array is adopted already")
                # First, as memory that is managed must be there.
                self.adopted[pages] = array
            try:
                check(lib.hetmem_adopt(runtime, pages.address, pages.length, lib.HETMEM_FAULT_THREAD))
            except Error:
                del self.adopted[pages]
                raise

    def close(self) -> None:
        """Ends it when no call is under way any more. In a forked child there is nothing to end."""
        if os.getpid() != self.process:
            return
        closes = False
        try:
            with self.lock:
                if threading.get_ident() in self.callers.values():
                    raise Error("the runtime is in use by a call of this thread, which a signal handler has interrupted; close it elsewhere")
                if self.is_closed:
                    return
                closes = self.is_closed = True
            while self.callers:
                time.sleep(0.001)
            for pages in list(self.adopted):
                check(lib.hetmem_release(self.pointer, pages.address, pages.length))
                del self.adopted[pages]
        except BaseException:
            if closes:
                self.is_closed = False
            raise
        lib.hetmem_runtime_free(self.pointer)


def _end(handle: _Handle) -> None:
    """What becomes of a runtime that nobody closed."""
    try:
        handle.close()
    except Error:
        # As long as a page is away, its address may be nobody else's.
        _kept_for_ever.extend(handle.adopted.values())


class Runtime:
    """Manages memory of this process: arrays that it makes, and others that it adopts. It moves their pages to devices and back while threads use them;
    arrays stay where they are.

    Devices are described as for ``hetmem run --device``. A page on a coherent device is used in place; a page on a private one comes home when it is
    touched.

    >>> import hetmem
    >>> with hetmem.Runtime(["private:emulated,size=64M"]) as runtime:
    ...     a = runtime.full(1024, 7.0)
    ...     runtime.migrate(a, "private0").moved
    ...     runtime.where(a)
    ...     float(a.sum())  # the touch brings them home
    ...     runtime.where(a)
    2
    {'private0': 2}
    7168.0
    {'system': 2}

    Arrays may outlive it: their memory is managed until the last of them is gone. A forked child reads what they hold, and writes it for itself; to move
    pages it must make a runtime of its own. Any thread may use it.

    :param devices: One text, or several, at most 16.
    :param stock_bytes: How much populated system memory is kept for pages on their way home: a multiple of the page, 64 MiB unless said otherwise.
    :param forks_exec_at_once: Says that forked children execute another program at once, so that forks need not wait for pages; a child that touches an
        array all the same reads zeros where pages were on private devices.
    :raises InvalidInputError: A device can't be made as described.
    :raises HostRefusesError: userfaultfd can't be used (the message says what would fix it), or the program runs under ``hetmem run``.
    :raises ExhaustedError: There is no memory, thread or descriptor for it.
    """

    def __init__(
        self,
        devices: str | Sequence[str] = ("coherent:emulated",),
        *,
        stock_bytes: int | None = None,
        forks_exec_at_once: bool = False,
    ) -> None:
        out = ffi.new("hetmem_config **")
        check(lib.hetmem_config_new(out))
        config = ffi.gc(out[0], lib.hetmem_config_free)
        for device in [devices] if isinstance(devices, str) else devices:
            if "\0" in device:
                raise InvalidInputError(f"device {device!r} has a zero byte")
            check(lib.hetmem_config_add_device(config, device.encode()))
        if stock_bytes is not None:
            check(lib.hetmem_config_set_stock(config, _unsigned(stock_bytes, "stock_bytes")))
        if forks_exec_at_once:
            check(lib.hetmem_config_forks_exec_at_once(config))
        out = ffi.new("hetmem_runtime **")
        check(lib.hetmem_runtime_new(config, out))
        self._handle = _Handle(out[0])
        self._finalizer = weakref.finalize(self, _end, self._handle)
        self._devices = tuple(self._device(index) for index in range(lib.hetmem_device_count(out[0])))

    def _device(self, index: int) -> Device:
        out = ffi.new("hetmem_device_info *")
        with self._handle.use() as runtime:
            check(lib.hetmem_device_get(runtime, index, out))
        return Device(ffi.string(out.name).decode(), index, _TYPES[out.memory_type], out.capacity_bytes)

    def close(self) -> None:
        """Ends it, as the end of a ``with`` block does. What it has adopted comes home first. Memory of its own arrays is managed until they are gone.

        :raises InvalidInputError: A page that was adopted can't come home. It stays managed then, and the runtime open.
        """
        self._handle.close()
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a runtime can't be sent to another process; make one there")

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices, in the order in which they were given."""
        return self._devices

    # --- Memory

    def empty(
        self, shape: SupportsIndex | Sequence[SupportsIndex], dtype: npt.DTypeLike = float, *, order: Literal["C", "F"] = "C"
    ) -> npt.NDArray[Any]:
        """A new array in managed memory, of zeros that take no memory until something is written.

        :raises InvalidInputError: The shape has a negative size, or the type has objects of Python.
        :raises ExhaustedError: There is no room in the address space.
        """
        sizes, kind = _sizes(shape), np.dtype(dtype)
        if kind.hasobject:
            raise InvalidInputError(f"arrays of {kind} hold objects of Python, which lie elsewhere")
        # At least one page: memory of no length is none.
        length = max(1, -(-math.prod(sizes) * kind.itemsize // PAGE)) * PAGE
        if length > _ADDRESS_LIMIT:
            raise ExhaustedError(f"an array of {length} bytes is larger than the address space")
        with self._handle.use() as runtime:
            memory = mapped(length, lambda out: lib.hetmem_map(runtime, length, lib.HETMEM_FAULT_THREAD, out))
        return np.ndarray(sizes, kind, buffer=memory, order=order)

    def zeros(
        self, shape: SupportsIndex | Sequence[SupportsIndex], dtype: npt.DTypeLike = float, *, order: Literal["C", "F"] = "C"
    ) -> npt.NDArray[Any]:
        """A new array of zeros in managed memory: the same as :meth:`empty`."""
        return self.empty(shape, dtype, order=order)

    def full(
        self, shape: SupportsIndex | Sequence[SupportsIndex], value: Any, dtype: npt.DTypeLike | None = None, *, order: Literal["C", "F"] = "C"
    ) -> npt.NDArray[Any]:
        """A new array in managed memory, filled with `value`, whose type it has if no other is given."""
        array = self.empty(shape, np.asarray(value).dtype if dtype is None else dtype, order=order)
        array[...] = value
        return array

    def map_file(
        self,
        path: str | os.PathLike[str],
        dtype: npt.DTypeLike = np.uint8,
        shape: SupportsIndex | Sequence[SupportsIndex] | None = None,
        *,
        offset: int = 0,
    ) -> npt.NDArray[Any]:
        """A file as an array that can be read, and whose pages can go to devices, as long as nobody has the file open for writing. It is mapped, not copied;
        what `shape` asks for must be there, and without one it is all from `offset` on.

        Pages of files move by blocks of 2 MiB. While some are on a device, who opens the file for writing waits until they are home.

        :raises InvalidInputError: `offset` is not a multiple of the page, the file is shorter than the array or no regular file, or the type has objects of
            Python.
        :raises OSError: The file can't be opened.
        """
        kind = np.dtype(dtype)
        if kind.hasobject or kind.itemsize == 0:
            raise InvalidInputError(f"a file holds no elements of the type {kind}")
        with open(path, "rb", buffering=0) as file:
            if shape is None:
                behind = os.fstat(file.fileno()).st_size - _unsigned(offset, "offset")
                if behind <= 0 or behind % kind.itemsize != 0:
                    raise InvalidInputError(f"the {behind} bytes of {path} from {offset} on are no array of {kind} ({kind.itemsize} bytes each)")
                shape = behind // kind.itemsize
            sizes = _sizes(shape)
            length = math.prod(sizes) * kind.itemsize
            if length == 0 or length > _ADDRESS_LIMIT:
                raise InvalidInputError(f"an array of the shape {sizes} can't be mapped")
            with self._handle.use() as runtime:
                memory = mapped(length, lambda out: lib.hetmem_map_file(runtime, file.fileno(), _unsigned(offset, "offset"), length, out))
        # By frombuffer, which goes by the view that can't be written: ndarray() looks behind it.
        return np.frombuffer(memoryview(memory).toreadonly(), kind).reshape(sizes)

    def adopt(self, array: Data) -> int:
        """Puts the memory of an existing array under management, until :meth:`release` or :meth:`close`; the runtime keeps the array alive as long. Managed
        are the pages that the array has for itself, and their bytes are returned: what lies before the first and behind the last of these stays as it is.

        The array must not be given other memory meanwhile (``resize(refcheck=False)``).

        :raises InvalidInputError: It has no whole page, its elements lie apart from one another, or a part of it is managed already.
        """
        array = as_array(array)
        pages = addresses(array).whole()
        if pages.length == 0:
            raise InvalidInputError(f"the array has no page ({PAGE} bytes) for itself: it has {array.nbytes} bytes")
        self._handle.adopt(pages, array)
        return pages.length

    def release(self, array: Data) -> None:
        """Brings the pages of an adopted array home, and ends their management.

        :raises InvalidInputError: It was not adopted, or a page can't come home; it stays adopted then.
        """
        pages = addresses(as_array(array)).whole()
        with self._handle.use() as runtime:
            if pages not in self._handle.adopted:
                raise InvalidInputError("the array was not adopted, or is a part of one that was: release that one")
            check(lib.hetmem_release(runtime, pages.address, pages.length))
            self._handle.adopted.pop(pages, None)

    def _pages(self, array: Array) -> Range:
        """The managed pages that an array has a byte of."""
        bytes_of = addresses(array)
        touched = bytes_of.touched()
        for pages in list(self._handle.adopted):
            if bytes_of.common(pages).length > 0:
                return touched.common(pages)
        return touched

    # --- Where pages are

    def _place(self, place: Place) -> int:
        if isinstance(place, Device):
            place = place.name
        for device in self._devices:
            if place in (device.name, device.index):
                return device.index + 1
        if place == "system":
            return _SYSTEM
        names = ", ".join(["system", *(device.name for device in self._devices)])
        raise InvalidInputError(f"there is no place {place!r}; there are {names}")

    def migrate(self, array: Data, to: Place) -> Outcomes:
        """Moves all pages that the array has a byte of to a device, or home with ``"system"``. That a page does not move is no error: each has an outcome.

        :raises InvalidInputError: There is no such place, or the array's elements lie apart from one another.
        """
        array = as_array(array)
        pages, place = self._pages(array), self._place(to)
        codes = np.zeros(pages.pages, np.uint8)
        if pages.pages > 0:
            request = ffi.new("hetmem_request *", {"target": place, "select": lib.HETMEM_SELECT_ALL, "owner": 0})
            out = ffi.from_buffer("hetmem_outcome[]", codes)
            with self._handle.use() as runtime:
                check(lib.hetmem_migrate(runtime, pages.address, pages.length, request, out, len(codes), ffi.NULL))
        return Outcomes(codes)

    def residency(self, array: Data) -> npt.NDArray[np.uint32]:
        """Where each page is that the array has a byte of: 0 is system memory (or nowhere yet), 1 the first device, 2 the second, and so on; 4,294,967,295
        is on its way. Nothing is moved or touched."""
        array = as_array(array)
        pages = self._pages(array)
        places = np.zeros(pages.pages, np.uint32)
        if pages.pages > 0:
            out = ffi.from_buffer("hetmem_place[]", places)
            with self._handle.use() as runtime:
                check(lib.hetmem_residency(runtime, pages.address, pages.length, out, len(places)))
        return places

    def where(self, array: Data) -> dict[str, int]:
        """How many pages of the array are at each place: ``{"system": 3, "private0": 5}``."""
        return by_name(self.residency(array), self._names())

    def _names(self) -> dict[int, str]:
        return {_SYSTEM: "system", _MIGRATING: "migrating"} | {device.index + 1: device.name for device in self._devices}

    def advise(self, array: Data, advice: Advice, device: Place | None = None) -> None:
        """Says what is known of the use of an array: of all pages that it has a byte of.

        | advice | what comes of it |
        | --- | --- |
        | ``"pin"``, ``"unpin"`` | its pages stay where they are; they may move again |
        | ``"prefer"`` | its pages are best kept on ``device`` |
        | ``"read-mostly"`` | they are best kept on the first coherent device with room |
        | ``"no-preference"`` | undoes both |
        | ``"soon"`` | they are brought to where they are best kept, else to system memory |
        | ``"not-soon"`` | nothing: a runtime of one's own has no policy that makes room |

        :raises InvalidInputError: There is no such advice or device.
        """
        number = _advice(advice, device)
        array = as_array(array)
        pages, place = self._pages(array), _SYSTEM if device is None else self._place(device)
        if pages.pages > 0:
            with self._handle.use() as runtime:
                check(lib.hetmem_advise(runtime, pages.address, pages.length, number, place))

    def discard(self, array: Data) -> None:
        """Gives the contents of an array up: it reads as zeros, and takes no memory but for the pages that it shares with others.

        :raises InvalidInputError: It can't be written, or holds objects of Python, or a part of it is not managed.
        """
        array = as_array(array)
        if array.dtype.hasobject or not array.flags.writeable:
            raise InvalidInputError("the array holds objects of Python" if array.dtype.hasobject else "the array can't be written")
        whole, own = addresses(array).whole(), addresses(array)
        if whole.length == 0:
            return clear(array, [own])
        with self._handle.use() as runtime:
            check(lib.hetmem_advise(runtime, whole.address, whole.length, lib.HETMEM_ADVICE_DISCARD, _SYSTEM))
        clear(array, [Range(own.start, whole.start), Range(whole.end, own.end)])

    def draw(self, array: Data, *, columns: int = 64, axes: Any = None) -> Any:
        """A picture of where the array's pages are: addresses go to the right, then down, `columns` pages in a row; each place has a colour. Needs matplotlib,
        whose axes it returns, new ones if none are given."""
        from ._picture import draw

        return draw(self.residency(array), self._names(), columns, axes)

    def heatmap(self, array: Data, device: Place | None = None, *, every: float = 0.1, samples: int = 1024) -> Heatmap:
        """How warm the parts of an array are, by touches of samples: of `samples` of its pages at most, evenly apart.

        In a ``with`` block a thread looks `every` so many seconds; without one, :meth:`Heatmap.look` does when it is called. It is drawn by
        :meth:`Heatmap.draw`.

        Samples are on `device` (the first private one if none is named) until they are touched, so each touch that is seen costs what bringing a page home
        does. Up to 15 pages behind one that is touched in sequence come with it, and count as touched if they are samples: where an array has 16 times as
        many pages as there are samples, that plays no part. What else moves samples, such as :meth:`migrate`, counts as well.

        :raises InvalidInputError: The array has no elements, or `device` is none of this runtime's private ones, or there is none.
        """
        array = as_array(array)
        pages = self._pages(array)
        if pages.pages <= 0 or samples < 1 or every <= 0:
            raise InvalidInputError(f"a heat map needs pages, samples and time: there are {pages.pages} pages, samples={samples}, every={every}")
        private = [each for each in self._devices if each.memory_type == "private"]
        if device is None and not private:
            raise InvalidInputError("a heat map needs a private device, such as private:emulated: touches of what is used in place show nowhere")
        index = private[0].index if device is None else self._index(device)
        if self._devices[index].memory_type != "private":
            raise InvalidInputError(f"{self._devices[index].name} is no private device: touches of what is used in place show nowhere")
        apart = -(-pages.pages // samples)
        numbers = np.arange(apart // 2, pages.pages, apart, dtype=np.int64)

        def places() -> npt.NDArray[np.uint32]:
            # It keeps the array alive, too.
            return self.residency(array)[numbers]

        def send(which: npt.NDArray[np.int64], place: int) -> None:
            if len(which) > 0:
                ranges = ffi.new("hetmem_range[]", [{"address": ffi.cast("void *", pages.start + int(page) * PAGE), "length": PAGE} for page in which])
                request = ffi.new("hetmem_request *", {"target": place, "select": lib.HETMEM_SELECT_ALL, "owner": 0})
                with self._handle.use() as runtime:
                    check(lib.hetmem_migrate_all(runtime, ranges, len(which), request, ffi.NULL, 0, ffi.NULL))

        return Heatmap(numbers, index + 1, places, send, every)

    # --- Devices and counters

    def remove_device(self, device: Place) -> None:
        """Takes a device out of use: all pages that are there come home, and none goes there any more.

        :raises InvalidInputError: There is no such device, or pages can't come home; this may be called again.
        """
        with self._handle.use() as runtime:
            check(lib.hetmem_device_remove(runtime, self._index(device)))

    def restore_device(self, device: Place) -> None:
        """Takes a device that was removed into use again."""
        with self._handle.use() as runtime:
            check(lib.hetmem_device_restore(runtime, self._index(device)))

    def _index(self, device: Place) -> int:
        place = self._place(device)
        if place == _SYSTEM:
            raise InvalidInputError("system memory is no device")
        return place - 1

    def statistics(self) -> Statistics:
        """What was counted since the runtime began. While it is busy the numbers need not agree with one another."""
        out, of_device = ffi.new("hetmem_statistics *"), ffi.new("hetmem_device_statistics *")
        devices = {}
        with self._handle.use() as runtime:
            check(lib.hetmem_statistics_get(runtime, out, ffi.sizeof("hetmem_statistics")))
            for device in self._devices:
                size = ffi.sizeof("hetmem_device_statistics")
                check(lib.hetmem_device_statistics_get(runtime, device.index, of_device, size))
                devices[device.name] = DeviceStatistics(of_device.used_bytes, of_device.peak_used_bytes, of_device.stray_pages)
        kept = {label(code): count for code, count in enumerate(out.pages_kept) if count > 0}
        names = [name for name in Statistics.__dataclass_fields__ if name not in ("pages_kept", "devices")]
        return Statistics(**{name: getattr(out, name) for name in names}, pages_kept=kept, devices=devices)


def _advice(advice: str, device: object) -> int:
    number = _ADVICE.get(advice)
    if number is None:
        raise InvalidInputError(f"there is no advice {advice!r}; there are {', '.join(_ADVICE)}")
    if (advice == "prefer") != (device is not None):
        raise InvalidInputError("prefer needs a device" if advice == "prefer" else f"{advice} goes without a device")
    return number


def _sizes(shape: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    sizes = tuple(map(operator.index, [shape] if isinstance(shape, SupportsIndex) else shape))
    if any(size < 0 for size in sizes):
        raise InvalidInputError(f"shape {sizes} has a negative size")
    return sizes


def _unsigned(number: int, name: str) -> int:
    if not 0 <= number < 2**64:
        raise InvalidInputError(f"{name}={number} is negative, or larger than any memory")
    return number


def advise(array: Data, advice: Advice, device: int | None = None) -> None:
    """Says to the agent of ``hetmem run`` what is known of the use of an array of this program: as :meth:`Runtime.advise`, but that ``"soon"`` is done in
    the background, ``"not-soon"`` has the policy take these pages first, and a device is given by its place in the command line.

    :raises HostRefusesError: No agent manages this program.
    :raises InvalidInputError: There is no such advice or device, or a part of the array is not managed.
    """
    number = _advice(advice, device)
    array = as_array(array)
    pages = addresses(array).touched()
    if pages.pages > 0:
        place = _SYSTEM if device is None else _unsigned(device, "device") + 1
        if place >= _MIGRATING:
            raise InvalidInputError(f"there is no device {device}")
        check(lib.hetmem_advise(ffi.NULL, pages.address, pages.length, number, place))
