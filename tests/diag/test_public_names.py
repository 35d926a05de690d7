"""What ``import s2ap_diag`` offers, to Python and to type checkers."""

import ast
import importlib
import inspect
from importlib.metadata import version
from pathlib import Path

import pytest

import s2ap_diag


def test_type_checkers_see_the_names_that_python_finds():
    """The block for type checkers, read as text, against what the package gives."""
    (block,) = (
        node
        for node in ast.parse(inspect.getsource(s2ap_diag)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    declared = {"__version__": version("s2ap-diag")}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            declared |= {str(alias.asname): getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign):
            (target,) = node.targets
            declared[ast.unparse(target)] = declared[ast.unparse(node.value)]
    assert declared == {name: getattr(s2ap_diag, name) for name in s2ap_diag.__all__}
    assert set(s2ap_diag.__all__) <= set(dir(s2ap_diag))


def test_a_name_is_no_room_that_was_entered_before():
    """A module that is imported becomes an attribute of its package, and would stand in the function's place."""
    for path in Path(s2ap_diag.__file__).parent.iterdir():
        assert path.stem not in s2ap_diag.__all__, path


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="nonsense"):
        s2ap_diag.nonsense  # noqa: B018


@pytest.mark.parametrize("package", ["s2ap_core", "s2ap_diag"])
def test_the_packages_say_that_they_are_typed(package):
    assert (Path(importlib.import_module(package).__file__).parent / "py.typed").is_file()
