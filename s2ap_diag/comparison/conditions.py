"""What a reviewer asks of finished runs: one small function each, in :data:`CONDITIONS`."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from s2ap_core.errors import InputError
from s2ap_core.runs import course
from s2ap_core.runs.course import Stage
from s2ap_core.training.evaluation import Evaluation, wilson
from s2ap_diag.comparison import remedies
from s2ap_diag.comparison.claims import claims
from s2ap_diag.comparison.evidence import Evidence, by_setting
from s2ap_diag.comparison.finding import Finding
from s2ap_diag.comparison.metrics import unit_means
from s2ap_diag.comparison.remedies import quoted
from s2ap_diag.comparison.statistics import LEAST_SEEDS, check_comparable, paired_difference
from s2ap_diag.sharpness import UNRELIABLE

DEAD_SHARE = 0.5
"""Share of dead scores in the eigenvector above which lambda_max speaks of dead channels."""

ZERO_GRADIENT = 0.1
"""Share of images without an input gradient above which a gradient attack is not trusted, as the evaluation warns."""

THREAT = ("attack", "norm", "eps")


@dataclass(frozen=True)
class Material:
    """What is checked: finished runs, and tables that were rendered from them."""

    runs: Sequence[Evidence]
    tables: Sequence[Path] = ()


Condition = Callable[[Material], Iterator[Finding]]


def check(material: Material) -> list[Finding]:
    """Ask every condition, in the order of :data:`CONDITIONS`."""
    return [finding for condition in CONDITIONS for finding in condition(material)]


def of_run(condition: Callable[[Evidence], Iterator[Finding]]) -> Condition:
    """Ask a condition of each run."""
    return lambda material: (finding for run in material.runs for finding in condition(run))


def of_setting(condition: Callable[[dict[str, list[Evidence]]], Iterator[Finding]]) -> Condition:
    """Ask a condition of the arms of each setting, by name of the arm."""
    return lambda material: (finding for arms in by_setting(material.runs) for finding in condition(arms))


def of_attack(condition: Callable[[Evidence, Stage, Evaluation], Iterator[Finding]]) -> Condition:
    """Ask a condition of each evaluation under an attack."""
    return _of_evaluation(condition, lambda evaluation: evaluation.about["attack"] != "none")


def _of_evaluation(
    condition: Callable[[Evidence, Stage, Evaluation], Iterator[Finding]],
    asked: Callable[[Evaluation], bool] = lambda evaluation: True,
) -> Condition:
    return lambda material: (
        finding
        for run in material.runs
        for stage, evaluation in run.evaluations.items()
        if asked(evaluation)
        for finding in condition(run, stage, evaluation)
    )


def flips(run: Evidence) -> Iterator[Finding]:
    """Check that S2AP's z flips mask bits once it is on: what flips none leaves the loss as it was."""
    if run.config.minimizer.name != "s2ap":
        return
    perturbed = course.perturbed(run.config)
    seen = [value for epoch, value in run.tracked("perturbation_flips").items() if epoch in perturbed]
    if run.budget is None and not seen:  # it has not searched
        return
    gamma = run.config.minimizer.gamma
    wider = 0.01 if isinstance(gamma, str) else 10 * gamma
    if seen:
        mean = sum(seen) / len(seen)
        remedy = f"z flips no mask bit: widen its radius: {remedies.anew(run, f'minimizer.gamma={wider:g}')}"
        yield Finding.of(_name(run), "flips", mean > 0, mean, 0, remedy)
    else:
        remedy = f"nobody counted the mask bits that z flips: {remedies.anew(run, 'tracking.every=50')}"
        yield Finding.note(_name(run), "flips", None, 0, remedy)


