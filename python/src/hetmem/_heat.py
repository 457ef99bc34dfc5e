"""How warm the parts of an array are: samples of its pages are on a private device, and those that come home were touched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ._errors import ClosedError, Error, InvalidInputError

TOUCHED, UNTOUCHED, UNKNOWN = 1, 0, -1

Places = npt.NDArray[np.uint32]
Pages = npt.NDArray[np.int64]


class Heatmap:
    """What :meth:`Runtime.heatmap` sees of an array: which of its sampled pages were touched between one look and the next.

    A touch of a page in use shows nowhere. So samples are sent to a private device, from which a touch brings a page home: every look notes which came,
    and sends them out again. At the end (:meth:`close`, or the end of a ``with`` block) the samples go back to where they were at first; of a map that is
    just dropped they stay out until they are touched.

    >>> import hetmem
    >>> with hetmem.Runtime("private:emulated,size=64M") as runtime:
    ...     a = runtime.full((100, 512), 1.0)  # each row is a page
    ...     heat = runtime.heatmap(a)
    ...     for _ in range(4):
    ...         a[7] += 1
    ...         heat.look()
    ...     heat.close()
    ...     heat.heat[[7, 99]].tolist()
    [1.0, 0.0]
    """

    def __init__(self, pages: Pages, device: int, places: Callable[[], Places], send: Callable[[Pages, int], None], every: float) -> None:
        self.pages = pages
        """The sampled pages of the array, by number."""
        self._device, self._places, self._send, self._every = device, places, send, every
        self._looks: list[npt.NDArray[np.int8]] = []
        # Where each sample was at first.
        self._from = places()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed: Error | None = None
        self._send_out()

    @property
    def touches(self) -> npt.NDArray[np.int8]:
        """A row for each look, a column for each sampled page: 1 if it was touched since the look before, 0 if not, -1 if that is not known, as the page was
        never written, or could not be sent out."""
        return np.array(self._looks, np.int8).reshape(-1, len(self.pages))

    @property
    def heat(self) -> npt.NDArray[np.float64]:
        """Of each sampled page, in what part of the looks it was found touched, from 0.0 to 1.0; nan if nothing is known of it."""
        touches = self.touches
        known = np.count_nonzero(touches != UNKNOWN, axis=0)
        with np.errstate(invalid="ignore"):
            heat: npt.NDArray[np.float64] = np.count_nonzero(touches == TOUCHED, axis=0) / known
        return heat

    def look(self) -> None:
        """Notes which samples were touched since the last time, and sends these out again.

        :raises InvalidInputError: It has ended, or it looks by itself, in a ``with`` block.
        """
        if self._is_over.is_set():
            raise InvalidInputError("the heat map has ended; make another")
        if self._thread is not None:
            raise InvalidInputError("the heat map looks by itself in a `with` block")
        self._look()

    def _look(self) -> None:
        came = self._places() != self._device
        self._looks.append(np.where(self._was_out, np.where(came, TOUCHED, UNTOUCHED), UNKNOWN).astype(np.int8))
        self._send_out()

    def _send_out(self) -> None:
        self._send(self.pages[self._places() != self._device], self._device)
        # What is touched meanwhile is found touched by the next look, or not at all.
        self._was_out = self._places() == self._device

    def close(self) -> None:
        """Ends it: the samples go back to where they were. What was seen stays.

        :raises Error: It could not look any more, in a ``with`` block, and ended then.
        """
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            away = (self._places() != self._from) & (self._from != self._device)
            for place in np.unique(self._from[away]):
                self._send(self.pages[away & (self._from == place)], int(place))
        except ClosedError:
            # Then a touch brings them home.
            pass
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def __enter__(self) -> Self:
        """Begins to look, in a thread of its own."""
        if self._thread is not None or self._is_over.is_set():
            raise InvalidInputError("a heat map is made once; make another")
        self._thread = threading.Thread(target=self._watch, name="hetmem heat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _watch(self) -> None:
        while not self._is_over.wait(self._every):
            try:
                self._look()
            except ClosedError:
                return
            except Error as error:
                self._failed = error
                return

    def draw(self, axes: Any = None) -> Any:
        """A picture: time goes down, a line for each look; pages go across. Light is touched, dark is not, and white unknown. Needs matplotlib, whose axes
        it returns, new ones if none are given."""
        from ._picture import draw_heat

        return draw_heat(self.touches, self.pages, axes)

    def __repr__(self) -> str:
        return f"Heatmap({len(self._looks)} looks at {len(self.pages)} pages)"
