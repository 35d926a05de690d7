"""What makes a safetensors file one of ours: a JSON header with the checksum of the header and the tensors.

Nothing here imports torch: mask files are read without it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError, safe_open

from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input

T = TypeVar("T")

HEADER = "s2ap"
"""The entry of a file's metadata that holds the header."""


class Content(NamedTuple):
    """What the checksum covers of one tensor: torch's name of its type, its shape, its bytes in row-major order."""

    dtype: str
    shape: Sequence[int]
    data: memoryview


def is_safetensors(path: Path) -> bool:
    """Return whether the file is a safetensors file by its name or by its first bytes.

    Raises:
        InputError: if it cannot be read.
    """
    check_input(path)
    try:
        with path.open("rb") as file:
            return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a checkpoint file") from error


def peek(path: Path) -> dict[str, Any] | None:
    """Read what the header of a file of ours says, unchecked, and nothing else; None of another tool's file.

    Raises:
        InputError: if it cannot be read, or is a truncated safetensors file.
    """
    if not is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        if HEADER not in metadata:
            return None
        header = json.loads(metadata[HEADER])
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: truncated, or not a safetensors file; copy or make it again") from error
    return header if isinstance(header, dict) else {}


def read(path: Path, framework: str, content: Callable[[T], Content]) -> tuple[dict[str, T], dict[str, Any]]:
    """Read the tensors and the header of a file of ours.

    Args:
        framework: whose tensors to return, ``numpy`` or ``pt``.
        content: what the checksum covers of such a tensor.

    Raises:
        InputError: if the file is missing, truncated, altered, or not one of ours.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework=framework) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata.get(HEADER, "null"))
    # TypeError and AttributeError: a type that numpy does not have.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: truncated, or not a safetensors file; copy or make it again") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: a safetensors file without our header; give --network and --keep for foreign files")
    if header.get("sha256") != checksum({name: content(tensor) for name, tensor in tensors.items()}, header):
        raise InputError(f"{path}: its checksum does not fit, the file was altered; copy or make it again")
    return tensors, header


def checksum(contents: Mapping[str, Content], header: Mapping[str, Any]) -> str:
    """Hash the header, but for its own entry of the checksum, and the tensors in the order of their names (SHA-256)."""
    described = {name: entry for name, entry in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(contents):
        dtype, shape, data = contents[name]
        digest.update(f"{name} {dtype} {list(shape)}\n".encode())
        digest.update(data)
    return digest.hexdigest()