def eigenvalue(run: Evidence) -> Iterator[Finding]:
    """Check that an eigenvalue has converged."""
    sharpness = run.sharpness
    if sharpness is None:
        return
    residuals = [residual for residual in (sharpness.residual, sharpness.residual_live) if residual is not None]
    worst = float(np.max(residuals))  # NaN if one is, unlike max()
    converged = sharpness.converged and sharpness.converged_live
    why = "it has not converged" if worst <= UNRELIABLE else "its residual is too large"
    remedy = f"{why}: {remedies.measure(run, '--iterations 256')}"
    value = None if math.isnan(worst) else worst
    yield Finding.of(_name(run), "eigenvalue", converged and worst <= UNRELIABLE, value, UNRELIABLE, remedy)


def dead_share(run: Evidence) -> Iterator[Finding]:
    """Check that beside an eigenvalue on dead channels, 1/eps of BatchNorm, stands the one of live channels."""
    sharpness = run.sharpness
    if sharpness is None or sharpness.dead_share is None:
        return
    if sharpness.dead_share > DEAD_SHARE and sharpness.lambda_max_live is not None:
        remedy = "lambda_max speaks of channels without a weight: read lambda_max_live"
        yield Finding.note(_name(run), "dead share", sharpness.dead_share, DEAD_SHARE, remedy)
        return
    remedy = f"lambda_max speaks of channels without a weight; measure lambda_max_live: {remedies.measure(run)}"
    passed = sharpness.dead_share <= DEAD_SHARE
    yield Finding.of(_name(run), "dead share", passed, sharpness.dead_share, DEAD_SHARE, remedy)


def budget(run: Evidence) -> Iterator[Finding]:
    """Check that a mask keeps what the config says, and no more."""
    counts = run.budget
    if counts is not None:
        remedy = (
            f"{counts.violation}; see `s2ap-diag verify {quoted(run.run.path / 'ckpt')}`, then {remedies.anew(run)}"
        )
        yield Finding.of(_name(run), "budget", not counts.violation, counts.kept, counts.allowed, remedy)


def classes(run: Evidence, stage: Stage, evaluation: Evaluation) -> Iterator[Finding]:
    """Check for a network that has collapsed to few classes: it is right in those alone.

    The limit is half the classes in which a network equally good at all of them is expected to be right at least once.
    """
    counts = np.unique(evaluation.label, return_counts=True)[1]
    expected = float((1 - (1 - evaluation.clean.mean()) ** counts).sum())
    right = len(np.unique(evaluation.label[evaluation.clean]))
    remedy = f"right in few of {len(counts)} classes: {remedies.longer(run, stage)}"
    yield Finding.of(_name(run), f"classes ({stage})", right >= expected / 2, right, expected / 2, remedy)


def chance(run: Evidence, stage: Stage, evaluation: Evaluation) -> Iterator[Finding]:
    """Check that the clean accuracy's interval lies above what always naming the commonest class gives."""
    commonest = float(np.unique(evaluation.label, return_counts=True)[1].max() / len(evaluation.label))
    low, _ = wilson(int(evaluation.clean.sum()), len(evaluation.clean))
    clean = f"clean accuracy {evaluation.clean.mean():.1%}"
    remedy = f"{clean} may be that of one class named always: {remedies.longer(run, stage)}"
    yield Finding.of(_name(run), f"chance ({stage})", low > commonest, low, commonest, remedy)


def noise(run: Evidence, stage: Stage, evaluation: Evaluation) -> Iterator[Finding]:
    """Check that an attack does more harm than noise of its radius."""
    robust, noisy = float(evaluation.robust.mean()), float(evaluation.noise.mean())
    remedy = f"noise does more harm than the attack: {remedies.attack(run, stage, evaluation)}"
    yield Finding.of(_name(run), f"noise ({stage})", robust <= noisy, robust, noisy, remedy)


