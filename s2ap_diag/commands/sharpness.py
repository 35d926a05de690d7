"""``s2ap-diag sharpness``: how sharp is the robust loss in score space at these checkpoints?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from s2ap_core import distributed
from s2ap_core.files.atomic import write_file
from s2ap_core.modes import statistics
from s2ap_diag.curvature.deviations import standard_error
from s2ap_diag.curvature.eigen import UNRELIABLE, Lanczos, PowerIteration, Solver
from s2ap_diag.curvature.hessian import BatchNormMode
from s2ap_diag.curvature.pyhessian import PyHessian
from s2ap_diag.execution.device import check_device
from s2ap_diag.execution.progress import counting
from s2ap_diag.output.curves import mode_of, names_of
from s2ap_diag.output.destinations import Output, as_json
from s2ap_diag.output.tables import AT_LEAST, NOT_CONVERGED, Number, Table, count, make_table, marked, show
from s2ap_diag.reading.files import expand, how_read, told_apart
from s2ap_diag.reading.source import Source
from s2ap_diag.sharpness import SharpnessSettings, without_scores
from s2ap_diag.sweep.measurements import Job, Measured, measure_all, measured_before, workers_for

SOLVERS: dict[str, Solver] = {solver.name: solver for solver in (Lanczos(), PowerIteration(), PyHessian())}


AFFORDABLE: dict[str, Any] = {"images": 512, "steps": 10, "restarts": 1, "rho": (0.001, 0.005, 0.01)}
"""What is measured unless asked otherwise; :class:`s2ap_diag.sharpness.SharpnessSettings` has the paper's."""

AFFORDABLE_RESIDUAL = 0.01
"""Of Lanczos, which then errs by far less than the batches drawn make lambda_max uncertain."""


def run_command(
    checkpoints: tuple[Path, ...],
    thorough: bool,
    batch_norm: tuple[BatchNormMode, ...],
    spectrum: Path | None,
    objective: str | None,
    eps: str | None,
    workers: int | None,
    resume: bool,
    source: Source,
    output: Output,
    device: str,
    **options: Any,
) -> None:
    """Measure each checkpoint that has scores."""
    device = check_device(device)
    file = Path(output.json) if output.json not in (None, "-") else None
    if resume and (file is None or spectrum is not None):
        raise click.UsageError("--resume: give the file to go on with as --json FILE, and leave out --spectrum")
    settings = settings_of(thorough=thorough, spectrum=spectrum is not None, **options)
    modes = tuple(dict.fromkeys(batch_norm))
    paths = expand(checkpoints, "checkpoint")
    jobs = [
        Job(path, replace(settings, batch_norm=mode), source, objective, eps, device)
        for path in paths
        for mode in telling_modes(path, modes, source)
    ]
    found = measured_before(file, jobs) if resume and file is not None else {}
    left = [job for job in jobs if job not in found]
    at_once = workers or (1 if distributed.world() > 1 else workers_for(device, len(left)))
    with counting("sharpness", len(left), output.quiet) as advance:
        for job, measured in measure_all(left, at_once, advance):
            found[job] = measured
            if file is not None and len(jobs) > 1:
                write_file(file, as_json(records_of(jobs, found)))
    if not records_of(jobs, found):
        raise without_scores(checkpoints[0])
    write_out(jobs, found, output, spectrum)


def telling_modes(path: Path, modes: tuple[BatchNormMode, ...], source: Source) -> tuple[BatchNormMode, ...]:
    """Leave one of BatchNorm's modes of a checkpoint whose network has none: they would all measure the same.

    Raises:
        InputError: if the checkpoint cannot be read.
    """
    if len(modes) > 1 and statistics(source.open(path, "cpu").model, modes[0]) == "none":
        return modes[:1]
    return modes


