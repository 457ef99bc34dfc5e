"""A program under `hetmem run --files`, or none: threads read an array that is a mapped file, with forks between. What it prints is the same."""

import hashlib
import os
import re
import sys
import threading

import numpy as np

ROUNDS = 3

numbers = np.memmap(sys.argv[1], dtype=np.uint64, mode="r")
found: list[list[str]] = [[], [], []]


def work(number: int) -> None:
    """Each thread reads in an order of its own: forwards, backwards, by strides."""
    views = [numbers, numbers[::-1], numbers.reshape(-1, 512).T]
    for _ in range(ROUNDS):
        view = views[number]
        total = int(view.sum(dtype=np.uint64)) ^ int(np.bitwise_xor.reduce(view, axis=None))
        found[number].append(f"{total:x} {hashlib.sha256(numbers[number::1000].tobytes()).hexdigest()}")


def files_move() -> None:
    """Waits until something has stood in for the file's mapping, where that is managed."""
    if "HETMEM_AGENT" not in os.environ:
        return
    for _ in range(100000):
        with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
            # The kernel may know no names of such memory.
            if any(re.search(r" r--p 00000000 00:00 0 +(\[anon:hetmem:file\])?$", line) for line in maps):
                return
    sys.exit("no page of the file has moved")


threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
for _ in range(4):
    child = os.fork()
    if child == 0:
        # No library's end: this is the only thread of its process.
        os._exit(0 if int(numbers[-1]) == int(numbers[numbers.size - 1]) else 1)
    assert os.waitpid(child, 0)[1] == 0
files_move()
for thread in threads:
    thread.join()
assert all(len(set(each)) == 1 for each in found), found
print(*(each[0] for each in found))
