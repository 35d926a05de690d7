"""The keep rates of a transformer's units, block by block over the search, read from the masks of each epoch."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from figures.drawings import TEXT_WIDTH
from figures.matching import PlacedRun
from s2ap_core.files.packed import PackedMask, load_packed
from s2ap_core.masks.kinds import layer_name
from s2ap_core.methods.harp_units import packed_heads
from s2ap_core.runs import course
from s2ap_core.runs.checkpoints import build_network
from s2ap_core.runs.directory import RunDirectory
from s2ap_diag.comparison.arms import seed_of
from s2ap_diag.output import plots

IN_BLOCK = re.compile(r"(?:.*\.)?(\d+)\.(?:.*\.)?([^.]+)")
"""The name of a layer of a block: the block's number, and the layer's own name."""

TIED = "q, k"

LEARNED = ("harp-units", "harp-heads", "harp")
"""Methods that learn rates, the finest first: the picture follows one of them over the search."""

FIXED = {"hydra": "uniform", "hydra-erk": "ERK", "hydra-spectral": "spectra"}
"""Methods whose rates the last columns show beside."""

FACTOR = 4.0
"""Rates over the budget's that have the strongest colours, and one over it."""


def rates_over_epochs(placed: Iterable[PlacedRun]) -> pd.DataFrame:
    """Read which fraction each unit keeps, after each epoch of a search that learns rates, else after the last.

    Returns:
        Columns ``method, arm, keep, seed, fold, epoch, block, unit, rate``; layers outside of blocks have no block.

    Raises:
        InputError: if a mask is missing or damaged.
    """
    rows = []
    for one in placed:
        config = one.run.config
        seed, fold = seed_of(one.run)
        run, last = RunDirectory(one.run.path, config), course.search_epochs(config)
        for epoch in range(last + 1) if one.cell.method in LEARNED else [last]:
            for block, unit, rate in unit_rates(*load_packed(run.masks(epoch))):
                place = (one.cell.method, one.arm, config.method.keep, seed, fold, epoch)
                rows.append((*place, block, unit, rate))
    columns = ["method", "arm", "keep", "seed", "fold", "epoch", "block", "unit", "rate"]
    return pd.DataFrame(rows, columns=columns).astype({"block": "Int64"})


def unit_rates(masks: Mapping[str, PackedMask], header: Mapping[str, Any]) -> Iterator[tuple[int | None, str, float]]:
    """Compute block, unit and the fraction kept of each unit; queries and keys are one, values another."""
    packed = _packed(json.dumps(header["network"]))
    for weight, mask in masks.items():
        name = layer_name(weight)
        found = IN_BLOCK.fullmatch(name)
        block, layer = (int(found[1]), found[2]) if found else (None, name)
        if name in packed:
            kept = mask.unpack().reshape(3, -1).mean(axis=1)
            yield block, TIED, float(kept[:2].mean())
            yield block, "v", float(kept[2])
        else:
            yield block, layer, mask.kept / mask.entries


@lru_cache(maxsize=8)
def _packed(network: str) -> frozenset[str]:
    with torch.device("meta"):
        return frozenset(packed_heads(build_network(json.loads(network))))


def draw_rates(rates: pd.DataFrame, files: Sequence[Path]) -> None:
    """Draw a row of maps for each budget, a map for each unit: blocks by epochs, the rate over the budget's in colour.

    Behind the epochs of the search that learns rates stand the columns of the fixed ones.

    Args:
        rates: of one arm, see :func:`rates_over_epochs`; means over seeds are shown.
    """
    rates = rates[rates["block"].notna()]
    learned = next((method for method in LEARNED if method in set(rates["method"])), None)
    budgets = sorted(rates["keep"].unique(), reverse=True)
    units = list(dict.fromkeys(rates["unit"]))
    colours: dict[str, Any] = {"cmap": "RdBu_r", "norm": mpl.colors.LogNorm(1 / FACTOR, FACTOR)}
    with plots.canvas(files, TEXT_WIDTH, 0.5 + 1.35 * len(budgets)) as figure:
        axes = figure.subplots(len(budgets), len(units), squeeze=False, sharex=True, sharey=True)
        for row, keep in zip(axes, budgets, strict=True):
            of_budget = rates[rates["keep"] == keep]
            for panel, unit in zip(row, units, strict=True):
                table = _table(of_budget[of_budget["unit"] == unit], learned)
                panel.imshow(table.to_numpy(float) / keep, aspect="auto", **colours)
                _label(panel, table)
            row[0].set_ylabel(f"keep {keep:g}\nblock")
        for panel, unit in zip(axes[0], units, strict=True):
            panel.set_title(unit)
        if learned is not None:
            figure.supxlabel(f"epoch of {learned}, then fixed rates", fontsize=7)
        scale = figure.colorbar(mpl.cm.ScalarMappable(**colours), ax=axes, label="rate / keep", extend="both")
        ticks = [1 / FACTOR, 0.5, 1, 2, FACTOR]
        scale.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
        scale.minorticks_off()


def _table(rates: pd.DataFrame, learned: str | None) -> pd.DataFrame:
    """Make the table of a map: a line for each block; columns of epochs, an empty one, and those of fixed rates."""
    epochs = rates[rates["method"] == learned].pivot_table(index="block", columns="epoch", values="rate")
    fixed = rates[rates["method"].isin(FIXED)].pivot_table(index="block", columns="method", values="rate")
    ordered = fixed[[method for method in FIXED if method in fixed]].rename(columns=FIXED)
    epochs[""] = np.nan
    return epochs.join(ordered, how="outer")


def _label(panel: Axes, table: pd.DataFrame) -> None:
    names = [str(column) for column in table.columns]
    panel.set_xticks(range(len(names)), names, fontsize=5.5)
    for label in panel.get_xticklabels():
        label.set_rotation(0 if label.get_text().isdigit() else 90)
    panel.set_yticks(range(0, len(table), 2), [str(block) for block in table.index[::2]])
    panel.tick_params(length=0)
    panel.grid(visible=False)
