"""Checks what documents and headers of modules say of the sources against them, what is said of libraries against these, and that users of the crate hetmem need no
other.

Usage: sources.py unsafe | locks | modules | names | imports | interposed (the latter two of the libraries in target/release) | public (of the documentation in target/public)
"""

import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATES = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "CONTRIBUTING.md"]
DOCUMENTS += sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))
# Below everything: it may not depend on what the model checker replaces.
OWN_LOCKS = {"interpose::heap"}
# Libraries that stand in front of functions of others, and the module whose header has a table of these.
INTERPOSING = {"libhetmem.so": "libhetmem/src/preload", "libhetmem_dmirror.so": "dmirror/src/interpose"}


def sources():
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
    """The part of docs/rules.md between two lines that begin so."""
    lines = (ROOT / "docs/rules.md").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(begin))
    last = next(i for i, line in enumerate(lines) if i > first and line.startswith(end))
    return lines[first + 1 : last]


def expand(name):
    """a::{b, c} is a::b and a::c."""
    many = re.fullmatch(r"(.*)\{(.*)\}", name)
    return [many[1] + one.strip() for one in many[2].split(",")] if many else [name]


def table_of_unsafe():
    """Crate and module, or beginning of modules (`a::*`), of each entry."""
    for line in section("## Unsafe code", "## "):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        crate = cells[0].strip("`")
        if crate in CRATES:
            for name in re.findall(r"`([^`]+)`", cells[1]):
                yield from ((crate, one) for one in expand(name))


def unsafe():
    """Modules that open unsafe code and are not in the table, and entries of the table for which there is none."""
    opened = {(crate, module) for crate, module, text in sources() if re.search(r"(expect|allow)\(\s*unsafe_code", text)}
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
    for crate, module, text in sources():
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
        for name in re.findall(r"(\w+): (?:Mutex|RwLock)<", code) + re.findall(r"struct (\w+)\((?:Mutex|RwLock)<", code):
            declared.add(f"{crate}::{module}.{name}")
        if re.search(r"\bstd::sync::(\{[^}]*)?\b(Mutex|RwLock|Condvar)\b", code) and f"{crate}::{module}" not in OWN_LOCKS | {"core::sync"}:
            yield f"{crate}: {module} takes locks from std, and not from core::sync"
    named = set(re.findall(r"(\w+(?:::\w+)+\.\w+)", "\n".join(section("## Lock order", "## "))))
    yield from (f"{name} is missing in the lock order" for name in sorted(declared - named))
    yield from (f"{name} is in the lock order, and is no lock" for name in sorted(named - declared))


def modules():
    """Modules that the picture in a header lacks, and names in it that are no modules. A header need not have one."""
    for file in sorted(file for crate in CRATES for file in (ROOT / crate / "src").rglob("*.rs")):
        text = file.read_text()
        declared = set(re.findall(r"^(?:pub(?:\(\w+\))? )?mod (\w+);", text, re.MULTILINE)) - {"tests"}
        for picture in re.findall(r"^//! ```text\n(.*?)^//! ```", text, re.MULTILINE | re.DOTALL):
            lines = re.findall(r"^//! (\w+(?:, \w+)*)  +\S", picture, re.MULTILINE)
            drawn = {name for line in lines for name in line.split(", ")}
            # Other pictures show something else.
            if drawn & declared:
                where = file.relative_to(ROOT)
                yield from (f"{where}: {name} is missing in the header's picture" for name in sorted(declared - drawn))
                yield from (f"{where}: {name} is in the header's picture, and is no module" for name in sorted(drawn - declared))


def is_item(path, texts):
    """Whether `crate::module::item` is there, as far as that can be told by words."""
    crate, *rest = path.split("::")
    cut = next(cut for cut in range(len(rest), -1, -1) if cut == 0 or (crate, "::".join(rest[:cut])) in texts)
    within = "::".join((*rest[:cut], ""))
    inside = "\n".join(text for (c, module), text in texts.items() if c == crate and f"{module}::".startswith(within))
    # Of a whole crate a word says nothing.
    defined = "" if within else r"(?:fn|mod|struct|enum|trait|macro_rules!) "
    return all(re.search(rf"\b{defined}{item}\b", inside) for item in rest[cut:])


