"""``s2ap-diag inspect``: what is in these checkpoints?"""

from pathlib import Path
from typing import Any

import click

from s2ap_core.scores import density, masks, score_masks
from s2ap_diag import plots
from s2ap_diag.commands._common import (
    EXISTING,
    emit,
    foreign_options,
    make_table,
    output_options,
    quiet_option,
)
from s2ap_diag.sources import expand, open_checkpoint


@click.command(name="inspect")
@click.argument("checkpoints", nargs=-1, required=True, type=EXISTING)
@foreign_options
@output_options
@quiet_option
def command(
    checkpoints: tuple[Path, ...],
    keep: float | None,
    network: str | None,
    dataset: str | None,
    root: Path | None,
    json_file: str | None,
    csv_file: Path | None,
    plot_file: Path | None,
    quiet: bool,
) -> None:
    """Say what CHECKPOINTS hold; of a single one, layer by layer."""
    del root
    records: list[dict[str, Any]] = []
    for path in expand(checkpoints, "checkpoint"):
        found = open_checkpoint(path, network=network, dataset=dataset, keep=keep)
        layers: list[dict[str, Any]] = [
            {
                "layer": name,
                "entries": mask.numel(),
                "kept": int(mask.sum()),
                "keep": float(mask.float().mean()),
            }
            for name, mask in masks(found.model).items()
        ]
        records.append(
            {
                "checkpoint": str(path),
                **{k: v for k, v in found.header.items() if k != "sha256"},
                "parameters": sum(p.numel() for p in found.model.parameters()),
                "masked_weights": sum(layer["entries"] for layer in layers),
                "kept_weights": sum(layer["kept"] for layer in layers),
                "density": density(found.model) if layers else 1.0,
                "scores": bool(score_masks(found.model)),
                "layers": layers,
            }
        )
    if plot_file is not None:
        last = records[-1]
        with plots.picture(plot_file, plots.COLUMN, max(2.4, 0.13 * len(last["layers"]) + 0.8)) as axes:
            plots.layer_bars(axes, {row["layer"]: row["keep"] for row in last["layers"]}, xlabel="fraction kept")
    emit(records, table_of(records), json_file=json_file, csv_file=csv_file, quiet=quiet)


def table_of(records: list[dict[str, Any]]) -> Any:
    """Layers of a single checkpoint, or one row for each of several."""
    if len(records) == 1:
        (one,) = records
        network = (one.get("network") or {}).get("name")
        known = ("dataset", "method", "minimizer", "stage", "epoch", "format")
        title = f"{one['checkpoint']}: {network}, " + ", ".join(
            f"{k} {one[k]}" for k in known if one.get(k) is not None
        )
        rows = [[r["layer"], r["entries"], r["kept"], round(r["keep"], 5)] for r in one["layers"]]
        rows.append(["all masked", one["masked_weights"], one["kept_weights"], round(one["density"], 5)])
        return make_table(title, ["layer", "entries", "kept", "keep"], rows)
    columns = ["checkpoint", "stage", "epoch", "method", "minimizer", "density", "kept_weights", "scores"]
    rows = [[Path(r["checkpoint"]).name, *(r.get(c) for c in columns[1:])] for r in records]
    return make_table(str(Path(records[0]["checkpoint"]).parent), columns, rows)