def gradient(run: Evidence, stage: Stage, evaluation: Evaluation) -> Iterator[Finding]:
    """Check that few images have no gradient, where all attacks but AutoAttack's Square are blind."""
    share = float(evaluation.zero_gradient.mean())
    remedy = f"a gradient attack sees nothing there: {remedies.attack(run, stage, evaluation)}"
    if share > ZERO_GRADIENT and evaluation.about["attack"] == "autoattack":
        yield Finding.note(
            _name(run), f"gradient ({stage})", share, ZERO_GRADIENT, "the robust accuracy rests on Square alone there"
        )
        return
    yield Finding.of(_name(run), f"gradient ({stage})", share <= ZERO_GRADIENT, share, ZERO_GRADIENT, remedy)


def robust(run: Evidence, stage: Stage, evaluation: Evaluation) -> Iterator[Finding]:
    """Check that no image is robust that is not correct as it is."""
    clean, share = float(evaluation.clean.mean()), float((evaluation.robust | evaluation.clean).mean())
    passed = not (evaluation.robust & ~evaluation.clean).any()
    remedy = f"images count as robust that are wrong without an attack: {remedies.again(run, stage)}"
    yield Finding.of(_name(run), f"robust above clean ({stage})", passed, share, clean, remedy)


def summary(run: Evidence, stage: Stage, evaluation: Evaluation) -> Iterator[Finding]:
    """Check that ``results.json`` says what was found image by image."""
    said, counted = run.run.results[f"evaluate-{stage}"], evaluation.summary()
    accuracies = {key: value for key, value in counted.items() if key.endswith("_accuracy")}
    unlike = {key: value for key, value in accuracies.items() if not _alike(_get(said, key), value)}
    key = next(iter(unlike), "clean_accuracy")
    remedy = f"results.json has another {key} than evals/{stage}.npz: {remedies.again(run, stage)}"
    yield Finding.of(_name(run), f"summary ({stage})", not unlike, _get(said, key), accuracies[key], remedy)


def batch_norm(arms: dict[str, list[Evidence]]) -> Iterator[Finding]:
    """Check that both modes of BatchNorm order two arms the same way, as far as three seeds or more can tell."""
    for first, second in combinations(arms.values(), 2):
        a, b = ({run.unit: run for run in runs} for runs in (first, second))
        pairs = {unit: (a[unit], b[unit]) for unit in sorted(a.keys() & b.keys())}
        modes = {}
        for mode in ("running", "batch"):
            means = {u: [_mean(run.tracked(f"lambda_max_live_{mode}")) for run in pair] for u, pair in pairs.items()}
            known = unit_means({u: y - x for u, (x, y) in means.items() if not math.isnan(y - x)})
            modes[mode] = paired_difference(known) if len(known) >= LEAST_SEEDS else None
        running, batch = modes["running"], modes["batch"]
        if running is None or batch is None:
            continue
        contradict = running.beyond_chance and batch.beyond_chance and running.mean * batch.mean < 0
        files = " ".join(quoted(run.result("prune")) for run in next(iter(pairs.values())))
        measured = f"`s2ap-diag sharpness {files} --batch-norm running --batch-norm batch`"
        remedy = f"lambda_max_live ranks the arms by BatchNorm's mode; show both: {measured}"
        where = _names([run for pair in pairs.values() for run in pair])
        yield Finding.of(where, "batch norm", not contradict, batch.mean, running.mean, remedy)


def seeds(material: Material) -> Iterator[Finding]:
    """Check for three seeds that another arm has, too: with fewer, differences have no interval.

    A single run is compared with nothing.
    """
    for arms in by_setting(material.runs):
        seeds_of = {arm: {run.unit for run in runs} for arm, runs in arms.items()}
        for arm, runs in arms.items():
            own = seeds_of[arm]
            enough = [other for name, other in seeds_of.items() if name != arm and len(other) >= LEAST_SEEDS]
            paired = max((own & other for other in enough), key=len, default=own)
            units = len(unit_means(dict.fromkeys(paired, 0.0)))
            unused = max(seed for seed, _ in own) + 1
            remedy = f"too few seeds for an interval: {remedies.anew(runs[0], seed=unused)}"
            if len(material.runs) == 1:
                yield Finding.note(_names(runs), "seeds", units, LEAST_SEEDS, remedy)
            else:
                yield Finding.of(_names(runs), "seeds", units >= LEAST_SEEDS, units, LEAST_SEEDS, remedy)


