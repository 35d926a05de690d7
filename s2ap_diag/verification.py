"""Is a checkpoint what it claims to be?"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2ap_core.masks.choice import own_keep
from s2ap_core.masks.kinds import layer_name
from s2ap_core.masks.layers import dense_weights, layer_masks, mask_of, masked_layers, raw_weight, score_masks
from s2ap_core.masks.masking import dead_channels, masks
from s2ap_core.masks.parametrization import FixedMask, ScoreMask
from s2ap_core.masks.taps import blind_taps, count_blind
from s2ap_core.masks.topk import n_dropped
from s2ap_core.methods import METHODS
from s2ap_core.methods.harp import keep_floor
from s2ap_core.runs.checkpoints import Checkpoint, build_network


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (``violation``) or worth knowing (``note``)."""

    kind: Literal["violation", "note"]
    layer: str
    message: str

    def __str__(self) -> str:
        where = f"{self.layer}: " if self.layer else ""
        return f"{self.kind}: {where}{self.message}"


def verify(checkpoint: Checkpoint, search: Checkpoint | None = None) -> list[Finding]:
    """List every finding on a checkpoint's masks, scores and weights.

    Args:
        checkpoint: with masks or without.
        search: the search's result that a finetuned ``checkpoint`` came from, if it is at hand.
    """
    model = checkpoint.model
    bits = masks(model)
    if not bits:
        return [Finding("note", "", "a dense network: it has no mask")]
    return [
        *_unusable_tensors(model),
        *wrong_counts(checkpoint.path, checkpoint.header, bits),
        *_nonzero_outside(model),
        *_dead(model, bits),
        *_blind(checkpoint),
        *_ties(model),
        *_unmasked(model),
        *(_changed(bits, masks(search.model)) if search is not None else ()),
    ]


def _unusable_tensors(model: nn.Module) -> Iterator[Finding]:
    for name, tensor in model.state_dict().items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            yield Finding("violation", name, f"{bad} values are NaN or infinite; restore an earlier epoch")


def wrong_counts(
    path: Path, header: Mapping[str, Any], bits: Mapping[str, Tensor], *, uniform: bool | None = None
) -> Iterator[Finding]:
    """Find masks that keep more or fewer weights than the header's ``keep`` and ``keep_layers`` say.

    Args:
        path: of the checkpoint, whose name tells whether its search has ended.
        bits: by weight name.
        uniform: whether the method keeps the same fraction of each layer; None to ask the method that the header names.
    """
    keep = header.get("keep")
    if header.get("keep_is_counted"):
        yield Finding("note", "", f"keeps {keep:.4g} of its weights, and does not say how many it should; give --keep")
        return
    if keep is None or str(header.get("method")).endswith("-channels"):  # whose budget is in FLOPs
        return
    own = _own_keeps(header, bits)
    for name, of_layer in own.items():
        yield from _wrong_count(name, bits[name], of_layer)
    shared = {name: b for name, b in bits.items() if name not in own}
    method = str(header.get("method"))
    if uniform is None:
        uniform = getattr(METHODS.find(method) if METHODS.knows(method) else None, "uniform", True)
    if uniform:
        for name, b in shared.items():
            yield from _wrong_count(name, b, keep)
        return
    kept, entries = sum(int(b.sum()) for b in shared.values()), sum(b.numel() for b in shared.values())
    # Only the result of the search has to meet HARP's budget; before that the rates may keep more or less.
    expected = entries - n_dropped(entries, keep)
    learned = method.startswith("harp")
    if kept != expected and not (learned and path.name.startswith("prune-epoch-")):
        yield Finding("violation", "", f"keeps {kept} of {entries} weights; keep {keep:g} is {expected}")
    low = keep_floor(keep) if learned else 0.0
    for name, b in shared.items():
        if int(b.sum()) < int(low * b.numel()) - 1:
            yield Finding("violation", name, f"keeps {int(b.sum())} of {b.numel()}, less than HARP's floor {low:g}")


def allowed_density(header: Mapping[str, Any], bits: Mapping[str, Tensor]) -> float:
    """Compute the share of masked weights that the header's ``keep`` and ``keep_layers`` leave, but for rounding."""
    own, keep = _own_keeps(header, bits), float(header["keep"])
    if not own:
        return keep
    return sum(own.get(name, keep) * b.numel() for name, b in bits.items()) / sum(b.numel() for b in bits.values())


def _own_keeps(header: Mapping[str, Any], weights: Iterable[str]) -> dict[str, float]:
    """Return the keep rates that the header's ``keep_layers`` gives layers, by weight name."""
    keeps = header.get("keep_layers") or {}
    return {weight: keep for weight in weights if (keep := own_keep(layer_name(weight), keeps)) is not None}


