"""What a command imports before it is called: nothing that takes seconds."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from s2ap_core.files.tensors import save_masks
from s2ap_diag.commands import COMMANDS

HEAVY = ("torch", "numpy", "pandas", "matplotlib", "seaborn", "scipy", "sklearn", "ray", "pydantic", "rich")

HELP = """
import sys
from s2ap_diag.commands import main
heavy = sys.argv[1].split()
for line in sys.stdin:
    try:
        main([*line.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0, line
    imported = [name for name in heavy if name in sys.modules]
    assert not imported, (line, imported)
"""


def test_help_of_every_command_imports_nothing_heavy():
    calls = ["", *COMMANDS, "data fetch", "data check"]
    done = subprocess.run(
        [sys.executable, "-c", HELP, " ".join(HEAVY)],
        input="\n".join(calls),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(calls)


@pytest.mark.parametrize("package", ["s2ap_diag", "s2ap_core"])
def test_importing_a_package_imports_nothing_heavy(package):
    code = f"import sys, {package}; sys.exit(', '.join(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.strip() == ""


CALL = """
import sys
from s2ap_diag.commands import main
try:
    main(sys.argv[2:])
finally:
    print(*[name for name in sys.argv[1].split() if name in sys.modules], sep=", ", file=sys.stderr)
"""


@pytest.mark.parametrize("kind", ["ours", "npz"])
def test_hamming_of_mask_files_imports_no_torch(tmp_path, kind):
    rng = np.random.default_rng(0)
    layers = [{"a.weight": rng.random((8, 9)) < 0.3, "b.weight": rng.random(5) < 0.5} for _ in range(3)]
    for epoch, masks in enumerate(layers):
        if kind == "ours":
            tensors = {name: torch.from_numpy(mask) for name, mask in masks.items()}
            save_masks(tmp_path / "masks" / f"epoch-{epoch}.safetensors", tensors, {"epoch": epoch, "seed": 0})
        else:
            (tmp_path / "masks").mkdir(exist_ok=True)
            np.savez(tmp_path / "masks" / f"epoch-{epoch}.npz", **masks)
    heavy = " ".join({*HEAVY} - {"numpy", "rich"})
    arguments = ["hamming", str(tmp_path / "masks"), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        [sys.executable, "-c", CALL, heavy, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
    flipped = [sum(int((mask != layers[0][name]).sum()) for name, mask in masks.items()) for masks in layers[1:]]
    assert [record["flipped"] for record in json.loads((tmp_path / "found.json").read_text())] == flipped


CURVATURE = """
import sys, torch, torch.nn.functional as F
from s2ap_core.masks.masking import attach
from s2ap_core.models import build
from s2ap_diag.curvature.eigen import Lanczos, lambda_max
from s2ap_diag.curvature.hessian import ScoreHessian
model = attach(build("resnet18", width=2, input_size=8, input_channels=1), 0.5)
batches = [(torch.rand(4, 1, 8, 8), torch.arange(4)) for _ in range(2)]
with ScoreHessian(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), batches) as hessian:
    assert lambda_max(hessian, Lanczos(iterations=40)).converged
assert "torch._dynamo" not in sys.modules, "takes a second to import"
"""


def test_products_with_the_hessian_import_no_compiler():
    done = subprocess.run([sys.executable, "-c", CURVATURE], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