def alike(arms: dict[str, list[Evidence]]) -> Iterator[Finding]:
    """Check that arms are evaluated on the same images under the same attack, and each arm's seeds under one attack."""
    runs = [run for arm in arms.values() for run in arm]
    for stage in course.TRAINED_STAGES:
        evaluated = [run for run in runs if stage in run.evaluations]
        if len(evaluated) < 2:
            continue
        same: dict[str, list[Evidence]] = {}
        for run in evaluated:
            same.setdefault(_evaluated_on(stage, run), []).append(run)
        unlike = [
            (reason, len(some) * len(others))
            for some, others in combinations(same.values(), 2)
            if (reason := _unlike(stage, some[0], others[0]))
        ]
        pairs = sum(count for _, count in unlike)
        yield Finding.of(_names(evaluated), f"alike ({stage})", not unlike, pairs, 0, unlike[0][0] if unlike else "")


def _evaluated_on(stage: Stage, run: Evidence) -> str:
    """Write all of an evaluation that :func:`_unlike` looks at: of thousands of runs few have another."""
    evaluation = run.evaluations[stage]
    about = [evaluation.about.get(key) for key in (*THREAT, "images")]
    return json.dumps([about, evaluation.images, run.unit[1]], default=str)


def _unlike(stage: Stage, first: Evidence, second: Evidence) -> str:
    """Say how the evaluations of two runs differ, and how to make them equal; empty where they do not differ."""
    a, b = first.evaluations[stage], second.evaluations[stage]
    different = [
        f"{key} {a.about.get(key)} and {b.about.get(key)}" for key in THREAT if a.about.get(key) != b.about.get(key)
    ]
    reason = f"evaluated with {different[0]}" if different else ""
    if first.unit[1] == second.unit[1] and not reason:  # each fold has images of its own
        try:
            check_comparable(a, b, "")
        except InputError:
            reason = f"evaluated on {len(a.index)} and {len(b.index)} images"
        if a.about.get("images") != b.about.get("images"):
            reason = "evaluated on images of other content"
    if not reason:
        return ""
    files = " ".join(quoted(run.result(stage)) for run in (first, second))
    n = min(len(a.index), len(b.index))
    attack = f"--attack {a.about['attack']} --norm {a.about['norm']} --eps {a.about['eps']}"
    return f"{reason}; measure both alike: `s2ap-diag evaluate {files} {attack} --n {n}`"


def winners(material: Material) -> Iterator[Finding]:
    """Check that a table calls an arm best only where the difference's interval excludes 0."""
    for table in material.tables:
        yield from claims(table)


CONDITIONS: tuple[Condition, ...] = (
    of_run(flips),
    of_run(eigenvalue),
    of_run(dead_share),
    of_run(budget),
    _of_evaluation(classes),
    _of_evaluation(chance),
    _of_evaluation(summary),
    of_attack(noise),
    of_attack(gradient),
    of_attack(robust),
    of_setting(batch_norm),
    seeds,
    of_setting(alike),
    winners,
)


def _name(run: Evidence) -> str:
    return str(run.run.path)


def _names(runs: Sequence[Evidence]) -> str:
    return _name(runs[0]) + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


def _mean(by_epoch: dict[int, float]) -> float:
    return sum(by_epoch.values()) / len(by_epoch) if by_epoch else math.nan


def _get(said: Any, key: str) -> Any:
    return said.get(key) if isinstance(said, dict) else None


def _alike(said: Any, value: float) -> bool:
    return isinstance(said, int | float) and math.isclose(said, value, abs_tol=1e-9)
