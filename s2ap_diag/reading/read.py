"""Open any file, ours or another tool's, once, as what it is: a checkpoint or masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from s2ap_core.files.code import is_code, name_by_user
from s2ap_core.files.header import peek
from s2ap_diag.reading.files import ARRAYS, Kind
from s2ap_diag.reading.masks import MaskFile, read_arrays, read_packed

if TYPE_CHECKING:
    import torch

    from s2ap_core.runs.checkpoints import Checkpoint


class Content(Protocol):
    """What a file holds, read and with its checksum verified."""

    @property
    def kind(self) -> Kind:
        """Say what the file is taken for by default."""

    def as_checkpoint(self, device: "torch.device | str" = "cpu") -> "Checkpoint":
        """Build the model with its masks, in eval mode.

        Raises:
            InputError: if the file holds no weights, does not say what it must, or does not fit its network.
        """

    def as_masks(self) -> MaskFile:
        """Select the masks, without building the network.

        Raises:
            InputError: if the file holds none, or does not say what it must.
        """


def read(
    path: Path,
    *,
    network: str | None = None,
    dataset: str | None = None,
    keep: float | None = None,
    width: int | None = None,
) -> Content:
    """Read a file: masks or a checkpoint of ours, another tool's checkpoint, or plain masks.

    Plain masks are .npz, .npy (one array, named ``weight``), safetensors and pickled dicts of tensors, all boolean
    or 0 and 1. Those that need no torch are read without it.

    Args:
        path: the file.
        network: a key of NETWORKS or the place of a factory; this and the rest are what another tool's file does not
            say, ours say it themselves, but code that they name runs only if it is named here too.
        dataset: what it was made with.
        keep: fraction kept.
        width: of the network.

    Raises:
        InputError: if the file is missing or damaged, or holds neither.
    """
    name_by_user(network, dataset)
    if path.suffix in ARRAYS:
        return read_arrays(path)
    header = peek(path)
    if header is not None and "shapes" in header:
        return read_packed(path)
    # Not at the top, since mask files are read without torch, which takes seconds to import.
    from s2ap_core.files.tensors import load_tensors
    from s2ap_core.foreign.formats import read_state
    from s2ap_diag.reading.checkpoints import ForeignFile, OwnFile

    if header is not None:
        tensors, header = load_tensors(path)
        described = header.get("network")
        if network is not None and isinstance(described, dict) and is_code(described.get("name")):
            header = header | {"network": described | {"name": network}}  # the user says where its code is now
        return OwnFile(path, header, tensors)
    return ForeignFile(read_state(path), network, dataset, keep, width)
