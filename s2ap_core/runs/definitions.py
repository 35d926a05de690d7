"""Checksums of what the pruner's source files define, by which a resumed run notices what was edited since it began.

Each function, class and constant of a module has its own checksum, of its syntax alone: comments, docstrings,
layout and imports do not change it, nor does moving it to another file.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

WITHOUT_INFLUENCE = (
    *("config/parts.py", "export.py", "foreign", "presets", "data/fetch.py", "files/lock.py"),
    *("runs/definitions.py", "runs/disk.py", "runs/identity.py"),
)
"""Files and folders of the package that no run's results depend on."""

STATEMENTS = "(statements)"
"""The name under which statements of a module that define nothing are listed."""

Definitions = dict[str, dict[str, list[str]]]
"""By name, in alphabetical order: checksums, and the files in which a definition of that checksum stands."""


@cache
def definitions(package: Path) -> Definitions:
    """Read what the modules of a package define, except those that no result depends on.

    Definitions of one name in several files are listed together.

    >>> known = definitions(Path(__file__).parents[1])
    >>> list(known["topk_mask"].values())
    [['s2ap_core/masks/topk.py']]
    """
    by_name: Definitions = {}
    for file in sorted(package.rglob("*.py")):
        within = file.relative_to(package)
        if any(within.is_relative_to(left_out) for left_out in WITHOUT_INFLUENCE):
            continue
        for statement in ast.parse(file.read_bytes()).body:
            if _is_silent(statement):
                continue
            checksum = hashlib.sha256(_syntax(statement).encode()).hexdigest()[:8]
            for name in _names(statement):
                files = by_name.setdefault(name, {}).setdefault(checksum, [])
                files.append((package.name / within).as_posix())
    return dict(sorted(by_name.items()))


def checksums(known: Definitions) -> dict[str, str]:
    """Join the checksums of each name to one string, whatever files they come from."""
    return {name: " ".join(sorted(of_name)) for name, of_name in known.items()}


def files_of(name: str, before: str | None, now: Definitions) -> list[str]:
    """Name the files that hold definitions of a name which were not there before.

    Args:
        before: what :func:`checksums` gave then.
    """
    known = (before or "").split()
    return [file for checksum, files in now.get(name, {}).items() if checksum not in known for file in files]


def _names(statement: ast.stmt) -> Iterator[str]:
    """Name what a statement defines; an entry of a table belongs to the table."""
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        case _:
            yield STATEMENTS


def _is_silent(statement: object) -> bool:
    """Return whether a statement computes nothing: an import, a docstring, ``__all__``."""
    match statement:
        case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]):
            return True
    return False


def _syntax(node: object) -> str:
    """Write a syntax tree without what computes nothing, and the same under every version of Python."""
    if isinstance(node, list):
        return f"[{','.join(_syntax(item) for item in node if not _is_silent(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Later versions of Python have more fields, which are empty for the syntax of earlier ones.
    fields = [(name, value) for name, value in ast.iter_fields(node) if name != "ctx" and value not in (None, [])]
    return f"{type(node).__name__}({','.join(f'{name}={_syntax(value)}' for name, value in fields)})"
