"""Makes the tables of README's section on `hetmem bench` of what it has measured.

Usage: figures.py FILE [--check], where FILE is from `hetmem bench --json FILE`. Each block of README.md between `<!-- figures: NAME -->` and
`<!-- end of figures -->` is written anew, if NAME was measured. With --check nothing is written: all blocks are printed, and all must be there.
"""

import json
import pathlib
import re
import sys

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)


class Section:
    """Rows of one measurement, by name. Those whose name is indented belong to the one above."""

    def __init__(self, section):
        self.name = section["name"]
        self.rows, self.parts = {}, {}
        above = None
        for row in section["rows"]:
            if row["name"].startswith("  "):
                self.parts.setdefault(above, {}).setdefault(row["name"].strip(), row)
            else:
                above = row["name"]
                self.rows[above] = row

    def row(self, name):
        if name not in self.rows:
            raise KeyError(f"{self.name} has no row `{name}`")
        return self.rows[name]

    def median(self, name):
        return self.row(name)["median"]

    def part(self, name, part):
        if part not in self.parts.get(name, {}):
            raise KeyError(f"{self.name} has no row `{part}` below `{name}`")
        return self.parts[name][part]["median"]

    def ratio(self, name, against):
        found = [ratio["median"] for ratio in self.row(name)["ratios"] if ratio["against"] == against]
        if not found:
            raise KeyError(f"{self.name} has no ratio of `{name}` against `{against}`")
        return found[0]


def figure(value):
    """Two digits that matter, or all of those before the point; thousands are rounded."""
    if abs(value) >= 1000:
        scale = 10 ** (len(str(int(abs(value)))) - (2 if abs(value) < 1e5 else 3))
        return f"{round(value / scale) * scale:,}"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def duration(ns):
    return f"{ns:.0f} ns" if ns < 1000 else f"{figure(ns / 1000)} µs"


def times(ratio):
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    # A cell without text has no second space.
    return "".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|\n" for line in lines)


def migrate(section):
    units = {
        "2 MiB": "2 MiB, huge pages",
        "64 KiB": "64 KiB, small pages",
        "4 KiB": "4 KiB, small pages",
        "64 KiB apart": "64 KiB, each apart from the next",
        "4 KiB apart": "4 KiB, each apart from the next",
    }
    rows = []
    for unit, text in units.items():
        cells = [text]
        for kind in ("coherent", "private"):
            name = f"{unit} {kind} round trip"
            cells.append(f"{figure(section.median(name))} GB/s")
            cells += [f"{section.ratio(name, against):.2f}" for against in ("best copy", "plain way")]
        rows.append(cells)
    compared = ["× best copy", "× plain way"]
    return table(["unit of migration", "coherent", *compared, "private", *compared], rows)


def costs(fault, touch, steady, bookkeeping):
    threads = (1, 2, 8, 32)
    paths = ("thread", "SIGBUS")

    def both(values):
        return "; ".join(values)

    p50 = [f"{path} 1t p50" for path in paths]
    rates = [f"thread {n}t rate" for n in threads]
    in_order = [f"{path} sequential" for path in paths]
    uses = ["read and write", "pointer chase"]
    return table(
        ["what", "figure", "compared"],
        [
            [
                "fault of one private page, from the touch to its return, p50: by handler threads; by SIGBUS",
                both(f"{figure(fault.median(name))} µs" for name in p50),
                both(f"{fault.ratio(name, 'floor'):.1f} ×" for name in p50) + " bare handlers, one on each processor, that make one copy",
            ],
            [
                "touches of private pages at random, 1, 2, 8 and 32 threads",
                ", ".join(figure(fault.median(name)) for name in rates) + " pages/s",
                ", ".join(f"{fault.ratio(name, 'floor'):.2f}" for name in rates) + " ×",
            ],
            [
                "sequential touch of private memory, thread; SIGBUS",
                both(figure(touch.median(name)) for name in in_order) + " pages/s",
                both(f"{touch.ratio(name, 'page by page'):.1f} ×" for name in in_order) + " page by page",
            ],
            [
                "steady use of coherent memory: reading and writing; pointer chase",
                f"{figure(steady.median(uses[0]))} GB/s; {figure(steady.median(uses[1]))} ns",
                both(f"{steady.ratio(name, 'native'):.2f} ×" for name in uses) + " native",
            ],
            ["books for each page on a device", f"{bookkeeping.median('dense, everything'):.1f} bytes", ""],
        ],
    )


