"""Files that are written whole or not at all."""

import os
from contextlib import suppress
from pathlib import Path

from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.writer import writes_files


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all; of several processes of a run, the first does.

    Raises:
        InputError: naming the path, if the folder cannot be written to or the disk is full, or the run that it
            belongs to has vanished.
    """
    if not writes_files():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        lock.make_folder_of(path)
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
