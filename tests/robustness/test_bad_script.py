"""Bad files through the installed script, within time and memory; and how many cases were tried."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import pytest
from bad_world import CONFIG, World
from contract import LARGEST, LONGEST, snapshot

from s2ap_core.files.tensors import load_tensors, save_tensors

pytestmark = pytest.mark.usefixtures("tiny_network", "prototypes_registered")


# --- the installed script ---
def processes(world: World, folder: Path) -> Iterator[tuple[str, list[Any]]]:
    """Twenty bad files and the arguments that read them."""

    def put(name: str, held: bytes) -> Path:
        (folder / name).write_bytes(held)
        return folder / name

    data = world.checkpoint.read_bytes()
    torches = dict(mutate.torch_faults(world.foreign))
    declared = dict(mutate.safetensors_faults(data))
    npz = dict(mutate.npz_faults(mutate.zipped({"a.npy": mutate.array_bytes(np.ones(3, bool))})))
    toml = dict(mutate.toml_faults(CONFIG))
    wide = {**world.header, "network": {**world.header["network"], "name": "resnet18", "width": 10**5}}
    save_tensors(folder / "wide.safetensors", world.tensors, wide)
    packed, header = load_tensors(world.mask)
    name = next(iter(packed))
    save_tensors(folder / "huge.safetensors", packed, {**header, "shapes": {**header["shapes"], name: [2**40]}})
    foreign = ["--keep", 0.3, "--network", "resnet18", "--dataset", "digits"]
    long_bytes = b"\x80\4\x8e" + bytes(5) + b"\2\0\0."
    yield "truncation", ["inspect", put("cut.safetensors", data[:1000])]
    yield "bit flip", ["verify", put("flipped.safetensors", data[:-1] + bytes([data[-1] ^ 1]))]
    yield "terabytes", ["sharpness", put("terabytes.safetensors", declared["terabytes"])]
    yield "nested", ["inspect", put("nested.safetensors", declared["metadata nested"])]
    yield "wide network", ["inspect", folder / "wide.safetensors"]
    yield "wide network", ["evaluate", folder / "wide.safetensors", "--n", 4]
    yield "huge mask", ["hamming", folder / "huge.safetensors", world.mask]
    yield "bomb", ["inspect", put("bomb.pt", torches["bomb of a storage"]), *foreign]
    yield "repeated", ["inspect", put("repeated.pt", torches["repeated a billion times"]), *foreign]
    yield "sparse", ["verify", put("sparse.pt", torches["sparse of terabytes"]), *foreign]
    yield "nested", ["inspect", put("nested.pt", torches["pickle nested"]), *foreign]
    yield "bomb", ["hamming", put("bomb.npz", npz["bomb of zeros"]), put("b.npz", npz["bomb no array"])]
    yield "huge array", ["hamming", put("a.npy", dict(mutate.npy_faults())[f"<f8 ({2**40},)"]), folder / "a.npy"]
    yield "png", ["inspect", put("picture.safetensors", mutate.PNG)]
    yield "toml", ["hamming", put("config.npz", mutate.FORMATS["toml"]), folder / "config.npz"]
    yield "config", ["run", put("deep.toml", toml["deep array"]), "--out", folder / "out"]
    yield "config", ["run", put("eps.toml", toml["eps of a billion digits"]), "--out", folder / "out"]
    yield "bomb", ["data", "check", "svhn", "--quiet", "--root", put("train_32x32.mat", mutate.mat_bomb()).parent]
    yield (
        "long bytes",
        ["data", "check", "cifar10", "--quiet", "--root", put("data_batch_1", long_bytes).parent],
    )
    yield "circle", ["inspect", folder / "circle.pt"]


LIMIT = 8 << 30
"""Bytes of address space of a process; torch's libraries map some of them."""


FORKED = """
import json, os, resource, runpy, sys, traceback
import importlib, scipy.io, sklearn.model_selection
for name in ("inspect", "verify", "sharpness", "hamming", "evaluate", "run", "data"):
    importlib.import_module(f"s2ap_diag.commands.{name}")
for line in sys.stdin:
    arguments, folder = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate(("stdout", "stderr"), 1):
            os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
        sys.argv, status = ["s2ap-diag", *arguments], 1
        try:
            runpy.run_module("s2ap_diag", run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status, usage = os.wait4(child, 0)
    ended = [os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime]
    print(json.dumps([*ended, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]), flush=True)
"""


@pytest.mark.slow
def test_twenty_bad_files_through_the_installed_script(fault_table: Any, world: World, folder: Path) -> None:
    """Two of them by starting it; the others share the imports, and each has a process of its own all the same."""
    (folder / "circle.pt").symlink_to(folder / "circle.pt")
    faults = list(processes(world, folder))
    before, out = snapshot(folder), folder.with_name("said")
    out.mkdir()
    broken = []

    def judge(kind: str, arguments: list[Any], status: int, stdout: str, stderr: str) -> None:
        survived = status == 2 and len(stderr.splitlines()) == 1 and stderr.startswith("error: ") and not stdout
        fault_table.add(f"{kind} / installed script", survived)
        if not survived:
            broken.append((arguments, status, stderr[-800:]))

    for kind, arguments in faults[:2]:
        command = [sys.executable, "-m", "s2ap_diag", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        judge(kind, arguments, ended.returncode, ended.stdout, ended.stderr)
    program = [sys.executable, "-c", FORKED, str(LIMIT)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin
        assert server.stdout
        for kind, arguments in faults[2:]:
            server.stdin.write(json.dumps([list(map(str, arguments)), str(out)]) + "\n")
            server.stdin.flush()
            status, largest, seconds, shared = json.loads(server.stdout.readline())
            judge(kind, arguments, status, (out / "stdout").read_text(), (out / "stderr").read_text())
            assert seconds < LONGEST, (arguments, seconds)
            assert largest - shared < LARGEST, (arguments, largest)
    assert len(faults) == 20
    assert not broken, broken
    assert snapshot(folder) == before


def test_at_least_five_hundred_cases_were_tried(fault_table: Any, request: pytest.FixtureRequest) -> None:
    parts = {file.name for file in Path(__file__).parent.glob("test_bad_*.py")}
    selected = request.config.option.keyword or any("::" in argument for argument in request.config.args)
    if selected or "PYTEST_XDIST_WORKER" in os.environ or parts - {item.path.name for item in request.session.items}:
        pytest.skip("only a part of the bad files was tried")
    assert fault_table.tried() >= 500
