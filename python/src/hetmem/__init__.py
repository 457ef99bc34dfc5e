"""Heterogeneous memory management in user space: NumPy arrays whose pages move between system memory and devices, while programs use them.

>>> import hetmem, numpy as np
>>> with hetmem.Runtime(["private:emulated,size=64M", "coherent:emulated,size=64M"]) as runtime:
...     a = runtime.empty((512, 512), np.float32)
...     a[:] = 1.0
...     runtime.migrate(a[:256], "private0")
...     runtime.where(a)
...     runtime.migrate(a, "coherent0").moved
...     float(a.sum())  # on the coherent device they are used in place
...     runtime.where(a)
Outcomes(moved=128, kept={})
{'system': 128, 'private0': 128}
256
262144.0
{'coherent0': 256}

A program that runs under ``hetmem run`` is managed by its agent, and has no runtime of its own; it can give the agent advice (:func:`advise`).
"""

from ._errors import ClosedError, Error, ExhaustedError, HostRefusesError, InvalidInputError
from ._heat import Heatmap
from ._library import PAGE, version
from ._results import Device, DeviceStatistics, Outcomes, Statistics
from ._runtime import Advice, Place, Runtime, advise

__all__ = [
    "PAGE",
    "Advice",
    "ClosedError",
    "Device",
    "DeviceStatistics",
    "Error",
    "ExhaustedError",
    "Heatmap",
    "HostRefusesError",
    "InvalidInputError",
    "Outcomes",
    "Place",
    "Runtime",
    "Statistics",
    "advise",
    "version",
]

# What is exported is called by the name by which it is imported, in messages, too.
for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__
