"""A picture of where pages are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._errors import Error, InvalidInputError


def draw(places: npt.NDArray[np.uint32], names: dict[int, str], columns: int, axes: Any) -> Any:
    """Draws `places`, `columns` in a row."""
    if columns < 1:
        raise InvalidInputError(f"there can't be {columns} columns")
    try:
        import matplotlib.pyplot as plt
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch
    except ImportError as error:
        raise Error("matplotlib is not installed: pip install 'hetmem[draw]'") from error
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
