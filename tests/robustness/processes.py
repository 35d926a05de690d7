"""Runs of seconds in processes of their own, to be killed, starved and resumed, and what must come out of them."""

import atexit
import csv
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from click.testing import CliRunner
from PIL import Image

from s2ap_core.files.tensors import load_tensors
from s2ap_diag.commands import main

# HARP, S2AP with a carried z, AWP in finetuning, a tracker that goes on from its last vectors: everything that a resume
# must bring back.
CONFIG = """
data = {{ name = "imagenet", root = "{root}", options = {{ size = 8, workers = 0 }} }}
network.width = 2
objective = {{ eps = "32/255", step = "32/255", steps = 1 }}
method = {{ name = "harp", keep = 0.3, penalty = 5.0 }}
minimizer = {{ name = "s2ap", gamma = 0.01, warmup = 1, carry = true }}
pretrain = {{ epochs = 2, batch_size = 40 }}
prune = {{ epochs = 3, batch_size = 40 }}
finetune = {{ epochs = 2, batch_size = 40, awp = true }}
evaluation = {{ attack = "pgd-50", n = 16, batch_size = 8 }}
tracking = {{ every = 1, images = 8, iterations = 1 }}
"""
EPOCHS, BATCHES = 2 + 4 + 2, 3 * 2
"""Units of work that are on disk when the run has ended; the search has an epoch 0."""

OWN = {"environment.json", "timing.csv", "run.log"}
"""Files of a run that tell the time or the machine."""

REPOSITORY = Path(__file__).parents[2]


def command(config: Path, run: Path, *options: str) -> list[str]:
    """The arguments of s2ap-diag that begin this run or go on with it."""
    return ["run", str(config), "--out", str(run), "--resume", "--quiet", *options]


def fork(arguments: list[str], said: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Start the command in a copy of this process, which saves the seconds of its imports; its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        sys.stdout = sys.stderr = said.open("a", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare()
        main(arguments)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException as error:
        print(f"defect: {error!r}", file=sys.stderr)
    finally:
        os._exit(status)


def spawn(arguments: list[str], said: Path) -> subprocess.Popen[bytes]:
    """Start the command as a user does."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    with said.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "s2ap_diag", *arguments],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=stream,
            stderr=stream,
        )


def wait(pid: int) -> int:
    """Exit status of a forked child, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(run: Path, units: int, pid: int, timeout: float = 600.0) -> bool:
    """Wait until so much is on disk; False if the process ended before."""
    deadline = time.monotonic() + timeout
    while done(run) < units:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"{run}: {done(run)} of {units} units after {timeout} s")
        time.sleep(0.01)
    return True


def done(run: Path) -> int:
    """Epochs and batches of the evaluations on disk, of ``EPOCHS + BATCHES``."""
    try:
        epochs = len({(row["stage"], row["epoch"]) for row in metrics(run)})
    except FileNotFoundError:
        return 0
    batches = 0
    for file in (run / "evals").glob("*.npz"):
        with np.load(file) as arrays:
            batches += len(arrays["label"]) // 8
    return epochs + batches


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def contents(run: Path) -> dict[str, bytes]:
    """Every file, stray ones too, but those that tell the time or the machine."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files if path.name not in OWN}


def differing(run: Path, whole: Path) -> list[str]:
    """Files that one of two runs lacks or that are not the same bit for bit."""
    ours, theirs = contents(run), contents(whole)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def unreadable(run: Path) -> list[str]:
    """Files under their own names that cannot be read back whole: there must be none at any moment."""
    found = []
    for path in run.rglob("*"):
        if path.name.startswith(".") or path.suffix not in (".safetensors", ".npz"):
            continue
        try:
            if path.suffix == ".npz":
                with np.load(path) as arrays:
                    dict(arrays)
            else:
                load_tensors(path)
        except Exception as error:
            found.append(f"{path}: {error}")
    return found


def finish(config: Path, run: Path) -> None:
    """Go on with a run until it has ended."""
    said = run.with_name(f"{run.name}.said")
    assert wait(fork(command(config, run), said)) == 0, said.read_text()


_numbers = itertools.count()


def new_folder(images: Path | None = None) -> Path:
    """A folder of its own with the config in it."""
    folder = _base() / str(next(_numbers))
    folder.mkdir()
    (folder / "tiny.toml").write_text(CONFIG.format(root=images or all_images()))
    return folder


@cache
def all_images() -> Path:
    """The images of all runs that do not spoil theirs."""
    return draw_images(_base() / "images")


def draw_images(root: Path) -> Path:
    """Four classes of noisy colours, 8x8 pixels, as folders of files: 20 to train on and 6 to test on of each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for label, colour in enumerate(rng.integers(60, 196, (4, 3))):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (colour + rng.normal(0, 20, (8, 8, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return root


@cache
def _base() -> Path:
    base = Path(mkdtemp(prefix="s2ap-faults-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)  # copies of this process leave by os._exit
    return base


@cache
def uninterrupted() -> Path:
    """A run that nothing disturbed; made in this process, whose copies then have all imports behind them."""
    folder = new_folder()
    outcome = CliRunner().invoke(main, command(folder / "tiny.toml", folder / "run"))
    assert outcome.exit_code == 0, outcome.output
    assert done(folder / "run") == EPOCHS + BATCHES
    return folder / "run"
