"""``s2ap-diag inspect``: what is in these checkpoints?"""

from pathlib import Path
from typing import Any

from s2ap_core.masks.layers import dense_weights, masked_layers, score_masks
from s2ap_core.masks.masking import density, masks
from s2ap_diag.curvature.reach import LayerReach, perturbation_reach
from s2ap_diag.output.destinations import Output
from s2ap_diag.output.tables import Table, make_table
from s2ap_diag.reading.files import expand, how_read
from s2ap_diag.reading.source import Source
from s2ap_diag.verification import blind_scores


def run_command(
    checkpoints: tuple[Path, ...],
    gamma: float | None,
    source: Source,
    output: Output,
) -> None:
    """Count what each checkpoint keeps, and show it."""
    records: list[dict[str, Any]] = []
    for path in expand(checkpoints, "checkpoint"):
        checkpoint = source.open(path)
        blind = blind_scores(checkpoint)
        radius = gamma if gamma is not None else checkpoint.header.get("gamma")
        reach = {}
        if isinstance(radius, float) and score_masks(checkpoint.model):
            reach = perturbation_reach(checkpoint.model, radius)
        bits = masks(checkpoint.model)
        layers: list[dict[str, Any]] = [
            {
                "layer": layer.tensor("weight"),
                "entries": mask.numel(),
                "kept": int(mask.sum()),
                "keep": float(mask.float().mean()),
                "blind": None if blind is None else blind.layers[name],
                **_reached(reach.get(name)),
            }
            for name, layer in masked_layers(checkpoint.model).items()
            for mask in [bits[layer.tensor("weight")]]
        ]
        records.append(
            {
                "checkpoint": str(path),
                **{k: v for k, v in checkpoint.header.items() if k != "sha256"},
                "parameters": sum(p.numel() for p in checkpoint.model.parameters()),
                "masked_weights": sum(layer["entries"] for layer in layers),
                "kept_weights": sum(layer["kept"] for layer in layers) if layers else None,
                "density": density(checkpoint.model) if layers else 1.0,
                "gamma": radius,
                "scores": bool(score_masks(checkpoint.model)),
                "blind_scores": None if blind is None else blind.count,
                "blind_share": None if blind is None else blind.share,
                "layers": layers,
                "dense": dense_weights(checkpoint.model),
            }
        )
    output.emit(records, table_of(records), notes=how_read((Path(r["checkpoint"]), r) for r in records))
    if output.plot is not None:
        from s2ap_diag.output import plots  # matplotlib takes as long as the rest

        last = records[-1]
        with plots.picture(output.plot, plots.COLUMN, max(2.4, 0.13 * len(last["layers"]) + 0.8)) as axes:
            plots.layer_bars(axes, {row["layer"]: row["keep"] for row in last["layers"]}, xlabel="fraction kept")


def table_of(records: list[dict[str, Any]]) -> Table:
    """List the layers of a single checkpoint, or make a row for each of several.

    ``blind`` are scores whose taps see nothing but padding; ? where the file does not say the images' size.
    """
    if len(records) == 1:
        (one,) = records
        network = (one.get("network") or {}).get("name")
        known = ("dataset", "method", "minimizer", "stage", "epoch", "format")
        title = f"{one['checkpoint']}: {network}, " + ", ".join(
            f"{k} {one[k]}" for k in known if one.get(k) is not None
        )
        rows = [[r["layer"], r["entries"], r["kept"], round(r["keep"], 5), _known(r["blind"])] for r in one["layers"]]
        columns = ["layer", "entries", "kept", "keep", "blind"]
        if not rows:
            return make_table(f"{title}; dense", ["parameters"], [[one["parameters"]]])
        blind = _known(one["blind_scores"], one["blind_share"])
        rows.append(["all masked", one["masked_weights"], one["kept_weights"], round(one["density"], 5), blind])
        if any(r["flippable"] is not None for r in one["layers"]):
            columns += [f"flips at gamma {one['gamma']:g}", "gamma of a flip"]
            rows[:-1] = [
                [*row, r["flippable"], "-" if r["gamma_of_a_flip"] is None else f"{r['gamma_of_a_flip']:.2g}"]
                for row, r in zip(rows, one["layers"], strict=False)
            ]
            rows[-1] += [sum(r["flippable"] for r in one["layers"]), ""]
        dense = ", ".join(one["dense"])
        return make_table(f"{title}; dense {dense}" if dense else title, columns, rows)
    columns = ["checkpoint", "stage", "epoch", "method", "minimizer", "density", "kept_weights", "scores"]
    rows = [
        [Path(r["checkpoint"]).name, *(r.get(c) for c in columns[1:]), _known(r["blind_scores"], r["blind_share"])]
        for r in records
    ]
    gives_way = ["scores", "method", "minimizer", "stage"]
    return make_table(str(Path(records[0]["checkpoint"]).parent), [*columns, "blind"], rows, gives_way=gives_way)


def _reached(reach: LayerReach | None) -> dict[str, Any]:
    return {
        "flippable": None if reach is None else reach.flippable,
        "gamma_of_a_flip": None if reach is None else reach.needed,
    }


def _known(count: int | None, share: float | None = None) -> str:
    if count is None:
        return "?"
    return f"{count}" if share is None else f"{count} ({share:.1%})"
