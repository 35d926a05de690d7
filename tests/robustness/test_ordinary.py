"""Ordinary input that used to end in a traceback: one line and exit status 2, or simply an answer."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bad_world import Attempt, World
from torch import nn

from s2ap_core.config import Config
from s2ap_core.errors import printable
from s2ap_diag.sweep.grid import PlannedRun
from s2ap_diag.sweep.plan import plan
from s2ap_diag.sweep.schedule import STATUS, Schedule
from s2ap_diag.sweep.tasks import Workplace

DEEP, LONG = "[" * 5000 + "]" * 5000, "1" * 5000
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("url", "said"), [("s3://b/x", "[remote]"), ("gs://b/x", "[remote]"), ("abc://b/x", "abc")])
def test_a_url_that_nothing_here_reads(attempt: Attempt, url: str, said: str) -> None:
    calls = [["sweep", "claims", "--dry-run", "--runs", url], ["sweep", "--status", "--runs", url]]
    for call in calls:
        found = attempt("url", call)
        assert found.status == 2 or url.startswith(("s3", "gs"))  # with the packages installed it may be read
        assert found.status == 0 or said in found.stderr


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"tasks": 1}',
        "3",
        '{"tasks": [{}], "left": null, "working": true, "updated": 0}',
        "[" * 99999,
        LONG,
    ],
)
def test_a_status_of_another_shape(attempt: Attempt, tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS).write_text(text)
    found = attempt("status", ["sweep", "--status", "--runs", tmp_path], untouched=tmp_path)
    assert found.status == 2
    assert "not the state of a sweep" in found.stderr


@pytest.mark.parametrize("value", [DEEP, LONG], ids=["deep", "long"])
def test_values_that_are_too_deep_or_too_long(attempt: Attempt, tmp_path: Path, value: str) -> None:
    file = tmp_path / "file.toml"
    file.write_text(f"seed = {value}")
    for call in (["run", file], ["estimate", file], ["sweep", file], ["run", "digits", "--set", f"seed={value}"]):
        assert attempt("toml", [*call, "--quiet"], untouched=tmp_path).status == 2


@pytest.mark.parametrize(
    "setting",
    [
        f"pretrain.batch_size={10**20}",
        "pretrain.weight_decay=1e308",
        f"prune.epochs={10**15}",
        "objective.beta=1e39",
        f"data.options.val={10**20}",
        "pretrain.checkpoint=a\udcff",
    ],
)
def test_settings_that_nothing_can_compute_with(attempt: Attempt, tmp_path: Path, setting: str) -> None:
    call = ["run", "digits", "--scale", "digits", "--quiet", "--out", tmp_path / "run", "--set", setting]
    found = attempt("setting", call, untouched=tmp_path)
    assert found.status == 2
    assert setting.partition("=")[0].removesuffix(".val") in found.stderr


def test_a_batch_beyond_64_bits_is_all_images(attempt: Attempt, world: World) -> None:
    measured = []
    for size in (100, 10**20):
        call = ["sharpness", world.checkpoint, "--images", 16, "--rho", 0.01, "--batch-size", size]
        (found,) = attempt("batch size", [*call, "--json", "-", "--quiet"]).records()
        measured.append((found["lambda_max"], found["batches"], found["loss_difference"]))
    assert measured[0] == measured[1]


def test_masks_saved_as_parameters_are_masks(attempt: Attempt, tmp_path: Path) -> None:
    for number in range(2):
        mask = nn.Parameter((torch.arange(36.0).view(4, 1, 3, 3) % (number + 2) == 0).float())
        torch.save({"conv1.weight": mask}, tmp_path / f"{number}.pt")
    found = attempt("parameters", ["hamming", tmp_path, "--json", "-", "--quiet"])
    assert found.status == 0
    assert found.records()[-1]["flipped"] == 18  # 12 are even and no multiples of three, 6 the reverse


def test_a_tensor_of_four_bit_numbers(attempt: Attempt, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    header += b" " * (-len(header) % 8)
    (tmp_path / "four.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    for command in ("inspect", "hamming", "verify"):
        assert "no plain tensor" in attempt("four bits", [command, tmp_path], untouched=tmp_path).stderr


def test_a_circle_of_links(attempt: Attempt, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for call in (
        ["run", "digits", "--scale", "digits", "--quiet", "--out", loop],
        ["run", "--resume", "--out", loop],
        ["inspect", loop],
        ["sweep", "--status", "--runs", loop],
    ):
        assert attempt("links", call, untouched=tmp_path).status == 2


def test_another_format_is_refused(attempt: Attempt, world: World) -> None:
    file = world.run / "environment.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"format": 99}))
    for call in (["run", "--resume", "--out", world.run], ["check", world.run]):
        found = attempt("format", [*call, "--quiet"], untouched=world.run)
        assert found.status == 2 or "of format 99" in found.stderr
    file.write_text(before)


def test_a_task_that_never_began_names_the_log_that_exists(tmp_path: Path) -> None:
    runs = [PlannedRun(name, Config(minimizer={"name": name}), None) for name in ("none", "s2ap")]
    schedule = Schedule(plan(runs), Workplace(str(tmp_path)), 1)
    first = schedule.tasks[0]
    schedule._set(first.name, "failed", "no memory")
    schedule._ready()
    (after,) = {status.log for status in schedule.failed}
    assert after == f"logs/{first.name.replace('/', '-')}.log"


def test_what_a_terminal_would_take_for_commands_is_shown_escaped(tmp_path: Path) -> None:
    name = "a\x1b[2Jb\x07\udcff.pt"
    assert printable(name) == r"a\x1b[2Jb\x07\udcff.pt"
    torch.save({"conv1.weight": torch.ones(2, 1, 3, 3)}, tmp_path / name)
    done = called(["hamming", str(tmp_path / name), str(tmp_path / name), "--csv", str(tmp_path / "x.csv")])
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    done = called(["inspect", str(tmp_path / name)])
    assert done.returncode == 2
    assert rb"a\x1b[2Jb\x07\udcff.pt: " in done.stderr


def called(arguments: list[str], **options: object) -> "subprocess.CompletedProcess[bytes]":
    """A command in a process of its own."""
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, **options)  # type: ignore[call-overload]


def test_closed_streams_and_a_terminal_of_ascii() -> None:
    listed = f"exec {sys.executable} {ROOT / 'cli.py'} run --list >&-"
    done = subprocess.run(["sh", "-c", listed], capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    asked = f"exec {sys.executable} {ROOT / 'cli.py'} data check digits --json - >&-"
    done = subprocess.run(["sh", "-c", asked], capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: --json -: standard output is closed, where the results would go; name a file\n"
    done = called(["inspect", "é\u2013.pt"], env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
