"""Checks the crates of the workspace with what `cargo metadata` says on standard input.

Usage: crates.py floors | crates.py published (prints them, as arguments of cargo) | crates.py notices (prints the licences of what programs are made of)
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

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


def published(metadata):
    """The crates that are meant for others to build on: those without `publish = false`."""
    yield from (f"--package={package['name']}" for package in metadata["packages"] if package["source"] is None and package["publish"] is None)


def notices(metadata):
    """The texts of licences that come with packages of others which are linked into what users get, each once, below the names of who has it."""
    node = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    package = {package["id"]: package for package in metadata["packages"]}
    pending = [member for member in metadata["workspace_members"] if package[member]["name"] in ("hetmem-cli", "libhetmem", "hetmem-dmirror")]
    linked = set()
    while pending:
        one = pending.pop()
        if one not in linked:
            linked.add(one)
            kinds = ((dep["pkg"], {kind["kind"] for kind in dep["dep_kinds"]}) for dep in node[one]["deps"])
            pending += [dependency for dependency, found in kinds if None in found]
    texts = {}
    for one in sorted((package[one] for one in linked if package[one]["source"]), key=lambda one: one["name"]):
        name = f"{one['name']} {one['version']} ({one['license']})"
        folder = pathlib.Path(one["manifest_path"]).parent
        files = sorted(file for file in folder.iterdir() if re.match("licen[cs]e|copying|notice", file.name, re.IGNORECASE) and file.is_file())
        for text in [file.read_text().strip() for file in files] or ["(it comes without a text)"]:
            texts.setdefault(text, []).append(name)
    yield from (", ".join(names) + "\n\n" + text + "\n\n" + "-" * 80 + "\n" for text, names in texts.items())


def main():
    what = {"floors": floors, "published": published, "notices": notices}.get(sys.argv[1])
    if what is None:
        print(f"crates.py knows no {sys.argv[1]} (licences are checked by cargo deny, see deny.toml)", file=sys.stderr)
        return 2
    metadata = json.load(sys.stdin)
    found = list(what(metadata))
    if what is not floors:
        print("\n".join(found))
        return 0
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"floors: {len(metadata['packages'])} packages, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
