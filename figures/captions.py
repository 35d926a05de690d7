"""The sentences below a table or figure: what its numbers are of, and the rules of its marks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from figures.catalogue import ARMS, DATA, METHODS, Entry, in_words
from figures.matching import Library
from figures.numbers import Line
from figures.settings import paper_gamma, training_of
from figures.wording import CHANCE, NETWORKS_DIFFER, PAPER
from s2ap_diag.reading.results import Run


def caption_of(entry: Entry, lines: Sequence[Line], library: Library) -> list[str]:
    """Say what the numbers are of, and the rules of the marks; of those alone that the table shows."""
    runs = [run for line in lines for by_arm in line.runs.values() for run in by_arm]
    said = []
    said += trainings(runs)
    if entry.kind == "accuracy":
        said += attacks(entry, lines)
    if entry.kind == "corruptions" and entry.substitute not in (None, "cifar10"):
        said.append("CIFAR-10-C is of CIFAR-10 alone, so nothing can be measured on other data.")
    if entry.kind == "sharpness":
        said += _sharpness_conditions(runs)
    said.append("±: standard deviation over seeds.")
    if entry.kind == "accuracy":
        said.append("Brackets behind an accuracy: with one seed, its 95 % Wilson interval over images.")
    if len(entry.arms) > 1:
        first, second = (ARMS[arm] for arm in entry.arms)
        said.append(
            f"Brackets behind {second} − {first}: the 95 % t-interval over seeds, from three on, with the part of "
            f"shared test images. Bold and {CHANCE}: better beyond chance, after Holm's correction over the rows."
        )
        if entry.kind == "accuracy":
            said.append(
                f"{NETWORKS_DIFFER} with fewer seeds: the two networks of a seed differ (McNemar), which says nothing "
                "of the methods."
            )
    if entry.gap:
        said.append("Δ = (clean − robust of Orig.) − (clean − robust of S2AP), recomputed.")
        said.append(f"{PAPER} the paper's gap does not follow from its accuracies.")
    return [*said, *substituted(entry), *gammas(entry, library)]


def trainings(runs: Iterable[Run]) -> list[str]:
    """Say what the runs were trained on."""
    named = sorted({str(training_of(run.config)) for run in runs})
    return [f"Trained with {'; with '.join(named)}."] if named else []


def attacks(entry: Entry, lines: Iterable[Line]) -> list[str]:
    """Say attack, radius and number of images of the evaluations."""
    evaluations = Counter(
        _attack(evaluation.about, len(evaluation.label))
        for line in lines
        for by_seed in line.evaluations.values()
        for evaluation in by_seed.values()
    )
    if not evaluations:
        return []
    said = f"Accuracy in %: {'; '.join(sorted(evaluations))}."
    return [said if len(evaluations) == 1 else f"{said} Not all numbers are of the same evaluation."]


def _attack(about: dict[str, Any], n: int) -> str:
    images = "the test images of a fold" if "fold" in about.get("options", {}) else f"{n} test images"
    if about["attack"] == "none":
        return f"no attack, {images}"
    return f"{about['attack']}, {about['norm']}, eps {about['eps']}, {images}"


def _sharpness_conditions(runs: Iterable[Run]) -> list[str]:
    conditions = set()
    for run in runs:
        record = run.sharpness or {}
        images = f"{record.get('batches')} batches of {record.get('batch_size')}"
        conditions.add(f"BatchNorm: {record.get('batch_norm')}; {record.get('adversary')}; {images}")
    return [f"Loss difference of the selected scores (Eq. 12): {' | '.join(sorted(conditions))}."] if conditions else []


def substituted(entry: Entry) -> list[str]:
    """Say that the paper's numbers are of another data set."""
    others = dict.fromkeys(DATA[cell.printed] for cell in entry.cells if not cell.comparable)
    if not others:
        return []
    measured = entry.substitute
    return [f"The paper's numbers are of {', '.join(others)}, the measured ones of {measured}: no difference is shown."]


def gammas(entry: Entry, library: Library) -> list[str]:
    """Say the gamma of settings that the paper has none for."""
    by_gamma: dict[float, list[str]] = {}
    for cell in dict.fromkeys(entry.cells):
        gamma = library.gamma(cell)
        if gamma is not None and paper_gamma(cell) is None and cell.method != "dense":
            names = by_gamma.setdefault(gamma, [])
            name = f"{in_words(cell.network)} {METHODS[cell.method]}"
            if name not in names:
                names.append(name)
    said = [f"{gamma:g} ({', '.join(names)})" for gamma, names in sorted(by_gamma.items())]
    return [f"γ: {'; '.join(said)}, the commonest among the runs."] if said else []
