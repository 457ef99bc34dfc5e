import time
memory = bytearray(96 << 20)
for at in range(0, len(memory), 4096): memory[at] = 1
began = time.monotonic()
while (now := time.monotonic() - began) < 9:
    # A window of 12 MiB that wanders; beside it 4 MiB that are always in use.
    start = int(now / 9 * 80) << 20
    for at in range(start, start + (12 << 20), 4096): memory[at] += now > 99
    for at in range(88 << 20, 92 << 20, 4096): memory[at] += now > 99
