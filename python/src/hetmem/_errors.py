"""What hetmem refuses, and why."""


class Error(Exception):
    """What all errors of hetmem have in common. The message is one line, which says what would be right."""


class InvalidInputError(Error, ValueError):
    """An argument is out of range, or contradicts another."""


class ClosedError(Error, ValueError):
    """The runtime was closed."""


class HostRefusesError(Error, OSError):
    """This machine lacks a feature or a permission; or the program runs under `hetmem run`, which manages its memory."""


class ExhaustedError(Error, MemoryError):
    """This machine is out of memory, descriptors or the like."""
