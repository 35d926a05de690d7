"""Does sharpness drive robustness? Doses of mask flips along the gradient, against it and at random; not in the paper.

A search with ``minimizer.gamma = "flips"`` flips a chosen share of the mask at each iteration, its dose. If flatness
made masks robust, flips along the gradient would lower sharpness and raise robustness, flips against it the reverse,
and random ones lie between.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from figures.panels import grid, shared_legend
from figures.rendered_table import RenderedTable, Text
from s2ap_core.errors import InputError
from s2ap_core.runs import course
from s2ap_diag.comparison.arms import compare_arms, seed_of, setting_of
from s2ap_diag.comparison.metrics import METRICS, TRACKED, MetricComparison, Unit, many, spanned
from s2ap_diag.comparison.statistics import PairedDifference, paired_difference
from s2ap_diag.output import plots
from s2ap_diag.reading.results import Run

SHARPNESS = {"loss_difference": "ΔL of the mask's scores", "lambda_max_live": "live λ_max of the mask"}
ROBUSTNESS = {"mask_robust": "robust accuracy, mask", "finetuned_robust": "robust accuracy, finetuned"}
READ = {**SHARPNESS, "tracked_lambda_max_live_batch": "live λ_max over the search", **ROBUSTNESS}
"""What is read of each run, in words."""

ALIKE = 1.0
"""Points of clean accuracy within which two masks are held to be equally accurate."""

Dose = tuple[str, float]
"""Direction of the perturbation, and the share of the kept entries that it swaps."""

NO_DOSE: Dose = ("none", 0.0)


@dataclass(frozen=True)
class Study:
    """The doses of one setting, each against no perturbation on the same folds.

    Attributes:
        compared: by direction and dose each metric's comparison with Orig., all over the folds that every dose has.
        runs: the runs of these folds, Orig. included.
        notes: what could not be compared, and why.
    """

    setting: str
    compared: Mapping[Dose, Mapping[str, MetricComparison]]
    runs: Sequence[Run]
    notes: Sequence[str] = ()

    def unit(self, metric: str) -> Unit:
        """Give the unit of a metric's differences."""
        return next((by[metric].unit for by in self.compared.values() if metric in by), "")

    @property
    def directions(self) -> list[str]:
        return list(dict.fromkeys(direction for direction, _ in self.compared))

    def effect(self, direction: str, metric: str) -> PairedDifference | None:
        """Average a metric's difference from Orig. over the doses of a direction, fold by fold."""
        doses = [by for (way, _), by in self.compared.items() if way == direction]
        found = [by[metric].difference for by in doses if metric in by]
        if not found or len(found) < len(doses) or len({by[metric].unit for by in doses}) > 1:
            return None  # not all doses have it, or some as a ratio and others as it is
        return paired_difference(np.mean([difference.by_unit for difference in found], axis=0).tolist())

    def moved(self, direction: str, metric: str) -> int:
        """Say which way a direction moves a metric: 1, -1, or 0 where the interval over folds holds 0."""
        effect = self.effect(direction, metric)
        return 0 if effect is None or not effect.beyond_chance else int(np.sign(effect.mean))

    @property
    def verdict(self) -> str:
        """Say whether sharpness drives robustness here, and what would decide it."""
        manipulated = [m for m in SHARPNESS if (self.moved("gradient", m), self.moved("reversed", m)) == (-1, 1)]
        followed = [m for m in ROBUSTNESS if (self.moved("gradient", m), self.moved("reversed", m)) == (1, -1)]
        if manipulated and followed:
            return "sharpness drives robustness here"
        ways = [(direction, metric) for metric in READ for direction in ("gradient", "reversed")]
        seen = [f"{d} {'raises' if self.moved(d, m) > 0 else 'lowers'} {READ[m]}" for d, m in ways if self.moved(d, m)]
        effects = [self.effect(direction, metric) for metric in ROBUSTNESS for direction in ("gradient", "reversed")]
        needed = [effect.seeds_needed() for effect in effects if effect is not None and not effect.beyond_chance]
        most = max((math.inf if seeds is None else seeds for seeds in needed), default=0)
        enough = many(None if most == math.inf else int(most))
        decide = [f"{enough} would resolve all effects on robustness"] if most else []
        return "not shown: " + "; ".join([*(seen or ["no effect beyond chance"]), *decide])

    def agreement(self, sharpness: str, robustness: str, *, alike: bool = False) -> PairedDifference | None:
        """Compute Kendall's tau of a sharpness with a robustness over the runs of each fold, and its mean over folds.

        Args:
            alike: over the pairs of masks alone that are equally accurate on clean images, to :data:`ALIKE`.
        """
        by_fold: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
        for run in self.runs:
            by_fold[seed_of(run)[1]].append(
                (_value(run, sharpness), _value(run, robustness), _value(run, "mask_clean"))
            )
        taus = [_tau(np.array(values), alike) for values in by_fold.values()]
        known = [tau for tau in taus if not math.isnan(tau)]
        return paired_difference(known) if len(known) == len(taus) and known else None


