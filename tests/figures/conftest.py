"""Runs of seconds in the paper's settings, and all tables and figures of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import load_checkpoint
from s2ap_core.training.evaluation import load_evaluation
from s2ap_core.training.stages import Stages
from s2ap_diag.curvature.eigen import Lanczos
from s2ap_diag.curvature.tracking import build_trackers
from s2ap_diag.sharpness import SharpnessSettings, measure_sharpness
from tests.figures.rendering import invoke
from tests.tiny import Tiny

ARMS = {"orig": {"minimizer": {"name": "none"}}, "s2ap": {"minimizer": {"name": "s2ap"}, "finetune": {"awp": True}}}
SMALL = SharpnessSettings(images=16, batch_size=16, steps=2, solver=Lanczos(iterations=1), rho=(0.0025, 0.01))


@pytest.fixture(scope="session")
def made(tmp_path_factory, new_run, data):
    """HARP and HYDRA, both arms, two seeds, as CIFAR-10's ResNet-18 at 90 % sparsity. Not to be written to.

    So that the arms differ after three epochs, the perturbation is large; the configs then say the paper's gamma.
    Which images hold against the attack is drawn: networks as small as these fail on all of them on some machines.
    """
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "resnet18", Tiny)
        for method in ("harp", "hydra"):
            for arm, changes in ARMS.items():
                for seed in (0, 1):
                    run = new_run(
                        folder / f"{method}-{arm}-{seed}",
                        seed=seed,
                        data={"name": "cifar10"},
                        network={"name": "resnet18", "width": 16},
                        method={"name": method, "keep": 0.1, "penalty": 5.0},
                        minimizer={"gamma": 1.0, "warmup": 1, **changes["minimizer"]},
                        pretrain={"epochs": 4},
                        finetune={"epochs": 1, **changes.get("finetune", {})},
                        evaluation={"n": 30, "batch_size": 30},
                        # One product may find a negative value, which has no logarithm; four do not.
                        tracking={"every": 1, "iterations": 4, "images": 8},
                    )
                    Stages(run, data, callbacks=build_trackers(run.config.tracking)).all()
                    for stage in ("prune", "finetune"):  # the dense network is the same in all arms
                        file = run.path / f"evals/{stage}.npz"
                        kept = dict(np.load(file))
                        kept["robust"] = kept["clean"] & (rng.random(len(kept["clean"])) < 0.5)
                        np.savez(file, **kept)
                        run.add_results(**{f"evaluate-{stage}": load_evaluation(file).summary()})
                    config = run.path / "config.toml"
                    config.write_text(config.read_text().replace("gamma = 1.0", "gamma = 0.001"))
                    checkpoint = load_checkpoint(run.checkpoint("prune-best"))
                    found = measure_sharpness(checkpoint, data, run.config.objective, SMALL)
                    (run.path / "sharpness.json").write_text(json.dumps([found.record()]))
    return folder


@pytest.fixture
def runs(made, tmp_path):
    """A copy of the runs that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.fixture(scope="session")
def rendered(made, tmp_path_factory):
    """All thirty and the claims, from the command line."""
    out = tmp_path_factory.mktemp("rendered")
    result = invoke("--runs", made, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def one_seed(runs):
    for run in runs.glob("*-1"):
        shutil.rmtree(run)
    return runs
