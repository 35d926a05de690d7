"""One run on two processes against the same run on one, and what happens when a process ends."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from s2ap_core.config import parse_config
from s2ap_core.data import InMemory
from s2ap_core.distributed import batch_norm
from s2ap_core.distributed.share import Share, draw, rows
from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.seeds import generator
from s2ap_diag.commands import main
from s2ap_diag.commands.options.run import command
from s2ap_diag.execution import launch
from tests.core.distributed import distributed_worker as worker
from tests.reading import masks_in

ROOT = Path(__file__).parents[3]
LIMIT = 120  # seconds from the end of a process to the end of the job


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def torchrun(*arguments: str | Path, restarts: int = 0) -> list[str]:
    options = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *map(str, arguments)]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, Any]:
    """The worker's sections in this process."""
    folder = tmp_path_factory.mktemp("one")
    found = {name: section() for name, section in worker.SECTIONS.items()}
    worker.run(folder / "run")
    checkpoint = folder / "run" / "ckpt" / "prune-epoch-002.safetensors"
    return {
        **found,
        "folder": folder,
        "checkpoint": checkpoint,
        "measured": worker.measured(checkpoint, folder / "measured.npz"),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory, one) -> list[dict[str, Any]]:
    """The same in two processes: what each of them found."""
    folder = tmp_path_factory.mktemp("two")
    command = torchrun(Path(worker.__file__), folder, one["checkpoint"])
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [{**torch.load(folder / f"rank-{r}.pt", weights_only=False), "folder": folder} for r in range(2)]


# --- sums and parts ---


def test_one_all_reduce_sums_each_tensor_as_a_loop_does(two):
    (first, sums, items), (second, other_sums, other_items) = (found["sums"] for found in two)
    for a, b, total, other in zip(first, second, sums, other_sums, strict=True):
        torch.testing.assert_close(total, a + b, rtol=0, atol=1e-6)
        assert total.shape == a.shape
        assert total.dtype == a.dtype
        assert torch.equal(total, other)
    assert items == other_items == ["0", "1", "2", "3", "4"]


def test_an_input_error_of_the_first_process_is_one_of_all(two):
    assert [found["refused"] for found in two] == ["only the first asks"] * 2


@pytest.mark.parametrize(("count", "world"), [(1, 2), (5, 2), (7, 3), (8, 4)])
def test_shares_make_up_the_batch_and_its_first_images(count, world):
    shares = [Share(count, rank, world) for rank in range(world)]
    held = [list(range(count))[share.rank :: share.world] for share in shares]
    for n in range(1, count + 1):
        ours = [images[: share.first(n)] for share, images in zip(shares, held, strict=True)]
        assert sorted(i for images in ours for i in images) == list(range(n))
        # The mean over the first n of i², from its terms.
        terms = [
            share.of_mean(torch.tensor([float(i**2) for i in images]).mean(), n)
            for share, images in zip(shares, ours, strict=True)
        ]
        assert sum(terms).item() == pytest.approx(np.mean(np.arange(n) ** 2))


@pytest.mark.parametrize("sample", [torch.rand, torch.randn])
def test_noise_is_that_of_the_whole_batch(sample):
    x = torch.zeros(7, 1, 4, 4)
    whole = draw(sample, x, generator("cpu", 0, "noise"))
    assert torch.equal(whole, sample(x.shape, generator=generator("cpu", 0, "noise")))
    for rank in range(3):
        share = Share(7, rank, 3)
        own = draw(sample, x[rank::3], share.generator("cpu", 0, "noise"))
        assert torch.equal(own, whole[rank::3])


def test_a_part_of_each_batch_is_augmented_as_in_the_whole():
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 8, 8), dtype=np.uint8)
    data = InMemory("noise", 7, {"train": (images, np.arange(7))}, pad=2, flip=True)
    whole = list(data.batches("train", 3, shuffle=1, augment=True))
    for rank in range(3):
        own = data.batches("train", 3, shuffle=1, augment=True, part=lambda b, rank=rank: [i[rank::3] for i in b])
        for part, batch in zip(own, whole, strict=True):
            assert all(torch.equal(mine, all_of_it[rank::3]) for mine, all_of_it in zip(part, batch, strict=True))
    assert [len(part.y) for part in data.batches("train", 3, part=rows)] == [3, 3, 1]


# --- BatchNorm ---

CLASSES = {(): nn.BatchNorm1d, (4,): nn.BatchNorm1d, (4, 3): nn.BatchNorm2d, (4, 3, 2): nn.BatchNorm3d}


