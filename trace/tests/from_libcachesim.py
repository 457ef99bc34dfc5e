"""Writes from_libcachesim.json: the misses that libCacheSim counts, for the test `baselines` to compare with.

Usage: pip install libcachesim==0.3.5; python3 from_libcachesim.py [TRACE]

With TRACE, the trace is left there, as oracleGeneral. The trace is made of numbers alone; the test makes the same.
"""

import importlib.metadata
import json
import pathlib
import struct
import sys
import tempfile

import libcachesim as lcs

TOUCHES = 400_000
LIMITS = [64, 256, 1000, 2500, 6000]
MASK = (1 << 64) - 1


def mixed(number):
    """The end of SplitMix64."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def pages():
    """Three of four touches are of few of 10000 pages above all; a quarter goes through 30000 others again and again."""
    state = 1

    def draw(below):
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & MASK
        return mixed(state) % below

    for number in range(TOUCHES):
        if number // 10_000 % 4 == 3:
            yield 10_000 + number % 30_000
        else:
            yield draw(draw(draw(10_000) + 1) + 1)


def main():
    touched = list(pages())
    following, after = {}, [-1] * len(touched)
    for number in reversed(range(len(touched))):
        after[number] = following.get(touched[number], -1)
        following[touched[number]] = number
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else f"{folder}/trace.oracleGeneral.bin")
        path.write_bytes(b"".join(struct.pack("<IQIq", number // 1000, page, 1, after[number]) for number, page in enumerate(touched)))
        found = {}
        for name, make in [("LRU", lcs.LRU), ("CLOCK", lcs.Clock), ("S3-FIFO", lcs.S3FIFO), ("Belady", lcs.Belady)]:
            found[name] = []
            for limit in LIMITS:
                reader = lcs.TraceReader(trace=str(path), trace_type=lcs.TraceType.ORACLE_GENERAL_TRACE, reader_init_params=lcs.ReaderInitParam(ignore_obj_size=True))
                ratio, _ = make(cache_size=limit).process_trace(reader)
                found[name].append(round(ratio * TOUCHES))
    version = importlib.metadata.version("libcachesim")
    result = {"libcachesim": version, "touches": TOUCHES, "pages": len(following), "limits": LIMITS, "misses": found}
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
