"""A tally of the faults that the robustness tests try, shown at the end of the session; the commands, called."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bad_world import CONFIG, World
from contract import Broken, Outcome, checked

from s2ap_core.data import DATASETS, InMemory
from s2ap_core.files.tensors import load_tensors


@dataclass
class FaultTable:
    """How often each kind of fault was tried, and survived: refused in one line, or read right."""

    survived: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, survived: bool) -> None:
        """Count one try of this kind, such as ``bit flip / inspect``."""
        (self.survived if survived else self.lost)[kind] += 1

    def tried(self, kind: str = "") -> int:
        """Tries of all kinds that begin with ``kind``."""
        return sum(n for tally in (self.survived, self.lost) for name, n in tally.items() if name.startswith(kind))

    def lines(self) -> Iterator[str]:
        """The table: tried, survived, lost, kind."""
        kinds = sorted(self.survived.keys() | self.lost.keys())
        rows = [("faults", "tried", "survived", "lost")]
        rows += [(k, *map(str, (self.tried(k), self.survived[k], self.lost[k]))) for k in kinds]
        rows.append(("all", *map(str, (self.tried(), self.survived.total(), self.lost.total()))))
        width = max(len(row[0]) for row in rows)
        for name, *counts in rows:
            yield f"{name:<{width}}" + "".join(f"{count:>10}" for count in counts)


TABLE = pytest.StashKey[FaultTable]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = FaultTable()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash[TABLE]
    if table.tried():
        terminalreporter.section("faults tried, survived, lost")
        for line in table.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def fault_table(pytestconfig: pytest.Config) -> FaultTable:
    """Where tests count what they tried: ``fault_table.add(kind, survived)``."""
    return pytestconfig.stash[TABLE]


@pytest.fixture(scope="module")
def prototypes_registered(data: InMemory) -> Iterator[None]:
    """The data set ``prototypes`` can be named in a config or header."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "prototypes", lambda root=None: data)
        yield


@pytest.fixture
def attempt(fault_table: FaultTable) -> Callable[..., Outcome]:
    """``attempt(kind, arguments, ...)``: :func:`checked`, counted in the fault table."""

    def tried(kind: str, arguments: list[Any], **options: Any) -> Outcome:
        try:
            outcome = checked(arguments, **options)
        except Broken:
            fault_table.add(kind, False)
            raise
        fault_table.add(kind, True)
        return outcome

    return tried


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_network: None, prototypes_registered: None) -> World:
    folder = tmp_path_factory.mktemp("world")
    runs = {}
    for name in ("hydra", "hydra-channels"):
        budget = "flops_reduction = 2" if name == "hydra-channels" else "keep = 0.3"
        (folder / f"{name}.toml").write_text(CONFIG + f'method = {{ name = "{name}", {budget} }}\n')
        runs[name] = folder / name
        assert checked(["run", folder / f"{name}.toml", "--out", runs[name], "--quiet"]).status == 0
    checkpoint = runs["hydra"] / "ckpt" / "prune-best.safetensors"
    tensors, header = load_tensors(checkpoint)
    foreign = {name.replace(".scores", ".popup_scores"): tensor for name, tensor in tensors.items()}
    mask = runs["hydra"] / "masks" / "epoch-000.safetensors"
    channels = runs["hydra-channels"] / "ckpt" / "prune-best.safetensors"
    return World(runs["hydra"], channels, checkpoint, tensors, header, mask, foreign)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the damaged file lies, alone."""
    made = tmp_path / "in"
    made.mkdir()
    return made