def settings_of(
    *,
    thorough: bool,
    method: Literal["lanczos", "power", "pyhessian"],
    iterations: int | None,
    tolerance: float | None,
    no_loss_difference: bool,
    **asked: Any,
) -> SharpnessSettings:
    """Fill in what is not asked for: the paper's with ``thorough``, else what a reader can afford."""
    if tolerance is None and method == "lanczos" and not thorough:
        tolerance = AFFORDABLE_RESIDUAL
    given = {name: value for name, value in asked.items() if value not in (None, ())}
    chosen = ({} if thorough else AFFORDABLE) | given | ({"rho": ()} if no_loss_difference else {})
    return SharpnessSettings(solver=solver_of(method, iterations, tolerance), **chosen)


def records_of(jobs: Sequence[Job], found: Mapping[Job, Measured]) -> list[dict[str, Any]]:
    """Collect the records of what has been measured, in the order asked for."""
    records = (found[job].record for job in jobs if job in found)
    return [record for record in records if record is not None]


def write_out(jobs: Sequence[Job], found: Mapping[Job, Measured], output: Output, spectrum: Path | None) -> None:
    """Write tables, records and pictures."""
    records = records_of(jobs, found)
    skipped = len({job.path for job in jobs if found[job].record is None})
    layers = [layer_table(records)] if records[0]["layers"] else []
    everything = [*records, *over_seeds(records)]
    notes = how_read((Path(record["checkpoint"]), record) for record in records)
    output.emit(everything, table_of(everything, skipped), *layers, notes=notes)
    if output.plot is not None:
        from s2ap_diag.output import sharpness_plot  # takes as long to import as a measurement of a small network

        sharpness_plot.draw(records, output.plot)
    if spectrum is not None:
        from s2ap_diag.output import plots  # takes long to import, as above

        measured = [found[job].density for job in jobs if found[job].record is not None]
        densities = {name: density for name, density in zip(names_of(records), measured, strict=True) if density}
        modes = ", ".join(dict.fromkeys(record["batch_norm"] for record in records))
        with plots.picture(spectrum, plots.COLUMN, 2.6) as axes:
            plots.spectral_densities(axes, densities, xlabel=f"eigenvalue (BatchNorm: {modes})")


def solver_of(method: str, iterations: int | None, tolerance: float | None) -> Solver:
    """Give the solver of this name, with its own limits where none are asked for."""
    asked: dict[str, Any] = {"iterations": iterations, "tolerance": tolerance}
    return replace(SOLVERS[method], **{name: value for name, value in asked.items() if value is not None})


