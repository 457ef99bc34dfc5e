"""Threads hash a file of so many MiB, so often, that is mapped to be read, while the process forks."""

import hashlib
import mmap
import os
import random
import re
import sys
import threading

if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 11):
    print("it takes Linux 6.11")
    sys.exit(77)

SIZE = int(sys.argv[1]) << 20
PIECE = 1 << 20
THREADS = 3
ROUNDS = int(sys.argv[2])

noise = random.Random(7).randbytes(PIECE)
with open("data", "wb") as file:
    for i in range(SIZE // PIECE):
        file.write(i.to_bytes(8, "little") + noise[8:])
with open("data", "rb") as file:
    data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
hashes = [[] for _ in range(THREADS)]


def digest(first):
    """The hash of the whole file, read from piece `first` on."""
    found = hashlib.sha256()
    for i in range(SIZE // PIECE):
        at = (i + first) * PIECE % SIZE
        found.update(data[at : at + PIECE])
    return found.hexdigest()


def work(number):
    for _ in range(ROUNDS):
        hashes[number].append(digest(number))


def files_move():
    """Waits until something has stood in for the file's mapping, where that is managed."""
    if "HETMEM_AGENT" not in os.environ:
        return
    for _ in range(100000):
        with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
            # The kernel may know no names of such memory.
            if any(re.search(r" r--p 00000000 00:00 0 +(\[anon:hetmem:file\])?$", line) for line in maps):
                return
    sys.exit("no page of the file has moved")


threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for _ in range(4):
    child = os.fork()
    if child == 0:
        os._exit(0 if data[5 * PIECE : 5 * PIECE + 8] == (5).to_bytes(8, "little") else 1)
    assert os.waitpid(child, 0)[1] == 0
files_move()
for thread in threads:
    thread.join()
assert all(len(set(each)) == 1 for each in hashes)
print(*(each[0] for each in hashes))
