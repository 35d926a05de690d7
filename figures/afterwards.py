"""What is measured of a run once it has ended: sharpness, and accuracy on corrupted images."""

from collections.abc import Iterator

import numpy as np

from s2ap_core.data.cifar10c import CORRUPTIONS
from s2ap_core.errors import InputError
from s2ap_core.training.evaluation import Evaluation, load_evaluation
from s2ap_diag.reading.results import SHARPNESS, Run


def loss_differences(run: Run) -> dict[float, float]:
    """Read the mean loss difference by rho.

    Raises:
        InputError: if the record is damaged.
    """
    try:
        return {
            float(rho): float(difference["mean"])
            for rho, difference in (run.sharpness or {})["loss_difference"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{run.path / SHARPNESS}: no loss differences by rho; measure it again") from error


def corrupted(run: Run) -> Iterator[Evaluation]:
    """Read the evaluations of the finetuned network on CIFAR-10-C that lie beside the run's own.

    Raises:
        InputError: if one is damaged.
    """
    for file in sorted((run.path / "evals").glob("finetune-best-*.npz")):
        evaluation = load_evaluation(file)
        if evaluation.about.get("corruption") is not None and evaluation.about.get("attack") == "none":
            yield evaluation


def corruption_accuracy(run: Run, severity: int) -> float | None:
    """Compute the mean accuracy over the fifteen corruptions in [0, 1], None unless all of them were evaluated."""
    accuracies = {e.about["corruption"]: e.clean.mean() for e in corrupted(run) if e.about.get("severity") == severity}
    return float(np.mean([accuracies[name] for name in CORRUPTIONS])) if accuracies.keys() >= set(CORRUPTIONS) else None