def _tau(values: np.ndarray, alike: bool) -> float:
    """Compute Kendall's tau-b of two columns, or the concordance over the pairs that are alike in the third."""
    if not alike:
        return float(kendalltau(values[:, 0], values[:, 1]).statistic)
    first, second = np.triu_indices(len(values), 1)
    close = np.abs(values[first, 2] - values[second, 2]) <= ALIKE
    products = np.sign(values[first, 0] - values[second, 0]) * np.sign(values[first, 1] - values[second, 1])
    untied = close & (products != 0)
    return float(products[untied].mean()) if untied.any() else math.nan


def _value(run: Run, metric: str) -> float:
    if metric in SHARPNESS:
        record = run.sharpness or {}
        return float(record["loss_difference"]["0.01"]["mean"] if metric == "loss_difference" else record[metric])
    stage = "finetune" if metric.startswith("finetuned") else "prune"
    return 100 * float(run.results[f"evaluate-{stage}"][f"{metric.rpartition('_')[2]}_accuracy"])


def dosed(run: Run) -> Dose | None:
    """Return direction and dose of a search that flips a share of the mask, None of another one."""
    minimizer = run.config.minimizer
    if minimizer.name != "s2ap" or minimizer.gamma != "flips" or not _measured(run):
        return None
    plain = minimizer.source == "pass" and minimizer.subset == 1 and minimizer.every == 1
    return (minimizer.direction, minimizer.flips) if plain and minimizer.update == "method" else None


def _measured(run: Run) -> bool:
    """Return whether a run has all that is read, and was finetuned plainly, as the mask alone is what is asked for."""
    evaluated = {"evaluate-prune", "evaluate-finetune"} <= run.results.keys()
    if not evaluated or course.finetuning_gamma(run.config) is not None or "fold" not in run.config.data.options:
        return False  # the folds are the units that differences are over
    try:
        return "0.01" in ((run.sharpness or {}).get("loss_difference") or {})
    except InputError:  # damaged: said where a table needs it
        return False


