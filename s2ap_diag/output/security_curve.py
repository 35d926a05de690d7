"""Robust accuracy against the attack's radius: an attack that works brings it to zero at a radius that is large enough.

Where it does not, gradients are masked or the attack is too weak (Carlini et al. 2019, "On Evaluating Adversarial
Robustness").
"""

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]
"""Summaries of evaluations, as :meth:`s2ap_core.training.evaluation.Evaluation.summary` gives them."""


def curves(records: Records) -> dict[str, list[dict[str, Any]]]:
    """Order records by radius: a curve for each checkpoint, or corruption of one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(" ".join(filter(None, (record["checkpoint"], record.get("corruption")))), []).append(record)
    return {name: sorted(points, key=lambda point: Fraction(point["eps"])) for name, points in found.items()}


def warn(records: Records) -> None:
    """Warn of each curve that does not fall to zero at its largest radius."""
    for name, points in curves(records).items():
        last = points[-1]
        if last["robust_accuracy"] > 0:
            log.warning(
                "%s: at the largest eps = %s the robust accuracy is still %.1f%%: add a larger --eps; an accuracy that "
                "no radius brings to zero comes from masked gradients or too weak an attack: try --attack autoattack",
                name, last["eps"], 100 * last["robust_accuracy"],
            )  # fmt: skip


def draw(records: Records, file: Path) -> None:
    """Draw robust accuracy against eps, from the clean accuracy at 0 on; a band of the 95 % Wilson intervals."""
    from s2ap_diag.output import plots  # takes longer to import than a small evaluation, which may want no picture

    first = records[0]
    with plots.picture(file, plots.COLUMN, 2.6) as axes:
        for index, (name, points) in enumerate(curves(records).items()):
            radii = [0.0] + [float(Fraction(point["eps"])) for point in points]
            accuracies = [points[0]["clean_accuracy"]] + [point["robust_accuracy"] for point in points]
            unknown = (np.nan, np.nan)  # of a mean over corruptions
            spans = [points[0].get("clean_interval", unknown)] + [p.get("robust_interval", unknown) for p in points]
            look = plots.look(index)
            axes.plot(radii, 100 * np.array(accuracies), label="/".join(Path(name).parts[-3:]), **look)
            axes.fill_between(radii, *100 * np.array(spans).T, color=look["color"], alpha=0.2, linewidth=0)
        axes.set_xlabel(f"eps ({' and '.join(dict.fromkeys(record['norm'] for record in records))}, {first['attack']})")
        axes.set_ylabel("robust accuracy (%)")
        axes.set_ylim(bottom=0)
        axes.legend()
