"""Checks the crates of the workspace with what `cargo metadata` says on standard input.

Usage: crates.py floors | crates.py licences | crates.py published (prints them, as arguments of cargo)
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

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
    """Dependencies on the same floor or a higher one, by the floors of ARCHITECTURE.md, and crates that it or CONTRIBUTING.md lacks or calls otherwise."""
    members = {package["name"]: package for package in metadata["packages"] if package["source"] is None}
    folder = {name: pathlib.Path(package["manifest_path"]).parent.name for name, package in members.items()}
    drawn = re.search(r"^## Floors$.*?^```text\n(.*?)^```$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    floor_of, floor = {}, None
    for number, crate in re.findall(r"^(?:floor (\d+)| {7}) +(\w+) ", drawn, re.MULTILINE):
        floor = int(number) if number else floor
        floor_of[crate] = floor
    if floor_of.keys() != set(folder.values()):
        yield f"ARCHITECTURE.md has floors for {sorted(floor_of)}, and there are {sorted(folder.values())}"
        return
    for name, package in members.items():
        own = floor_of[folder[name]]
        for dependency in package["dependencies"]:
            if dependency["name"] in members and floor_of[folder[dependency["name"]]] >= own:
                yield f"{name} (floor {own}) uses {dependency['name']} (floor {floor_of[folder[dependency['name']]]})"
    listed = dict(re.findall(r"^\| `(\w+)` \| `([\w-]+)` \| ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    if {(path, name) for name, path in folder.items()} != set(listed.items()):
        yield f"CONTRIBUTING.md has the folders and crates {listed}, and they are {folder}"


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