def over_seeds(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compute mean and standard error over seeds, where several runs that differ in their seed alone were given."""
    arms: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        keys = ("method", "minimizer", "epoch", "n_scores", "batch_norm")
        stem = Path(record["checkpoint"]).stem
        arms.setdefault((stem, round(record["keep"], 3), *(record[k] for k in keys)), []).append(record)
    summaries = []
    for (stem, keep, method, minimizer, epoch, _, batch_norm), group in arms.items():
        if len({record["seed"] for record in group}) > 1:
            whole, live = (_mean_over_seeds([r[name] for r in group]) for name in ("lambda_max", "lambda_max_live"))
            summaries.append(
                {
                    "checkpoint": f"{stem} of {len(group)} seeds: {method} {minimizer}",
                    "epoch": epoch,
                    "keep": keep,
                    "batch_norm": batch_norm,
                    "seeds": len(group),
                    "lambda_max": whole["mean"],
                    "lambda_max_standard_error": whole["standard_error"],
                    "lambda_max_live": live["mean"],
                    "lambda_max_live_standard_error": live["standard_error"],
                    "converged": all(record["converged"] for record in group),
                    "converged_live": all(record["converged_live"] for record in group),
                    "loss_difference": {
                        rho: _mean_over_seeds([record["loss_difference"][rho]["mean"] for record in group])
                        for rho in group[0]["loss_difference"]
                    },
                }
            )
    return summaries


def _mean_over_seeds(values: list[float]) -> dict[str, float | None]:
    return {"mean": sum(values) / len(values), "standard_error": standard_error(values)}


def table_of(records: list[dict[str, Any]], skipped: int) -> Table:
    """Build one row for each checkpoint, and for each arm of several seeds."""
    rhos = list(records[0]["loss_difference"])
    names = _names(records)
    several_modes = len(set(map(mode_of, records))) > 1
    rows = [
        [
            name,
            *([mode_of(record)] * several_modes),
            record["epoch"],
            round(record["keep"], 4),
            _with_error(record, "lambda_max", "converged"),
            _with_error(record, "lambda_max_live", "converged_live"),
            record.get("dead_channels"),
            record.get("dead_share"),
            record.get("dominant_eigenvalue"),
            record.get("residual"),
            _converged(record),
            *(marked(show(record["loss_difference"][rho]["mean"]), at_least=True) for rho in rhos),
            record.get("seconds"),
        ]
        for name, record in zip(names, records, strict=True)
    ]
    single = [record for record in records if "seeds" not in record]
    first = single[-1]
    modes = " / ".join(dict.fromkeys(record["batch_norm"] for record in single))
    title = f"{count(first['batches'], 'batch')} of {first['batch_size']}; BatchNorm: {modes}; {first['adversary']}"
    title += "; ± standard error over batches"
    if rhos:
        ascent = first["loss_difference"][rhos[0]]
        title += f"; ΔL by {ascent['restarts']} x {ascent['steps']} steps of ascent"
    if len(single) < len(records):
        title += ", of several seeds over seeds"
    if skipped:
        title += f"; {skipped} files without scores left out"
    columns = ["checkpoint", *["BatchNorm"] * several_modes, "epoch", "keep", "λ_max", "live λ_max", "dead"]
    differences = [f"ΔL, ρ={rho}" for rho in rhos]
    columns += ["dead share", "dominant λ", "residual", "converged", *differences, "s"]
    gives_way = ["s", "dominant λ", "residual", "converged", "dead share", *differences[:-1], "keep", "dead", "epoch"]
    return make_table(title, columns, rows, gives_way=gives_way, notes=(NOT_CONVERGED, AT_LEAST))


def layer_table(records: list[dict[str, Any]]) -> Table:
    """Build one row for each layer or block of each checkpoint, the sharpest first."""
    rows = [
        [
            checkpoint,
            record["batch_norm"],
            name,
            marked(show(record["layers"][name]), converged=record["layer_residuals"][name] <= UNRELIABLE),
            marked(show(record["layers_live"][name]), converged=record["layer_residuals_live"][name] <= UNRELIABLE),
            max(record["layer_residuals"][name], record["layer_residuals_live"][name]),
        ]
        for checkpoint, record in zip(_names(records), records, strict=True)
        for name in record["layers"]
    ]
    columns = ["checkpoint", "BatchNorm", "layer", "λ_max", "live λ_max", "residual"]
    note = f"{NOT_CONVERGED}: a residual above {UNRELIABLE:g}"
    title = "λ_max of the layers' diagonal blocks"
    gives_way = ["residual", *(["BatchNorm"] if len(set(map(mode_of, records))) == 1 else [])]
    return make_table(title, columns, rows, gives_way=gives_way, notes=(note,))


def _names(records: list[dict[str, Any]]) -> list[str]:
    """Name the checkpoints, each by as much of its path as tells it apart; what is of several seeds has a name."""
    names = iter(told_apart([Path(record["checkpoint"]) for record in records if "seeds" not in record]))
    return [record["checkpoint"] if "seeds" in record else next(names) for record in records]


def _with_error(record: dict[str, Any], name: str, converged: str) -> Number:
    """Show an eigenvalue, with its standard error where it has one."""
    error = record[f"{name}_standard_error"]
    said = "" if error is None else f" ± {float(f'{error:.2g}'):g}"
    return marked(f"{marked(show(record[name]), converged=record[converged])}{said}")


def _converged(record: dict[str, Any]) -> str:
    missing = [what for what, key in (("λ_max", "converged"), ("live", "converged_live")) if not record[key]]
    return f"not {', '.join(missing)}" if missing else "yes"
