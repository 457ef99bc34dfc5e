"""What goes into the wheel beside the Python sources: the library that `cargo build --release` made, what its header declares, and licences."""

import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

SOURCES = pathlib.Path(__file__).resolve().parent.parent
LIBRARY = SOURCES / "target/release/libhetmem.so"


def declarations() -> str:
    """The header as cffi reads it: without what is for the preprocessor and for C++."""
    text = (SOURCES / "include/hetmem.h").read_text()
    # Numbers are all that cffi takes of definitions.
    text = re.sub(r"^#(?!define \w+ \d+$).*\n", "", text, flags=re.MULTILINE)
    return re.sub(r'^extern "C" \{\n(.*)^\}\n', r"\1", text, flags=re.MULTILINE | re.DOTALL)


def oldest_glibc(library: bytes) -> int:
    """The minor version of the oldest C library that has all that the library takes from it."""
    return max(int(minor) for minor in re.findall(rb"\bGLIBC_2\.(\d+)\b", library))


class MetadataHook(MetadataHookInterface):
    """The version is the library's."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling."""
        header = (SOURCES / "include/hetmem.h").read_text()
        metadata["version"] = ".".join(re.findall(r"^#define HETMEM_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", header, re.MULTILINE))


class BuildHook(BuildHookInterface[Any]):
    """Adds the files, and names the machines that the wheel is for."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it writes the wheel."""
        if not LIBRARY.is_file():
            raise SystemExit(f"there is no {LIBRARY}; run `cargo build --release` first")
        self.folder = pathlib.Path(tempfile.mkdtemp())
        library = self.folder / "libhetmem.so"
        shutil.copyfile(LIBRARY, library)
        # Names of functions stay: they tell where a panic came from.
        subprocess.run(["strip", "--strip-debug", library], check=True)
        (self.folder / "declarations.h").write_text(declarations())
        cargo = ["cargo", "metadata", "--format-version=1", "--locked", "--quiet"]
        metadata = subprocess.run(cargo, check=True, cwd=SOURCES, capture_output=True).stdout
        crates = ["python3", SOURCES / ".ci/crates.py", "notices"]
        notices = subprocess.run(crates, check=True, input=metadata, capture_output=True).stdout
        (self.folder / "NOTICES").write_bytes(notices)
        names = ["libhetmem.so", "declarations.h", "NOTICES"]
        build_data["force_include"] |= {str(self.folder / name): f"hetmem/{name}" for name in names}
        build_data["force_include"] |= {str(SOURCES / name): f"hetmem/{name}" for name in ["LICENSE-MIT", "LICENSE-APACHE"]}
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_{oldest_glibc(library.read_bytes())}_{platform.machine()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling after that."""
        shutil.rmtree(self.folder)
