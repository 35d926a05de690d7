"""Names of parts that are code, and which of them the user named; without pydantic, for commands that start at once."""

named: set[str] = set()
"""Code that may run: what the user named, and nothing that a file did."""


def is_code(name: object) -> bool:
    """Return whether a name is that of code, ``package.module:FACTORY`` or ``FILE.py:FACTORY``."""
    return isinstance(name, str) and ":" in name


def name_by_user(*names: str | None) -> None:
    """Note that the user named these parts: those that are code may run from now on."""
    named.update(name for name in names if name is not None and is_code(name))
