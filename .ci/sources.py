"""Checks what ARCHITECTURE.md says of the sources against them, and .ci/imports against the library.

Usage: sources.py unsafe | locks | imports (of the library in target/release)
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATES = ["core", "sys", "topology", "devices", "preload", "runtime", "capi", "dmirror", "cli"]
# Below everything: it may not depend on what the model checker replaces.
OWN_LOCKS = {"preload::heap"}


def modules():
    """Crate, module and text of each source file that is not a test."""
    for crate in CRATES:
        source = ROOT / crate / "src"
        for file in sorted(source.rglob("*.rs")):
            parts = list(file.relative_to(source).with_suffix("").parts)
            if "tests" in parts:
                continue
            if parts[-1] in ("mod", "lib", "main"):
                parts.pop()
            text = file.read_text()
            # A module of tests at the end of the file.
            yield crate, "::".join(parts) or "lib", text.split("#[cfg(test)]\nmod tests {")[0]


def section(begin, end):
    """The part of ARCHITECTURE.md between two lines that begin so."""
    lines = (ROOT / "ARCHITECTURE.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(begin))
    last = next(i for i, line in enumerate(lines) if i > first and line.startswith(end))
    return lines[first + 1 : last]


def expand(name):
    """a::{b, c} is a::b and a::c."""
    many = re.fullmatch(r"(.*)\{(.*)\}", name)
    return [many[1] + one.strip() for one in many[2].split(",")] if many else [name]


def table_of_unsafe():
    """Crate and module, or beginning of modules (`a::*`), of each entry."""
    for line in section("**Unsafe.**", "## "):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        crate = cells[0].strip("`")
        if crate in CRATES:
            for name in re.findall(r"`([^`]+)`", cells[1]):
                yield from ((crate, one) for one in expand(name))


def unsafe():
    """Modules that open unsafe code and are not in the table, and entries of the table for which there is none."""
    opened = {(crate, module) for crate, module, text in modules() if re.search(r"(expect|allow)\(\s*unsafe_code", text)}
    table = list(table_of_unsafe())
    if not table:
        yield "there is no table of modules that open unsafe code"
    covered = set()
    for crate, name in table:
        beginning = name.removesuffix("*")
        meant = {(c, m) for c, m in opened if c == crate and (m == name or (beginning != name and m.startswith(beginning)))}
        if not meant:
            yield f"{crate}: {name} is in the table, and opens no unsafe code"
        covered |= meant
    yield from (f"{crate}: {module} opens unsafe code, and is not in the table" for crate, module in sorted(opened - covered))


def locks():
    """Locks that are missing in the lock order, names in it that are no locks, and locks from elsewhere than `core::sync`."""
    declared = set()
    for crate, module, text in modules():
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
        for name in re.findall(r"(\w+): (?:Mutex|RwLock)<", code) + re.findall(r"struct (\w+)\((?:Mutex|RwLock)<", code):
            declared.add(f"{crate}::{module}.{name}")
        if re.search(r"\bstd::sync::(\{[^}]*)?\b(Mutex|RwLock|Condvar)\b", code) and f"{crate}::{module}" not in OWN_LOCKS | {"core::sync"}:
            yield f"{crate}: {module} takes locks from std, and not from core::sync"
    named = set(re.findall(r"(\w+(?:::\w+)+\.\w+)", "\n".join(section("## Lock order", "## "))))
    yield from (f"{name} is missing in the lock order" for name in sorted(declared - named))
    yield from (f"{name} is in the lock order, and is no lock" for name in sorted(named - declared))


def imports():
    """Symbols that libhetmem.so takes from others without being listed, and the other way round."""
    library = ROOT / "target/release/libhetmem.so"
    printed = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True).stdout
    taken = {line.split()[-1].split("@")[0] for line in printed.splitlines()}
    lines = (ROOT / ".ci/imports").read_text().splitlines()
    listed = {name for line in lines if not line.startswith("#") for name in line.split()}
    yield from (f"libhetmem.so takes {name} from others: give a reason in .ci/imports, or have its own" for name in sorted(taken - listed))
    yield from (f"{name} is in .ci/imports, and libhetmem.so does not take it" for name in sorted(listed - taken))


def main():
    check = {"unsafe": unsafe, "locks": locks, "imports": imports}[sys.argv[1]]
    problems = list(check())
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{sys.argv[1]}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
