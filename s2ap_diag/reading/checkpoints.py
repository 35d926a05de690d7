"""Files that hold weights, ours and other tools'."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2ap_core.errors import InputError
from s2ap_core.foreign.formats import StateDict, is_binary
from s2ap_core.foreign.network import foreign_checkpoint, foreign_masks, masks_without_weights
from s2ap_core.models import NETWORKS
from s2ap_core.runs.checkpoints import Checkpoint, build_checkpoint, check_header
from s2ap_diag.reading.files import Kind, epoch_of
from s2ap_diag.reading.masks import MaskFile, plain_masks
from s2ap_diag.stability.packed import PackedMasks


@dataclass(frozen=True, eq=False)
class OwnFile:
    """A checkpoint of ours: tensors under plain names, and a header that says how to build the network."""

    path: Path
    header: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def kind(self) -> Kind:
        """Say that this is a checkpoint."""
        return "checkpoint"

    def as_checkpoint(self, device: torch.device | str = "cpu") -> Checkpoint:
        """Build the model with its masks, in eval mode.

        Raises:
            InputError: as :func:`s2ap_core.runs.checkpoints.build_checkpoint`.
        """
        return build_checkpoint(self.path, self.tensors, self.header, device)

    def as_masks(self) -> MaskFile:
        """Select the masks, without building the network.

        Raises:
            InputError: if there are none, or they do not fit the network.
        """
        if not any(name.endswith((".scores", ".mask")) for name in self.tensors):
            stage = self.header.get("stage")
            raise InputError(f"{self.path}: holds no masks (stage {stage}); masks lie in RUN/masks")
        try:
            check_header(self.header)
            masks = masks_without_weights(self.header["network"], self.tensors, self.header["keep"])
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
        return MaskFile(self.path, self.header, PackedMasks.from_masks(masks))


@dataclass(frozen=True, eq=False)
class ForeignFile:
    """A checkpoint of another tool, and what a user adds because the file does not say it.

    Attributes:
        network: a key of NETWORKS, None to recognise it.
        dataset: goes into the header.
        keep: fraction kept.
        width: of the network, None to take it from the shapes.
    """

    state: StateDict
    network: str | None = None
    dataset: str | None = None
    keep: float | None = None
    width: int | None = None

    @property
    def kind(self) -> Kind:
        """Take a file of 0 and 1 for masks unless a network is named, any other for a checkpoint."""
        called = self.state.format != "dense" or self.network is not None
        return "checkpoint" if called or not all(map(is_binary, self.state.tensors.values())) else "masks"

    def as_checkpoint(self, device: torch.device | str = "cpu") -> Checkpoint:
        """Build the model with its masks, in eval mode.

        Raises:
            InputError: as :func:`s2ap_core.foreign.network.foreign_checkpoint`.
        """
        checkpoint = foreign_checkpoint(
            self.state, network=self.network, dataset=self.dataset, keep=self.keep, width=self.width, device=device
        )
        return Checkpoint(checkpoint.path, checkpoint.model, self._with_epoch(checkpoint.header))

    def as_masks(self) -> MaskFile:
        """Select the masks, without building the network.

        Raises:
            InputError: as :func:`s2ap_core.foreign.network.foreign_masks`, or if masks are empty or two of one layer.
        """
        path, tensors = self.state.path, self.state.tensors
        if self.kind == "masks":
            try:
                return plain_masks(path, {name: mask.numpy() for name, mask in tensors.items()}, self.state.epoch)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        masks, header = foreign_masks(self.state, network=self.network, keep=self.keep, width=self.width)
        return MaskFile(path, self._with_epoch(header), PackedMasks.from_masks(masks))

    def _with_epoch(self, header: dict[str, Any]) -> dict[str, Any]:
        return header if header["epoch"] is not None else header | {"epoch": epoch_of(self.state.path, NETWORKS)}
