"""Good files to damage, and every command that reads them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import Broken, Outcome
from torch import Tensor

CONFIG = """
data.name = "prototypes"
network.name = "tiny"
objective = { name = "pgd-at", eps = "32/255", step = "16/255", steps = 1 }
pretrain = { epochs = 1, batch_size = 20 }
prune = { epochs = 1, batch_size = 20 }
finetune = { epochs = 1, batch_size = 20 }
evaluation = { attack = "pgd-50", n = 6 }
"""


SMALL = ["--quiet", "--json", "-"]


FOREIGN = ["--keep", "0.3", "--network", "tiny", "--dataset", "prototypes"]


MEASURE = ["--images", 8, "--batch-size", 8, "--iterations", 1, "--rho", 0.01, "--steps", 1, "--objective", "clean"]


Attempt = Callable[..., Outcome]


@dataclass(frozen=True)
class World:
    """Good files to damage, and what the commands say of them."""

    run: Path
    channels: Path
    checkpoint: Path
    tensors: dict[str, Tensor]
    header: dict[str, Any]
    mask: Path
    foreign: dict[str, Tensor]


def commands_on(path: Path, world: World, options: list[Any], out: Path) -> dict[str, list[Any]]:
    """Every command that reads a checkpoint, on this one."""
    evaluation = ["--attack", "none", "--n", 6]
    config = ["--set", f"pretrain.checkpoint={path}", "--out", out / "run", "--quiet"]
    return {
        "inspect": ["inspect", path, *options, *SMALL],
        "verify": ["verify", path, *options, *SMALL],
        "sharpness": ["sharpness", path, *MEASURE, *options, *SMALL],
        "hamming": ["hamming", world.checkpoint, path, "--keep", 0.3, *SMALL],
        "evaluate": ["evaluate", path, *evaluation, *options, *SMALL],
        "export": ["export", path, "--out", out / "small.safetensors", "--rounds", 1, "--n", 4, *SMALL],
        "run": ["run", world.run.parent / "hydra.toml", *config],
    }


def attempt_checkpoint(
    attempt: Attempt, kind: str, path: Path, world: World, turn: int, options: list[Any] = FOREIGN
) -> dict[str, Outcome]:
    """A checkpoint through ``inspect`` and two more commands, all seven in turn."""
    out = path.parent.with_name("out")
    calls = commands_on(path, world, options, out)
    names = list(calls)[1:]
    chosen = ("inspect", names[turn % 6], names[(turn + 3) % 6])
    found = {}
    for name in chosen:
        statuses = (0, 1, 2) if name == "verify" else (0, 2)
        found[name] = attempt(f"{kind} / {name}", calls[name], untouched=path.parent, statuses=statuses)
        if found[name].status == 2 and out.exists():
            assert not [p for p in out.rglob("*.tmp")]
        shutil.rmtree(out, ignore_errors=True)
    return found


def all_of(kinds: list[tuple[str, Callable[[], None]]]) -> None:
    """Go through all cases and fail with all that broke."""
    broken = []
    for what, case in kinds:
        try:
            case()
        except (Broken, AssertionError) as error:
            broken.append(f"{what}: {error}")
    assert not broken, f"{len(broken)} of {len(kinds)} broke:\n" + "\n".join(broken)