@pytest.mark.parametrize("pixels", CLASSES)
def test_batch_norm_of_every_dimension_is_synced(pixels, monkeypatch):
    monkeypatch.setattr(batch_norm, "world", lambda: 2)
    monkeypatch.setattr(batch_norm.dist, "all_reduce", lambda tensor: tensor.mul_(2))  # the other has the same images
    norm, plain = CLASSES[pixels](3).double(), CLASSES[pixels](3).double()
    x = torch.randn(5, 3, *pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with batch_norm.batch_statistics(nn.Sequential(norm), "sync"):
        torch.testing.assert_close(norm(x), plain(torch.cat([x, x]))[:5])
    torch.testing.assert_close(norm.running_var, plain.running_var)
    assert type(norm) is type(plain)
    with monkeypatch.context() as patch:
        patch.setattr(batch_norm, "add_up", lambda tensors: [2 * t for t in tensors])
        with batch_norm.batch_statistics(nn.Sequential(norm), "local"):
            assert type(norm) is not type(plain)


class OwnNorm(nn.BatchNorm2d):
    pass


def test_batch_norm_of_a_class_of_its_own_needs_one_process(monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), OwnNorm(2))
    with batch_norm.batch_statistics(model, "sync"):
        pass
    monkeypatch.setattr(batch_norm, "world", lambda: 2)
    with (
        pytest.raises(InputError, match=r"^1: OwnNorm is .* or run one process"),
        batch_norm.batch_statistics(model, "sync"),
    ):
        pass


@pytest.mark.parametrize("count", [7, 1])
def test_synced_batch_norm_is_batch_norm_of_the_whole_batch(two, count):
    torch.set_default_dtype(torch.float64)
    try:
        norm = nn.BatchNorm2d(3, momentum=0.3)
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(2))
        whole = 5 + 3 * torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(3))
        expected = worker.normalised(norm, whole, slice(None))
    finally:
        torch.set_default_dtype(torch.float32)
    for rank, found in enumerate(two):
        ours, inside = found["batch_norm"][count]
        for name, tensor in expected.items():
            wanted = tensor[rank::2] if name in ("out", "x", "xx") else tensor
            torch.testing.assert_close(ours[name], wanted, rtol=1e-9, atol=1e-9)
        # To the rest of the code it is what it was.
        assert inside == (True, ["0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"])


# --- iterations and searches ---


def test_unequal_parts_take_the_step_of_the_whole_batch(one, two):
    for case, expected in one["iterations"].items():
        for found in two:
            for ours, wanted in zip(found["iterations"][case], expected, strict=True):
                torch.testing.assert_close(ours, wanted, rtol=1e-7, atol=1e-9)


def test_a_process_without_an_image_neither_waits_nor_spoils_the_gradient(two):
    first, second = (found["lone_image"] for found in two)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()
    assert sum(float(a.abs().sum()) for a in first[1:]) > 0