def agent(section):
    ways = ("manual", "limit")

    def spread(rows, digits=2):
        low, high = min(row["median"] for row in rows), max(row["median"] for row in rows)
        middle = f"{low:.{digits}f}" if f"{low:.{digits}f}" == f"{high:.{digits}f}" else f"{low:.{digits}f}–{high:.{digits}f}"
        return middle, f"({min(row['min'] for row in rows):.{digits}f} .. {max(row['max'] for row in rows):.{digits}f})"

    def asleep(unit):
        """Names of what sleeps, as they were measured."""
        names = [name.split(", ")[1] for name in section.rows if re.fullmatch(rf"asleep, \S+ {unit}, manual, added", name)]
        if not names:
            raise KeyError(f"{section.name} has nothing that sleeps, by {unit}")
        return names

    start, work = "start-up of /bin/true, added", "at work, {}"
    mappings, sizes = asleep("mappings"), asleep("[MG]iB")
    cells = []
    for way in ways:
        middle, ends = spread([section.row(f"asleep, {name}, {way}, added") for name in mappings])
        cells.append(f"{middle} % {'of a processor ' if way == 'manual' else ''}{ends}")
    ratios = [next(iter(section.row(work.format(way))["ratios"])) for way in ways]
    middle, ends = spread([section.row(start)], 1)
    of = f"{mappings[0].split()[0]} to {mappings[-1]}" if len(mappings) > 1 else mappings[0]
    return table(
        ["what", "`manual`", "`limit`"],
        [
            [f"start-up of `/bin/true` ({section.part(start, 'native'):.1f} ms natively)", f"{middle} ms {ends}", ""],
            [f"asleep, {of}", *cells],
            [f"asleep, {'; '.join(sizes)}"]
            + ["; ".join(f"{section.median(f'asleep, {name}, {way}, added'):.2f} %" for name in sizes) for way in ways],
            ["at work"] + [f"{r['median']:.2f} ×{' native' if way == 'manual' else ''} ({r['min']:.2f} .. {r['max']:.2f})" for way, r in zip(ways, ratios)],
            ["resident memory"] + [f"{section.median(f'resident memory, {way}, added'):.1f} MiB" for way in ways],
        ],
    )


def alternate(section):
    contenders = {
        "coherent": "coherent",
        "coherent (checked)": "coherent, by a system call for each access",
        "private (thread)": "private, thread",
        "private (SIGBUS)": "private, SIGBUS",
        "explicit copies": "explicit copies",
    }
    # Pages of a round, which the section says of a private device: each moves there and back.
    pages = section.part("private (thread), in disorder", "pages moved") / 2
    rows = []
    for contender, text in contenders.items():
        cells = [text]
        for order in ("in disorder", "in order"):
            name = f"{contender}, {order}"
            cell = duration(section.median(name))
            cells.append(cell if contender == "coherent" else f"{cell} (× {times(section.ratio(name, 'coherent'))})")
        name = f"{contender}, in disorder"
        moved = section.part(name, "pages moved") / pages if pages else 0
        rows.append([*cells, f"{moved:.0f}", f"{section.part(name, 'bytes copied'):.0f}"])
    return table(["a round, each page", "in disorder", "in order", "pages moved", "bytes copied"], rows)


def mirror(section):
    def asked(of):
        ways = (f"range_fault_runs, {of}", f"range_fault, {of}")
        speeds = "; ".join(f"{figure(section.median(way))}" for way in ways)
        ratios = "; ".join(f"{section.ratio(way, 'PAGEMAP_SCAN'):.2f}" for way in ways)
        return [f"{speeds} million pages/s", f"{ratios} × PAGEMAP_SCAN"]

    hits = ("hit, in place", "hit, in a frame")
    return table(
        ["what, by one thread", "figure", "compared"],
        [
            ["populated 4 KiB pages are told, by runs; page by page", *asked("4 KiB pages")],
            ["huge pages", *asked("huge pages")],
            ["pages on a coherent device", *asked("on a coherent device")],
            ["pages on a private device", *asked("on a private device")],
            ["access through a device's page table: in place; in a frame", "; ".join(duration(section.median(name)) for name in hits), ""],
        ],
    )


def scale(section):
    def exponents(of):
        return [f"{section.median(f'{of} {kind} {way}'):.2f}" for kind in ("coherent", "private") for way in ("out", "back")]

    counts = [int(name.split()[0]) for name in section.rows if re.fullmatch(r"\d+ mappings coherent out", name)]
    if not counts:
        raise KeyError(f"{section.name} has no mappings")
    most = max(counts)
    of_one = [f"{section.ratio(f'{most} mappings {kind} {way}', 'one mapping'):.2f}" for kind in ("coherent", "private") for way in ("out", "back")]
    return table(
        ["how time grows", "coherent, out", "back", "private, out", "back"],
        [
            ["with the size: exponent", *exponents("size")],
            ["with the number of mappings: exponent", *exponents("mappings")],
            [f"speed of {most:,} mappings of 64 KiB, × one of their size", *of_one],
            ["with the number of threads, of the same in all: exponent", *exponents("threads")],
        ],
    )


