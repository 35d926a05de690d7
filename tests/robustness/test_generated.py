"""Every command, called as nobody would think of: no traceback, and no file changed that was not named."""

import itertools
import json
import math
import os
import shutil
import stat
from pathlib import Path

import box
import numpy as np
import pytest
import soak
import torch
from bad_world import World
from contract import numbers
from generated import EVERY, TINY, Call, calls, written
from hypothesis import HealthCheck, Phase, given, seed, settings
from PIL import Image

from tests.faults import FaultTable

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")

EXAMPLES = -(-soak.amount(200, 2000) // len(EVERY))
"""Calls of each command."""

STATUSES = {"verify": {0, 1, 2}, "check": {0, 1, 2}, "sweep": {0, 1, 2}}

LISTING = "data check"
"""The command that lists the parts of a data set, also where its error then names the first that cannot be used."""


@pytest.fixture(scope="module")
def prepared(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and odd files, to be copied for each call."""
    here = tmp_path_factory.mktemp("prepared") / "world" / "here"
    here.mkdir(parents=True)
    (here.parent / "home").mkdir()
    shutil.copytree(world.run, here / "run")
    shutil.copytree(world.channels.parents[1], here / "channels")
    shutil.copytree(world.run, here / "half")
    (here / "half" / "results.json").unlink()
    (here / "half" / "metrics.csv").write_text("stage,epoch\n")
    (here / "runs").mkdir()
    shutil.copytree(world.run, here / "runs" / "a")
    torch.save(world.foreign, here / "foreign.pt")
    torch.save(world.foreign, here / "é ü.pt")
    np.savez(here / "foreign.npz", x=np.zeros((20, 8, 8, 1), np.uint8), y=np.arange(20) % 10)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (here / "images" / split / label).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), 80 * number).save(here / "images" / split / label / f"{number}.png")
    (here / "tiny.toml").write_bytes((world.run.parent / "hydra.toml").read_bytes())
    (here / "grid.toml").write_text('[[group]]\npresets = ["digits"]\nseeds = [0]\n')
    (here / "text.txt").write_text("a text\n")
    (here / "empty").touch()
    (here / "empty.safetensors").touch()
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    (here / "loop").symlink_to("loop")
    (here / "link").symlink_to("run/ckpt/prune-best.safetensors")
    (here / "broken").symlink_to("nowhere")
    (here / "device").symlink_to("/dev/zero")
    assert not stat.S_ISREG((here / "device").stat().st_mode)
    return here.parent


def complaint(name: str, made: Call, said: box.Said, strays: list[str]) -> str | None:
    """Say what a call did that none may do."""
    if strays:
        return f"changed {strays}"
    if said.cut_short:
        return None
    if said.status not in STATUSES.get(name.split()[0], {0, 2}) or "Traceback" in said.stderr:
        return f"exit status {said.status}"
    if said.status == 2:
        # What was found out on the way, such as a run that is half done, may have been warned of before.
        errors = [line for line in said.stderr.splitlines() if not line.startswith("warning: ")]
        listed = name == LISTING and "part" in said.stdout
        if len(errors) != 1 or not errors[0].startswith("error: ") or (said.stdout and not listed):
            return "not one line"
    asked = said.status == 0 and ("--json", "-") in itertools.pairwise(made.words)
    if asked and not all(map(math.isfinite, numbers(json.loads(said.stdout)))):
        return "a number that is not finite"
    return None


@pytest.mark.parametrize("name", EVERY)
def test_whatever_a_command_is_called_with(name: str, prepared: Path, tmp_path: Path, fault_table: FaultTable) -> None:
    files = [path for path in sorted(prepared.rglob("*")) if path.is_file() and 0 < path.stat().st_size < 99_999]
    good = [path.read_bytes() for path in files]
    number = itertools.count()
    cut: list[Call] = []

    @seed(soak.SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # the calls are short, and shrinking them would take minutes
        print_blob=False,
    )
    @given(calls(name, good))
    def attempt(made: Call) -> None:
        if not soak.time_left():
            return
        shut = tmp_path / str(next(number))
        box.copy(prepared, shut)
        for place, held in made.files.items():
            (shut / "here" / place).write_bytes(held)
        before = box.state(shut / "here")
        said = box.call(made.words, shut)
        strays = box.changed(before, box.state(shut / "here"), written(made.named, shut / "here"))
        shutil.rmtree(shut)
        broke = complaint(name, made, said, strays)
        fault_table.add(f"generated / {name}{', cut short' * said.cut_short}", not broke)
        cut.extend([made] * said.cut_short)
        assert broke is None, f"seed {soak.SEED}: {broke}: {made.words} {said}"

    attempt()
    assert len(cut) <= max(1, EXAMPLES // 10), cut


def test_what_is_generated_is_made_of_what_there_is() -> None:
    assert {"run", "data fetch", "data check", "sharpness"} <= EVERY.keys()
    assert {"data", "network", "evaluation"} <= TINY.keys()
