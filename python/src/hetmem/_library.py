"""The library, and calls of it.

Under `hetmem run` the library is there already, as the agent: then it is that one that is called, and never a second copy.
"""

from __future__ import annotations

import importlib.resources
from typing import Any

import cffi

from ._errors import Error, ExhaustedError, HostRefusesError, InvalidInputError

# cffi has no types of its own.
ffi: Any = cffi.FFI()


def _load() -> Any:
    package = importlib.resources.files(__package__)
    ffi.cdef((package / "declarations.h").read_text())
    program = ffi.dlopen(None)
    try:
        found = program.hetmem_version()
    except AttributeError:
        with importlib.resources.as_file(package / "libhetmem.so") as path:
            return ffi.dlopen(str(path))
    needed = program.HETMEM_VERSION_MAJOR << 16 | program.HETMEM_VERSION_MINOR << 8 | program.HETMEM_VERSION_PATCH
    # Before 1.0 each minor version may change everything.
    if found >> 8 != needed >> 8 or found < needed:
        theirs = ffi.string(program.hetmem_version_string()).decode()
        raise ImportError(
            f"this program runs with libhetmem {theirs}, and the Python package is for "
            f"{needed >> 16}.{needed >> 8 & 255}.{needed & 255}: install hetmem and the package of one version"
        )
    return program


lib: Any = _load()

PAGE = 4096
"""Bytes of a page."""

_ERRORS: dict[int, type[Error]] = {
    lib.HETMEM_INVALID_INPUT: InvalidInputError,
    lib.HETMEM_HOST_REFUSES: HostRefusesError,
    lib.HETMEM_EXHAUSTED: ExhaustedError,
}


def check(error: Any) -> None:
    """Raises what a function of the library has answered, if that is an error."""
    if error == ffi.NULL:
        return
    code, message = lib.hetmem_error_code(error), ffi.string(lib.hetmem_error_message(error)).decode()
    lib.hetmem_error_free(error)
    raise _ERRORS.get(code, Error)(message)


def version() -> str:
    """The version of the library, as in ``"0.1.0"``."""
    text: bytes = ffi.string(lib.hetmem_version_string())
    return text.decode()
