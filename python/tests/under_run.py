"""A program under `hetmem run`: the agent is the library that the package uses, and there is no runtime beside it."""

import os

import hetmem
import numpy as np

maps = open("/proc/self/maps").read()
libraries = {line.split()[-1] for line in maps.splitlines() if line.split()[-1].rpartition("/")[2].startswith("libhetmem.so")}
assert libraries == {os.environ["LD_PRELOAD"].split(":")[0]}, libraries
try:
    hetmem.Runtime()
except hetmem.HostRefusesError as error:
    assert "hetmem run" in str(error), error
else:
    raise AssertionError("there is a runtime beside the agent")

array = np.arange(1_000_000, dtype=np.float64)
hetmem.advise(array, "prefer", 0)
hetmem.advise(array, "soon")
hetmem.advise(array, "pin")
hetmem.advise(array, "unpin")
for device, part in [(7, "no device"), (-1, "negative"), (2**32, "no device")]:
    try:
        hetmem.advise(array, "prefer", device)
    except hetmem.InvalidInputError as error:
        assert part in str(error), error
    else:
        raise AssertionError(f"there is a device {device}")
for _ in range(5):
    array += 1
assert array.sum() == 999_999 * 500_000 + 5_000_000
print("managed")