def policy(section):
    found = [(name[: -len(", limit")], name) for name in section.rows if name.endswith(", limit")]
    if not found:
        raise KeyError(f"{section.name} has no rows of `limit`")

    def shares(name, changed=""):
        """By seconds, in order."""
        pattern = rf"share{changed} after (\S+) s"
        parts = {float(match[1]): row["median"] for part, row in section.parts[name].items() if (match := re.fullmatch(pattern, part))}
        if not parts:
            raise KeyError(f"{section.name} has no shares below `{name}`")
        return sorted(parts.items())

    def after(shares, seconds):
        """At the last mark that is not later, or the first."""
        return ([share for mark, share in shares if mark <= seconds] or [shares[0][1]])[-1]

    def ratio(name, against):
        ratios = [ratio["median"] for ratio in section.row(name)["ratios"] if ratio["against"] == against]
        return times(ratios[0]) if ratios and ratios[0] is not None else ""

    rows = []
    for case, name in found:
        of = shares(name)
        cells = [f"`{case}`", f"{after(of, 5):.2f}; {of[-1][1]:.2f}"]
        # A change of phase comes to an end as the first phase does.
        changed = [part for part in section.parts[name] if part.startswith("share, changed,")]
        if changed:
            after_change = shares(name, ", changed,")
            cells[1] += f"; changed: {after(after_change, 5):.2f}; {after_change[-1][1]:.2f}"
        cells += [f"{figure(section.median(name))} M/s", ratio(name, "native"), ratio(name, "best fixed placement")]
        cells += [ratio(name, "clock"), f"{section.part(name, 'agent, learning'):.1f}; {section.part(name, 'agent, stable'):.1f} %"]
        rows.append(cells)
    return table(["workload, limit, device", "share after 5 s; at the end", "accesses", "× native", "× best fixed placement", "× `clock`", "agent: learning; stable"], rows)


def places(section):
    rows = []
    for place in ("emulated", "compressed", "zram"):
        if f"{place} out 1t" not in section.rows:
            continue

        def figures(names, unit):
            known = [figure(section.median(f"{place} {name}")) for name in names if f"{place} {name}" in section.rows]
            return f"{'; '.join(known)} {unit}" if known else ""

        cells = [figures(["fault 1t p50", "fault 8t p50"], "µs"), figures(["out 1t", "out 2t"], "pages/s"), figures(["home"], "pages/s")]
        rows.append([place, *cells, figures(["pages for each page of memory"], "").strip()])
    return table(["place", "fault, p50: one thread; eight", "out: one thread; two", "home", "pages for each page of memory"], rows)


# What a block is made of.
BLOCKS = {
    "migrate": (migrate, ["migrate"]),
    "costs": (costs, ["fault", "touch", "steady", "bookkeeping"]),
    "places": (places, ["places"]),
    "agent": (agent, ["agent"]),
    "alternate": (alternate, ["alternate"]),
    "mirror": (mirror, ["mirror"]),
    "scale": (scale, ["scale"]),
    "policy": (policy, ["policy"]),
}


def main(path, check):
    measured = {section["name"]: Section(section) for section in json.loads(pathlib.Path(path).read_text())["sections"]}
    made, missing = {}, []
    for name, (make, needs) in BLOCKS.items():
        missing += [need for need in needs if need not in measured]
        if all(need in measured for need in needs):
            made[name] = make(*(measured[need] for need in needs))
    text = README.read_text()
    there = [match[2] for match in BLOCK.finditer(text)]
    if sorted(there) != sorted(BLOCKS):
        sys.exit(f"README.md has the blocks {', '.join(there)}, and not {', '.join(BLOCKS)}")
    if check:
        print("\n".join(made.values()), end="")
        sys.exit(f"not measured: {', '.join(missing)}" if missing else 0)
    README.write_text(BLOCK.sub(lambda match: match[1] + made.get(match[2], match[3]) + match[4], text))
    print(f"made: {', '.join(made)}; left as they are: {', '.join(name for name in BLOCKS if name not in made) or 'none'}")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(arguments) != 1:
        sys.exit(__doc__)
    try:
        main(arguments[0], "--check" in sys.argv[1:])
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f"{arguments[0]}: {error.args[0] if isinstance(error, KeyError) else error}")