def studies(runs: Sequence[Run]) -> list[Study]:
    """Compare every dose with no perturbation, in each setting that has both, over the folds that all have."""
    by_setting: dict[tuple[str, str], dict[Dose, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        dose = dosed(run)
        if dose is not None:
            by_setting[setting_of(run), _search_of(run)][dose].append(run)
    for run in runs if by_setting else ():
        key = setting_of(run), _search_of(run)
        if key in by_setting and run.config.minimizer.name == "none" and course.as_published(run.config):
            by_setting[key][NO_DOSE] += [run] if _measured(run) else []
    return [_study(setting, doses) for (setting, _), doses in by_setting.items() if doses[NO_DOSE]]


def _study(setting: str, doses: Mapping[Dose, Sequence[Run]]) -> Study:
    folds = set.intersection(*({seed_of(run) for run in own} for own in doses.values()))
    alike = {dose: [run for run in own if seed_of(run) in folds] for dose, own in doses.items()}
    origs = alike.pop(NO_DOSE)
    readers = {name: (METRICS | TRACKED)[name] for name in READ}
    compared, notes = {}, []
    for dose in sorted(alike):
        try:
            (found,) = compare_arms(origs, alike[dose], readers)
        except InputError as error:  # no fold that all doses have, one of them twice, or other evaluations
            notes.append(f"{setting}: {dose[0]}, {dose[1]:g}: {error}")
            continue
        compared[dose] = found.metrics
        notes += [f"{setting}: {dose[0]}, {dose[1]:g}: {note}" for note in found.notes]
    return Study(setting, compared, [*origs, *(run for own in alike.values() for run in own)], notes)


def _search_of(run: Run) -> str:
    """Write what the searches of a study share, so that no run of another length or attack is taken for dose 0."""
    config = run.config
    return repr((
        config.network, config.objective, config.pretrain.epochs, config.prune, config.minimizer.warmup,
        config.finetune.epochs, config.evaluation.attack, config.evaluation.n,
    ))  # fmt: skip


def dose_table(found: Sequence[Study]) -> RenderedTable:
    """Lay out each direction's mean effect over its doses, and the verdict."""
    metrics = list(READ)
    rows, records = [], []
    for study in found:
        for direction in study.directions:
            effects = {metric: study.effect(direction, metric) for metric in metrics}
            units = {metric: study.unit(metric) for metric in metrics}
            cells = [
                Text(
                    "" if effect is None else spanned(effect, units[metric]), bold=bool(effect and effect.beyond_chance)
                )
                for metric, effect in effects.items()
            ]
            rows.append([Text(study.setting), Text(direction), *cells])
        for (direction, dose), by_metric in study.compared.items():
            records += [_record(study, direction, dose, compared) for compared in by_metric.values()]
    verdicts = [f"{study.setting}: {study.verdict}." for study in found]
    agreements = [sentence for study in found for sentence in _agreements(study)]
    return RenderedTable(
        id="dose",
        heading="Dose: mask flips along the gradient, against it and at random",
        groups=[("", ["Setting", "Direction"]), ("mean over the doses, against no flips", list(READ.values()))],
        rows=rows,
        caption=[
            "Each dose flips the same share of the mask at every iteration. Differences over paired folds with their "
            "95 % interval, in points for accuracies, as a ratio for λ_max; bold where it excludes no difference.",
            *verdicts,
            *agreements,
        ],
        records=pd.DataFrame(records),
        notes=[note for study in found for note in study.notes],
    )


def _agreements(study: Study) -> list[str]:
    said = []
    for sharpness, word in SHARPNESS.items():
        for robustness, outcome in ROBUSTNESS.items():
            taus = [study.agreement(sharpness, robustness, alike=alike) for alike in (False, True)]
            if taus[0] is not None:
                alike = "" if taus[1] is None else f"; concordance at equal clean accuracy {spanned(taus[1], '')}"
                said.append(f"{study.setting}: Kendall's tau of {word} with {outcome} {spanned(taus[0], '')}{alike}.")
    return said


def _record(study: Study, direction: str, dose: float, compared: MetricComparison) -> dict[str, Any]:
    low, high = compared.difference.interval or (None, None)
    return {
        "setting": study.setting,
        "direction": direction,
        "dose": dose,
        "metric": compared.name,
        "unit": compared.unit,
        "orig": compared.first,
        "dosed": compared.second,
        "difference": compared.difference.mean,
        "interval_low": low,
        "interval_high": high,
        "p": compared.difference.p,
        "folds": len(compared.difference.by_unit),
    }


def draw_doses(found: Sequence[Study], files: Sequence[Path]) -> None:
    """Draw each metric's difference from Orig. against the dose, a curve for each direction, a column a setting."""
    metrics = ["loss_difference", "lambda_max_live", "mask_robust", "finetuned_robust"]
    with plots.canvas(files, 1.1 * plots.COLUMN * len(found), 1.55 * len(metrics) + 0.6) as figure:
        axes = np.array(grid(figure, len(found), len(found) * len(metrics))).reshape(len(metrics), len(found))
        for column, study in enumerate(found):
            for row, metric in enumerate(metrics):
                _draw_metric(axes[row, column], study, metric)
            axes[0, column].set_title(study.setting, fontsize=7)
            axes[-1, column].set_xlabel("mask entries swapped (% of those kept)")
        shared_legend(figure, axes.ravel())


def _draw_metric(panel: Any, study: Study, metric: str) -> None:
    unit = ""
    for index, direction in enumerate(study.directions):
        points = {dose: by[metric] for (way, dose), by in study.compared.items() if way == direction and metric in by}
        if not points:
            continue
        unit = next(iter(points.values())).unit
        means = np.array([point.difference.mean for point in points.values()])
        spans = np.array([point.difference.interval or (np.nan, np.nan) for point in points.values()]).T
        shift = 1.04 ** (index - (len(study.directions) - 1) / 2)  # so that intervals stand side by side
        panel.errorbar(
            100 * np.array(list(points)) * shift, means, yerr=np.abs(spans - means), label=direction, capsize=2,
            elinewidth=0.7, **plots.look(index),
        )  # fmt: skip
    panel.axhline(0, color="0.5", linewidth=0.7, zorder=0)
    panel.set_xscale("log")
    ticks = sorted({100 * dose for _, dose in study.compared})
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    suffix = {"log10": " (log₁₀ ratio)", "points": " (points)"}.get(unit, "")
    panel.set_ylabel(f"{READ[metric]}\n{suffix.strip() or 'difference'}", fontsize=6.5)