def disagreement(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    return sum(int((ours[k] != m).sum()) for k, m in theirs.items()) / sum(m.numel() for m in theirs.values())


def test_masks_do_not_depend_on_the_number_of_processes(one, two):
    for found in two:
        ours, theirs = ({k: m for k, m in f["float64"].items() if k != "validation"} for f in (found, one))
        assert disagreement(ours, theirs) == 0
        ours, theirs = ({k: m for k, m in f["float32"].items() if k != "validation"} for f in (found, one))
        # Rounding alone: parts of a batch take other convolutions, and which ones is the processor's affair; folding
        # BatchNorm into those of the attack adds to it.
        assert disagreement(ours, theirs) <= 0.01
    torch.testing.assert_close(two[0]["float64"]["validation"], one["float64"]["validation"], rtol=1e-9, atol=1e-9)


def test_what_an_epoch_offers_has_the_statistics_of_all_images(one, two):
    for found in two:
        assert len(found["candidate"]) == len(one["candidate"])
        for ours, wanted in zip(found["candidate"], one["candidate"], strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


# --- diagnostics and evaluation ---


def test_sharpness_is_that_of_one_process(one, two):
    for found in two:
        for ours, theirs in zip(found["measured"][0], one["measured"][0], strict=True):
            for name in ("lambda_max", "lambda_max_live", "dominant_eigenvalue", "dead_share"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
            for name in ("lambda_max_std", "lambda_max_standard_error", "lambda_max_live_standard_error", "residual"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-2)
            assert ours["dead_channels"] == theirs["dead_channels"] > 0
            assert ours["hvps"] == theirs["hvps"]
            assert ours["batches"] == theirs["batches"] == 3
            ours, theirs = ours["loss_difference"]["0.01"], theirs["loss_difference"]["0.01"]
            assert ours["mean"] == pytest.approx(theirs["mean"], rel=1e-5)
            assert ours["flips"] == theirs["flips"]


def test_evaluation_is_that_of_one_process(one, two):
    expected = one["measured"][1]
    saved = np.load(two[0]["folder"] / "measured.npz")
    for found in two:
        for name in ("index", "label", "clean", "robust", "noise", "zero_gradient"):
            assert np.array_equal(getattr(found["measured"][1], name), getattr(expected, name))
            assert np.array_equal(saved[name], getattr(expected, name))


# --- a whole run ---


def test_all_stages_leave_the_files_of_one_process(one, two):
    ours, theirs = two[0]["folder"] / "run", one["folder"] / "run"
    files = [sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file()) for run in (ours, theirs)]
    assert files[0] == files[1]
    rows = [
        [line.rsplit(",", 1)[0] for line in (run / "metrics.csv").read_text().splitlines()] for run in (ours, theirs)
    ]
    assert rows[0] == rows[1]
    assert any("lambda_max_batch" in row for row in rows[0])
    assert json.loads((ours / "environment.json").read_text())["processes"] == 2
    finetuned = load_checkpoint(ours / "ckpt" / "finetune-best.safetensors")
    assert all(tensor.isfinite().all() for tensor in finetuned.model.state_dict().values())
    assert len(np.load(ours / "evals" / "finetune.npz")["label"]) == worker.RUN["evaluation"]["n"]


# --- when a process ends ---


def config_file(folder: Path, **changed: Any) -> Path:
    file = folder / "config.toml"
    file.write_text(parse_config({**worker.RUN, **changed}, "test").to_toml())
    return file


@contextmanager
def killed(command: list[str], when: Path, launcher: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and kill the second of its two processes, or what started them, once the file is there."""
    job = start(command)
    workers: list[psutil.Process] = []
    try:
        ours = psutil.Process(job.pid)
        deadline = time.monotonic() + 600
        while not when.exists():
            assert job.poll() is None, job.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = [p for p in ours.children() if "RANK" in p.environ()]
        (second,) = (p for p in workers if p.environ()["RANK"] == "1")
        (job if launcher else second).kill()
        yield job
    finally:
        for process in [*psutil.Process(job.pid).children(recursive=True)] if job.poll() is None else workers:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        job.kill()


def test_a_killed_process_ends_the_job_with_one_line(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "s2ap_diag", "run", str(config_file(tmp_path)), "--out", str(out), "--nproc", "2"]
    with killed(command, when=out / "ckpt" / "state-pretrain.safetensors") as job:
        _, errors = job.communicate(timeout=LIMIT)
    assert job.returncode == 1
    assert "process 1 of 2 ended by SIGKILL; the run continues with --resume" in errors
    assert "Traceback" not in errors


def test_a_killed_launcher_takes_its_processes_along(tmp_path):
    out = tmp_path / "run"
    file = config_file(tmp_path, prune={"epochs": 5000, "batch_size": 400})
    command = [sys.executable, "-m", "s2ap_diag", "run", str(file), "--out", str(out), "--nproc", "2"]
    with killed(command, when=out / "masks" / "epoch-001.safetensors", launcher=True) as job:
        job.communicate(timeout=LIMIT)  # what it writes to is open as long as they live
    with lock.hold(out):
        pass


def test_the_process_that_was_killed_is_named_whichever_torchrun_sees_first(monkeypatch, capsys):
    """Of two that end within one look of torchrun, the survivor may come first: it misses the other."""
    missing, killed = (ProcessFailure(rank, 100 + rank, status, "") for rank, status in ((0, 1), (1, -9)))
    missing.timestamp = killed.timestamp = 1

    def launcher(*_):
        def ends(*_):
            raise ChildFailedError("run", {0: missing, 1: killed})

        return ends

    monkeypatch.setattr(launch, "elastic_launch", launcher)
    monkeypatch.setattr("logging.disable", lambda level: None)  # what is the launcher's process, here is all tests'
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(SystemExit, match="1"):
        launch.launch(["run"], 2, "run")
    assert capsys.readouterr().err == "error: process 1 of 2 ended by SIGKILL; the run continues with --resume\n"


def test_torchrun_restarts_a_run_where_it_stopped(tmp_path, two):
    out = tmp_path / "run"
    command = torchrun("-m", "s2ap_diag", "run", config_file(tmp_path), "--out", out, restarts=1)
    with killed(command, when=out / "masks" / "epoch-001.safetensors") as job:
        output, errors = job.communicate(timeout=100)
    assert job.returncode == 0, errors[-3000:]
    assert output.count("finetune") == 1  # one table
    assert (out / "metrics.csv").read_bytes() == (two[0]["folder"] / "run" / "metrics.csv").read_bytes()
    for epoch in range(3):
        ours, theirs = (
            masks_in(run / "masks" / f"epoch-{epoch:03d}.safetensors") for run in (out, two[0]["folder"] / "run")
        )
        assert all(np.array_equal(ours[name], theirs[name]) for name in {**ours, **theirs})


def test_what_cannot_be_used_is_told_once(tmp_path):
    out = tmp_path / "run"
    file = config_file(tmp_path, data={"name": "cifar10", "root": str(tmp_path / "nowhere")})
    command = [sys.executable, "-m", "s2ap_diag", "run", str(file), "--out", str(out), "--nproc", "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "nowhere: no such folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not out.exists()


def test_each_process_gets_the_command_line(monkeypatch):
    launched = []
    monkeypatch.setattr("s2ap_diag.commands.run.launch", lambda *given: launched.append(given))
    given = ["digits", "--set", "method.keep=0.2", "--set", "objective.steps=2", "--out", "there", "--quiet"]
    found = CliRunner().invoke(main, ["run", *given, "--nproc", "3", "--seed", "4"])
    assert found.exit_code == 0, found.output
    ((arguments, processes, _),) = launched
    assert processes == 3
    assert "--nproc" not in arguments
    # Parsed again, it gives the same parameters.
    ours, theirs = (command.make_context("run", list(line)).params for line in (arguments[1:], [*given, "--seed", "4"]))
    assert arguments[0] == "run"
    assert ours == theirs
