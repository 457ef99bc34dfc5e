"""Pictures of where pages are, and of how warm they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import Error, InvalidInputError


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise Error("matplotlib is not installed: pip install 'hetmem[draw]'") from error
    return plt


def draw(places: npt.NDArray[np.uint32], names: dict[int, str], columns: int, axes: Any) -> Any:
    """Draws `places`, `columns` in a row."""
    if columns < 1:
        raise InvalidInputError(f"there can't be {columns} columns")
    plt = _pyplot()
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    # A place has the same colour in every picture.
    colours = {place: plt.colormaps["tab20"](at) for at, place in enumerate(sorted(names))}
    cells = np.full(-(-max(1, len(places)) // columns) * columns, -1, np.int64)
    cells[: len(places)] = np.searchsorted(sorted(names), places)
    # What is behind the last page is left white.
    picture = np.ma.masked_less(cells.reshape(-1, columns), 0)
    if axes is None:
        _, axes = plt.subplots()
    axes.imshow(picture, cmap=ListedColormap(list(colours.values())), vmin=0, vmax=len(colours) - 1, interpolation="nearest", aspect="auto")
    axes.set_xlabel("page")
    axes.set_ylabel(f"{columns} pages")
    there = sorted(int(place) for place in np.unique(places))
    axes.legend(handles=[Patch(color=colours[place], label=names[place]) for place in there])
    return axes


def draw_heat(touches: npt.NDArray[np.int8], pages: npt.NDArray[np.int64], axes: Any) -> Any:
    """Draws `touches`, a row for each look and a column for each of `pages`."""
    plt = _pyplot()
    if axes is None:
        _, axes = plt.subplots()
    extent = (0, int(pages[-1]) + 1, len(touches), 0) if touches.size > 0 else None
    axes.imshow(np.ma.masked_less(touches, 0), vmin=0, vmax=1, cmap="viridis", interpolation="nearest", aspect="auto", extent=extent)
    axes.set_xlabel("page")
    axes.set_ylabel("look")
    return axes