def _wrong_count(name: str, bits: Tensor, keep: float) -> Iterator[Finding]:
    kept, entries = int(bits.sum()), bits.numel()
    expected = entries - n_dropped(entries, keep)
    if kept != expected:
        yield Finding("violation", name, f"keeps {kept} of {entries}; keep {keep:g} is {expected}")


def _nonzero_outside(model: nn.Module) -> Iterator[Finding]:
    for name, layer in masked_layers(model).items():
        mask = mask_of(layer)
        if isinstance(mask, FixedMask):
            outside = int(((raw_weight(layer) != 0) & ~mask.mask_bits).sum())
            if outside:
                yield Finding("violation", name, f"{outside} weights outside the mask are not zero")


def _dead(model: nn.Module, bits: Mapping[str, Tensor]) -> Iterator[Finding]:
    for layer in masked_layers(model).values():
        name = layer.tensor("weight")
        b = bits[name]
        if not b.any():
            yield Finding("violation", name, "dead: no weight is kept, and nothing passes this layer")
            continue
        dead_out, dead_in = dead_channels(layer, b), ~layer.by_input(b).flatten(1).any(1)
        if dead_out.any() or dead_in.any():
            outputs, inputs = (f"{int(dead.sum())} of {len(dead)}" for dead in (dead_out, dead_in))
            yield Finding("note", name, f"{outputs} output and {inputs} input channels are dead")


@dataclass(frozen=True)
class BlindScores:
    """The scores that no image can give a gradient: those of convolutions' taps that see nothing but padding.

    Attributes:
        layers: how many by layer name, 0 in linear ones; under a fixed mask its entries are counted.
        count, share: how many in all, and of all scores.
    """

    layers: dict[str, int]
    count: int
    share: float


def blind_scores(checkpoint: Checkpoint) -> BlindScores | None:
    """Count the blind scores of a checkpoint with masks, on images of the size that its network is for.

    Returns:
        None where the file does not say that size, as other tools' do not, or where a network from outside does not
        run without data.
    """
    network = checkpoint.header.get("network") or {}
    channels, size = network.get("input_channels"), network.get("input_size")
    if channels is None or size is None:
        return None
    with torch.device("meta"):  # shapes alone are needed, whatever size a file asks for
        model, image = build_network(network).eval(), torch.empty(1, channels, size, size)
    try:
        taps = blind_taps(model, image)
    except RuntimeError:
        return None
    of_layer = layer_masks(checkpoint.model)
    layers = {name: count_blind(mask, taps[name]) if name in taps else 0 for name, mask in of_layer.items()}
    scores = sum(m.scores.numel() if isinstance(m, ScoreMask) else m.mask_bits.numel() for m in of_layer.values())
    count = sum(layers.values())
    return BlindScores(layers, count, count / max(scores, 1))


def _blind(checkpoint: Checkpoint) -> Iterator[Finding]:
    blind = blind_scores(checkpoint)
    if blind is not None and blind.count:
        most = max(blind.layers, key=blind.layers.__getitem__)
        which = f"{blind.count} scores ({blind.share:.1%}), most of them in {most}"
        yield Finding("note", "", f"{which}, never get a gradient: their taps see nothing but padding")


def _unmasked(model: nn.Module) -> Iterator[Finding]:
    dense = dense_weights(model)
    if dense:
        entries = sum(dense.values()) + sum(raw_weight(layer).numel() for layer in masked_layers(model).values())
        share = 100 * sum(dense.values()) / entries
        yield Finding("note", "", f"dense stay {', '.join(dense)}: {share:.2g} % of all weights")


def _ties(model: nn.Module) -> Iterator[Finding]:
    for name, mask in score_masks(model).items():
        tied = _tied_at_threshold(mask)
        if tied:
            yield Finding("note", name, f"{tied} scores tie at the threshold: which of them stay is a matter of order")


@torch.no_grad()
def _tied_at_threshold(mask: ScoreMask) -> int:
    total = 0
    for magnitude, kept in zip(mask.split(mask.scores.abs()), mask.split(mask.mask().bool()), strict=True):
        if kept.any():
            tied = magnitude == magnitude[kept].min()
            total += int(tied.sum()) if bool((tied & ~kept).any()) else 0
    return total


def _changed(bits: Mapping[str, Tensor], searched: Mapping[str, Tensor]) -> Iterator[Finding]:
    for name, b in bits.items():
        if name in searched and searched[name].shape == b.shape:
            flipped = int((b != searched[name]).sum())
            if flipped:
                yield Finding("violation", name, f"{flipped} mask entries differ from the search's result")
