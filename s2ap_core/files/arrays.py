"""numpy's .npz and .npy files, written whole or not at all, and read without trusting what they declare."""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from s2ap_core.files.atomic import write_file
from s2ap_core.files.kinds import check_input

UNPACKED = 256 << 20
"""Bytes that a packed file may hold whatever its own size."""


RATIO = 100
"""What it may hold at most for each of its bytes; masks of a tenth kept pack to a twentieth at best."""


def unpacked_size(path: Path) -> int:
    """Count the bytes that a file holds, and refuse an archive that unpacks to far more than it has.

    Raises:
        ValueError: saying how large it would be.
        OSError: if the file cannot be read.
        zipfile.BadZipFile: if the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        return os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(UNPACKED, RATIO * os.path.getsize(path)):
        raise ValueError(f"it unpacks to {unpacked:,} bytes, over {RATIO} times its size")
    return unpacked


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Load the arrays of a .npz file by name, or the one of a .npy file under the name ``weight``; no objects.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is a pipe or a device.
        ValueError: if it is damaged, of another format, holds objects, or unpacks to far more bytes than it has.
    """
    check_input(path)
    try:
        unpacked_size(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"weight": loaded}
        with loaded:
            arrays = dict(loaded)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged archives make zipfile and numpy raise nearly anything
        raise ValueError(f"no arrays of numpy: {error}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError("it holds members that are no arrays")
    return arrays


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as a .npz file.

    Raises:
        InputError: as :func:`s2ap_core.files.atomic.write_file`.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_file(path, buffer.getvalue())


def file_checksum(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, by which what was measured of it is known again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
