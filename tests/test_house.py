"""The structure that CONTRIBUTING.md promises: few rooms on few floors, one way for imports, nothing too long."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("s2ap_core", "s2ap_diag", "figures")
ROOMS = {"s2ap_core": 15, "s2ap_diag": 12}
FLOORS = {"s2ap_core": 7, "s2ap_diag": 7}
FILE_LINES, FUNCTION_LINES = 350, 60

Function = ast.FunctionDef | ast.AsyncFunctionDef

Graph = dict[str, set[str]]


def files(*packages: str) -> list[Path]:
    return [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def imported(node: ast.AST, known: set[str]) -> Iterator[str]:
    """The modules of ours that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if name in known or node.module in known:
                yield name if name in known else node.module


@cache
def module_graph() -> Graph:
    """What each module imports, wherever in it; type checkers' imports aside."""
    known = {module_of(file) for file in files(*PACKAGES)}
    graph: Graph = defaultdict(set)
    for file in files(*PACKAGES):
        checked = {
            inner
            for node in ast.walk(tree_of(file))
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree_of(file)):
            if node not in checked:
                graph[module_of(file)].update(set(imported(node, known)) - {module_of(file)})
    return graph


def room_of(module: str) -> str:
    """The file or folder right below the package; the package itself for its face."""
    return ".".join(module.split(".")[:2])


def room_graph(package: str) -> Graph:
    graph: Graph = defaultdict(set)
    for module, targets in module_graph().items():
        if module.startswith(f"{package}."):
            inside = {room_of(t) for t in targets if t.startswith(f"{package}.")}
            graph[room_of(module)] |= inside - {room_of(module)}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """The strongly connected parts of more than one node: each is a circle of imports."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    parts: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[-len(part) :]
            if len(part) > 1:
                parts.append(sorted(part))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return parts


def floor_of(room: str, graph: Graph) -> int:
    return 1 + max((floor_of(target, graph) for target in graph[room]), default=0)


def test_no_circles_between_modules() -> None:
    # A package's face hands on names of the modules in it, which do not import the face.
    assert circles(module_graph()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circles_between_rooms(package: str) -> None:
    assert circles(room_graph(package)) == []


def test_imports_run_one_way() -> None:
    order = ("s2ap_core", "s2ap_diag", "figures")
    back = {
        (module, target)
        for module, targets in module_graph().items()
        for target in targets
        if order.index(target.split(".")[0]) > order.index(module.split(".")[0])
    }
    assert back == set()


@pytest.mark.parametrize("package", ROOMS)
def test_few_rooms_on_few_floors(package: str) -> None:
    graph = room_graph(package)
    rooms = [room for room in graph if not room.endswith(".__main__")]
    assert len(rooms) <= ROOMS[package], sorted(rooms)
    floors = {room: floor_of(room, graph) for room in rooms}
    assert max(floors.values()) <= FLOORS[package], floors


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_files_and_functions_are_short() -> None:
    long = []
    for file in files(*PACKAGES):
        lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions(tree_of(file))}
        long += [f"{name_of(file)}: {name}" for name, length in lengths.items() if length > FUNCTION_LINES]
        if len(file.read_text().splitlines()) > FILE_LINES:
            long.append(name_of(file))
    assert long == []


def test_an_import_inside_a_function_says_why() -> None:
    """On its line or the one above it; what follows an import that does so is meant as well."""
    silent = []
    for file in files(*PACKAGES):
        lines = file.read_text().splitlines()
        inner = (node for function in functions(tree_of(file)) for node in ast.walk(function))
        imports = {node.lineno: node for node in inner if isinstance(node, ast.Import | ast.ImportFrom)}
        explained: set[int] = set()  # the last lines of imports that say why
        for first, node in sorted(imports.items()):
            own = lines[first - 1 : node.end_lineno]
            above = lines[first - 2].strip()
            if first - 1 in explained or above.startswith("# ") or any("  # " in line for line in own):
                explained.add(node.end_lineno)
            else:
                silent.append(f"{name_of(file)}:{first}")
    assert silent == []


def test_contributings_map_is_the_tree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("```")[1]
    said: dict[str, set[str]] = defaultdict(set)
    package = ""
    for line in text.splitlines():
        if match := re.match(r"(\w+)/ ", line):
            package = match[1]
        elif match := re.match(r"  ((?:\w+(?:/|\.py),? )+)", line):
            said[package] |= {name.strip(", ") for name in match[1].split()}
    for package in ("s2ap_core", "s2ap_diag"):
        there = {
            child.name + "/" if child.is_dir() else child.name
            for child in (ROOT / package).iterdir()
            if (child.suffix == ".py" and not child.name.startswith("__")) or list(child.glob("*.py"))
        }
        assert said[package] == there
