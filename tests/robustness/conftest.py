"""The commands, called on what is damaged, and each try counted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_world import CONFIG, World
from contract import Broken, Outcome, checked

from s2ap_core.data import DATASETS, InMemory
from s2ap_core.files.tensors import load_tensors
from tests.faults import FaultTable


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