def names():
    """Files, items and tests that documents name and that are not there."""
    texts = {(crate, module): text for crate, module, text in sources()}
    files = [file for folder in (*CRATES, "include", "python") for file in (ROOT / folder).rglob("*") if file.suffix in (".rs", ".c", ".h", ".sh", ".py")]
    words = {file.stem for file in files} | {word for file in files for word in re.findall(r"\w+", file.read_text())}
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            path = code.split("::")[0]
            if re.fullmatch(rf"(?:{'|'.join((*CRATES, 'include', 'python', 'packaging', 'docs', '[.]ci'))})/[\w./]+", path) and not (ROOT / path).exists():
                yield f"{document}: there is no {path}"
            for item in re.findall(r"\w+(?:::\w+)+", code):
                if item.split("::")[0] in CRATES and not is_item(item, texts):
                    yield f"{document}: there is no {item}"
            # Of whichever crate, and of the C interface.
            named = re.findall(r"(?<=::)\w+|\bhetmem_\w+", code)
            if document == "SPECIFICATION.md":
                # Tests; `a_test_…` are those that begin so.
                named += re.findall(r"\b[a-z]+(?:_[a-z0-9]+){2,}\b(?!_)", code)
                begun = re.findall(r"(\w+_)…", code)
                yield from (f"{document}: nothing is called {name}…" for name in begun if not any(word.startswith(name) for word in words))
            yield from (f"{document}: nothing is called {name}" for name in sorted({*named} - words))


def symbols(library, which):
    """The names of a library's dynamic symbols that `nm` selects by `which`."""
    command = ["nm", "-D", which, ROOT / "target/release" / library]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split()[-1].split("@")[0] for line in printed.splitlines()}


def imports():
    """Symbols that libhetmem.so takes from others without being listed, and the other way round."""
    taken = symbols("libhetmem.so", "--undefined-only")
    lines = (ROOT / ".ci/imports").read_text().splitlines()
    listed = {name for line in lines if not line.startswith("#") for name in line.split()}
    yield from (f"libhetmem.so takes {name} from others: give a reason in .ci/imports, or have its own" for name in sorted(taken - listed))
    yield from (f"{name} is in .ci/imports, and libhetmem.so does not take it" for name in sorted(listed - taken))


def interposed():
    """Functions in front of others' that are missing in a library's table, and rows for functions that are not there."""
    for library, folder in INTERPOSING.items():
        module = (ROOT / folder / "mod.rs").read_text()
        table = {}
        for functions, place in re.findall(r"^//! \| (`.*?) \| .* \| (\S+) \|$", module, re.MULTILINE):
            for name in re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", functions)):
                table[name] = place.strip("`")
        # The C interface is compared with its header, by a test.
        exported = {name for name in symbols(library, "--defined-only") if not name.startswith("hetmem_")}
        yield from (f"{library} has its own {name}, which is not in the table of {folder}" for name in sorted(exported - table.keys()))
        for name, place in table.items():
            text = module if place == "here" else (ROOT / folder / f"{place}.rs").read_text()
            if name not in exported or not re.search(rf"^(.*\bfn|) *{name}\(", text, re.MULTILINE):
                yield f"{name} is in the table of {folder}, and is not interposed by {library} in {place}"


def public():
    """What the documentation of hetmem links to in other crates of the workspace, as it does where a public signature has a type of theirs that hetmem does not
    export; and where it, or Rust code for users, names such a crate."""
    documentation = ROOT / "target/public/doc/hetmem"
    pages = sorted(documentation.rglob("*.html"))
    if not pages:
        yield f"there is no documentation in {documentation}"
    for page in pages:
        # Who implements a trait of hetmem's is no part of its signature.
        text = re.split('<h2 id="(?:foreign-impls|implementors)"', page.read_text())[0]
        for name in sorted(set(re.findall(r"\bhetmem_(?:core|devices|sys)(?=::)", text))):
            yield f"{page.relative_to(documentation)} names {name}"
        for link in re.findall(r'href="([^"]*\bhetmem_\w+/[^"]*)"', text):
            if "/src/" not in link:
                yield f"{page.relative_to(documentation)} needs {link}"
    for file in sorted((ROOT / "runtime/examples").glob("*.rs")):
        yield from (f"{file.relative_to(ROOT)} names {name}" for name in sorted(set(re.findall(r"\bhetmem_\w+", file.read_text()))))
    for code in re.findall(r"```rust\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        yield from (f"README.md names {name}" for name in sorted(set(re.findall(r"\bhetmem_\w+", code))))


def main():
    checks = {"unsafe": unsafe, "locks": locks, "modules": modules, "names": names, "imports": imports, "interposed": interposed, "public": public}
    check = checks[sys.argv[1]]
    problems = list(check())
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{sys.argv[1]}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
