"""``python -m benchmarks.behaviour``: checksums of what three small runs give, to compare two versions of the code.

A change that is to change nothing prints the same lines before and after, on one machine.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SHORT = (
    "network.width=8",
    "pretrain.epochs=2",
    "prune.epochs=3",
    "finetune.epochs=1",
    "evaluation.attack=pgd-50",
    "evaluation.n=100",
    "tracking.every=5",
    "tracking.iterations=3",
)

S2AP = ("minimizer.name=s2ap", "minimizer.warmup=1")

RUNS = {
    "hydra": ("method.name=hydra", "method.keep=0.1"),
    "harp-s2ap": ("method.name=harp", "method.keep=0.2", "method.penalty=0.2", *S2AP),
    "hydra-channels": ("method.name=hydra-channels", "method.flops_reduction=2", *S2AP),
}


def main() -> None:
    """Make the runs on one thread each, and print a checksum for each of their results."""
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in RUNS.items():
            run = Path(folder) / name
            options = [part for setting in (*SHORT, *settings) for part in ("--set", setting)]
            command = [sys.executable, "-m", "s2ap_diag", "run", "digits", *options, "--out", str(run), "--quiet"]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            for file in [*sorted((run / "masks").iterdir()), run / "metrics.csv", run / "results.json"]:
                print(hashlib.sha256(file.read_bytes()).hexdigest()[:16], file.relative_to(folder).as_posix())


if __name__ == "__main__":
    main()
