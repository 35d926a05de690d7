"""What to type where a condition fails."""

import shlex
from pathlib import Path

from s2ap_core.runs.course import Stage, search_epochs
from s2ap_core.training.evaluation import Evaluation
from s2ap_diag.comparison.evidence import Evidence
from s2ap_diag.reading.results import SHARPNESS


def quoted(path: Path) -> str:
    """Quote a path for a shell."""
    return shlex.quote(str(path))


def anew(run: Evidence, setting: str = "", seed: int | None = None) -> str:
    """Write the command that makes a run like this one beside it, with another setting or seed.

    A run that was given its dense network needs the one of the other seed.
    """
    changed = f" --set {setting}" if setting else ""
    ending = "-anew"
    if seed is not None:
        given = f" --set pretrain.checkpoint=DENSE-OF-SEED-{seed}" if run.config.pretrain.checkpoint else ""
        changed, ending = f" --seed {seed}{given}", f"-seed-{seed}"
    out = run.run.path.with_name(run.run.path.name + ending)
    return f"`s2ap-diag run {quoted(run.run.path / 'config.toml')}{changed} --out {quoted(out)}`"


def longer(run: Evidence, stage: Stage) -> str:
    """Say how to get a network that learns: fewer weights dropped, or twice the epochs, if there are any."""
    if stage == "prune" and not search_epochs(run.config):
        return f"keep more weights: {anew(run, f'method.keep={min(1.0, 2 * run.config.method.keep):g}')}"
    epochs = 2 * getattr(run.config, stage).epochs
    return f"keep more weights, or train longer: {anew(run, f'{stage}.epochs={epochs}')}"


def again(run: Evidence, stage: Stage) -> str:
    """Say how to evaluate a stage anew."""
    file = quoted(run.run.path / "evals" / f"{stage}.npz")
    return f"remove {file}, then `s2ap-diag run --resume --out {quoted(run.run.path)}`"


def measure(run: Evidence, options: str = "") -> str:
    """Write the command that measures the sharpness of the selected scores anew, in BatchNorm's mode of the record."""
    mode = run.sharpness.batch_norm.partition(" ")[0] if run.sharpness and run.sharpness.batch_norm else ""
    asked = "" if mode in ("", "none") else f"--batch-norm {mode}"  # none: there is no BatchNorm
    said = " ".join(filter(None, (options, asked)))
    return f"`s2ap-diag sharpness {quoted(run.result('prune'))} {said} --json {quoted(run.run.path / SHARPNESS)}`"


def attack(run: Evidence, stage: Stage, evaluation: Evaluation) -> str:
    """Write the command that attacks the network harder, or what to look at where the attack is the hardest already."""
    if evaluation.about["attack"] == "autoattack":
        return f"see that the network normalises once: `s2ap-diag inspect {quoted(run.result(stage))}`"
    return f"`s2ap-diag evaluate {quoted(run.result(stage))} --attack autoattack --n {len(evaluation.label)}`"
