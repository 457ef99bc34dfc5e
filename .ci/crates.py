"""Checks the crates of the workspace with what `cargo metadata` says on standard input.

Usage: crates.py floors | crates.py licences | crates.py published (prints them, as arguments of cargo)
"""

import json
import re
import sys

# A crate uses only crates of lower floors (ARCHITECTURE.md).
FLOOR = {"hetmem-core": 0, "hetmem-sys": 1, "hetmem-topology": 1, "hetmem-devices": 2, "hetmem-preload": 2, "hetmem": 3, "hetmem-capi": 4, "hetmem-dmirror": 4, "hetmem-cli": 4}

# Permissive licences that ask for no more than a notice.
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}


def floors(metadata):
    """Dependencies on the same floor or a higher one, and crates without a floor."""
    members = {package["name"]: package for package in metadata["packages"] if package["source"] is None}
    for name, package in members.items():
        if name not in FLOOR:
            yield f"{name} has no floor"
            continue
        for dependency in package["dependencies"]:
            if dependency["name"] in members and FLOOR.get(dependency["name"], 99) >= FLOOR[name]:
                yield f"{name} (floor {FLOOR[name]}) uses {dependency['name']} (floor {FLOOR.get(dependency['name'])})"


def permitted(expression):
    """Whether an SPDX expression is satisfied by allowed licences alone."""
    tokens = re.findall(r"\(|\)|[^\s()/]+(?:\s+WITH\s+[^\s()/]+)?|/", expression)
    words = {"AND": "and", "OR": "or", "/": "or", "(": "(", ")": ")"}
    return bool(eval(" ".join(words.get(token) or str(token in ALLOWED) for token in tokens), {"__builtins__": {}}))


def licences(metadata):
    """Packages whose licence is unknown or not allowed."""
    for package in metadata["packages"]:
        expression = package["license"]
        if expression is None or not permitted(expression):
            yield f"{package['name']} {package['version']}: {expression}"


def published(metadata):
    """The crates that are meant for others to build on: those without `publish = false`."""
    return [package["name"] for package in metadata["packages"] if package["source"] is None and package["publish"] is None]


def main():
    if sys.argv[1] == "published":
        print("\n".join(f"--package={name}" for name in published(json.load(sys.stdin))))
        return 0
    check = {"floors": floors, "licences": licences}[sys.argv[1]]
    metadata = json.load(sys.stdin)
    problems = list(check(metadata))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{sys.argv[1]}: {len(metadata['packages'])} packages, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
