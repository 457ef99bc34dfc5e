"""Builds a large heap of small objects and one large buffer, changes both again and again, and prints checksums.

Usage: heap.py ROUNDS [OBJECTS]
"""

import gc
import hashlib
import os
import sys
import threading
import zlib

MASK = (1 << 64) - 1


def mix(x):
    """splitmix64."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


class Node:
    """An object with references to others, so that the collector has something to walk."""

    __slots__ = ("name", "value", "peers")

    def __init__(self, name, value):
        self.name = name
        self.value = value
        self.peers = []


def build(count):
    nodes = {f"node-{i}": Node(f"node-{i}", mix(i)) for i in range(count)}
    names = list(nodes)
    for i, node in enumerate(nodes.values()):
        node.peers = [nodes[names[mix(i * 4 + k) % count]] for k in range(4)]
    return nodes


def checksum(nodes):
    total = 0
    for name, node in nodes.items():
        assert node.name == name, name
        total = (total * 31 + node.value + sum(peer.value for peer in node.peers)) & MASK
    return total


def change(nodes, seed):
    names = list(nodes)
    for i in range(len(names) // 10):
        name = names[mix(seed * 1000003 + i) % len(names)]
        nodes[name].value = mix(nodes[name].value + seed)
    for i in range(len(names) // 50):
        name = names[mix(seed * 999983 + i) % len(names)]
        fresh = Node(name, mix(seed + i))
        fresh.peers = nodes[name].peers[::-1]
        nodes[name] = fresh


def change_buffer(buffer, seed):
    length = len(buffer)
    for i in range(64):
        at = mix(seed * 64 + i) % (length - 65536)
        block = hashlib.sha256(buffer[at : at + 4096]).digest() * 128
        buffer[at + 8192 : at + 8192 + len(block)] = block
    half = length // 2
    middle = bytes(buffer[half : half + 1 << 16])
    buffer[:1024] = middle[:1024]


def in_threads(count):
    """Several threads build, sort and hash lists of their own."""
    results = [None] * count

    def work(index):
        values = sorted(mix(index * 10**6 + i) for i in range(20000))
        text = ",".join(map(str, values)).encode()
        results[index] = hashlib.blake2b(zlib.decompress(zlib.compress(text, 1))).hexdigest()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return hashlib.md5("".join(results).encode()).hexdigest()


def in_a_child(nodes, buffer):
    """A forked child computes the same as its parent."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, f"{checksum(nodes):x} {zlib.crc32(buffer):x}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    assert text == f"{checksum(nodes):x} {zlib.crc32(buffer):x}", text
    return text


def main():
    rounds = int(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 60_000
    nodes = build(count)
    buffer = bytearray(b"".join(hashlib.sha512(str(i).encode()).digest() for i in range(4 * count)))
    print("built", len(nodes), len(buffer), f"{checksum(nodes):x}", hashlib.sha1(buffer).hexdigest())
    for seed in range(rounds):
        change(nodes, seed)
        change_buffer(buffer, seed)
        before = f"{checksum(nodes):x} {hashlib.sha1(buffer).hexdigest()}"
        if seed % 4 == 0:
            gc.collect()
            print("in a child", in_a_child(nodes, buffer))
        if seed % 4 == 2:
            print("in threads", in_threads(4))
        after = f"{checksum(nodes):x} {hashlib.sha1(buffer).hexdigest()}"
        assert before == after, (before, after)
        print(seed, after)
    return len(nodes) % 7


if __name__ == "__main__":
    sys.exit(main())
