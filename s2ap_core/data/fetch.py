"""Download published data sets, and see what of them is there.

Downloads are checked against the published checksums by pooch, an optional dependency (the extra
``data``), and go on where they broke off.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2ap_core.data import DATASETS, cifar10, cifar10c, imagenet, load, svhn
from s2ap_core.data.base import reason
from s2ap_core.errors import InputError

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all if known


@dataclass(frozen=True)
class Source:
    """One published file."""

    url: str
    checksum: str  # algorithm:hexadecimal digits
    folder: str  # below the root; of a tar archive, the folder inside it

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2].partition("?")[0]

    @property
    def archive(self) -> bool:
        """Whether the file is to be unpacked."""
        return ".tar" in self.file


SOURCES = {
    "cifar10": (
        Source(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "md5:c58f30108f718f92721af3b95e74349a",
            cifar10.FOLDER,
        ),
    ),
    "svhn": (
        Source(
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
            svhn.FOLDER,
        ),
        Source(
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "md5:eb5a983be6a315427106f1b164d9cef3",
            svhn.FOLDER,
        ),
    ),
    "cifar10c": (
        Source(
            "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1",
            "md5:56bf5dcef84df0e2308c6dcbcbbd8499",
            cifar10c.FOLDER,
        ),
    ),
}

PARTS: dict[str, Callable[[Path | None], Iterator[tuple[Path, Callable[[Path], int]]]]] = {
    "cifar10": cifar10.parts,
    "cifar10c": cifar10c.parts,
    "svhn": svhn.parts,
    "imagenet": imagenet.parts,
}


@dataclass(frozen=True)
class Part:
    """One file or folder of a data set; of an embedded data set, one split."""

    name: str
    there: bool  # whether the file exists, usable or not
    images: int | None  # None where it cannot be used
    problem: str | None  # one line that says why it cannot be used and what to do


def check(name: str, root: Path | None, on_part: Callable[[int, int], None] | None = None) -> list[Part]:
    """Read every part of data set ``name`` below ``root`` and say what is there and what is missing.

    Args:
        name: a key of the registry of data sets.
        root: the folder that holds the data.
        on_part: called after each part with the number read and the number in all.

    Raises:
        InputError: if the data set is unknown, or is read from a folder and ``root`` is none.
    """
    if name not in PARTS:
        data = load(name, root)
        return [Part(f"{split} split", True, data.count(split), None) for split in ("train", "val", "test")]
    parts = []
    expected = list(PARTS[name](root))
    for path, count in expected:
        try:
            parts.append(Part(str(path), True, count(path), None))
        except InputError as error:
            parts.append(Part(str(path), path.exists(), None, str(error)))
        if on_part:
            on_part(len(parts), len(expected))
    return parts


def fetch(name: str, root: Path, progress: Progress | None = None) -> list[Part]:
    """Download data set ``name`` into ``root`` and unpack it, unless it is there already.

    A download that broke off is continued. A file gets its final name only when its checksum agrees.

    Args:
        name: a key of :data:`SOURCES`.
        root: the folder; made if it is not there.
        progress: called with the file's name, the bytes so far and the bytes in all.

    Returns:
        What :func:`check` finds afterwards.

    Raises:
        InputError: if there is nothing to download under this name, pooch is not installed, the download
            fails, its checksum differs, or ``root`` cannot be written.
    """
    if name not in SOURCES:
        if name == imagenet.NAME:
            how = f"get ILSVRC 2012 from image-net.org and {imagenet.LAYOUT}"
            raise InputError(f"imagenet is licensed and cannot be fetched: {how}")
        what = f"data set {name} has nothing to fetch" if name in DATASETS else f"unknown data set {name!r}"
        raise InputError(f"{what}; to be fetched: {', '.join(SOURCES)}")
    try:
        root.mkdir(parents=True, exist_ok=True)
        parts = check(name, root)
        if all(part.problem is None for part in parts):
            return parts
        for source in SOURCES[name]:
            if source.archive:
                archive = download(source, root, progress)
                unpack(archive, root, source.folder)
            else:
                download(source, root / source.folder, progress)
    except OSError as error:
        raise InputError(f"{root}: cannot be written ({reason(error)})") from None
    return check(name, root)


def download(source: Source, folder: Path, progress: Progress | None = None) -> Path:
    """Download one file into ``folder`` unless it is there with the right checksum; return its path.

    Raises:
        InputError: if pooch is not installed, the download fails or the checksum differs.
    """
    try:
        import pooch  # an extra
    except ImportError:
        raise InputError("downloading needs pooch: pip install 's2ap-diag[data]'") from None
    pooch.get_logger().setLevel("WARNING")
    downloader = ResumingDownloader(folder / f"{source.file}.partial", progress)
    try:
        path = pooch.retrieve(
            source.url, known_hash=source.checksum, fname=source.file, path=folder, downloader=downloader
        )
    except ValueError:
        raise InputError(f"{source.url}: the checksum differs from {source.checksum}; fetch it again") from None
    return Path(path)


class ResumingDownloader:
    """The downloader that pooch calls: it keeps what has arrived, and asks only for the rest.

    Args:
        partial: where the bytes are kept until all have arrived.
        progress: called with the file's name, the bytes so far and the bytes in all.
    """

    TRIES = 4  # in a row without a single byte
    PAUSE = 2.0  # seconds before the second try, twice that before the third, ...
    TIMEOUT = 30.0  # seconds without an answer
    CHUNK = 1 << 14  # bytes; what a broken connection leaves of the last chunk is lost

    def __init__(self, partial: Path, progress: Progress | None = None) -> None:
        self.partial, self.progress = partial, progress

    def __call__(self, url: str, output_file: str, _pooch: Any) -> None:
        """Download ``url`` into ``output_file``.

        Raises:
            InputError: if the server refuses, or breaks off again and again; what arrived is kept.
        """
        import requests  # comes with pooch, an extra

        failures = 0
        while True:
            before = self._size()
            try:
                self._continue(url)
                break
            except requests.RequestException as error:
                response = error.response
                if response is not None and 400 <= response.status_code < 500:
                    raise InputError(f"{url}: the server refused ({reason(error)})") from None
                failures = 1 if self._size() > before else failures + 1
                if failures == self.TRIES:
                    line = f"{url}: broke off ({reason(error)}); what arrived is kept, fetch it again"
                    raise InputError(line) from None
                time.sleep(self.PAUSE * failures)
        os.replace(self.partial, output_file)

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _continue(self, url: str) -> None:
        import requests  # comes with pooch, an extra

        start = self._size()
        # Compression on the way would make the bytes of a range mean something else.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with requests.get(url, headers=headers, stream=True, timeout=self.TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                # Nothing is left to send, or the bytes kept are not of this file.
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return
                self.partial.unlink()
                raise requests.ConnectionError("the server has no such range")
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:
                start = 0  # the server sends all of it, whatever was asked
            length = response.headers.get("Content-Length")
            total = start + int(length) if length is not None else None
            with self.partial.open("ab") as file:
                file.truncate(start)
                for chunk in response.iter_content(self.CHUNK):
                    file.write(chunk)
                    if self.progress:
                        self.progress(self.partial.stem, file.tell(), total)


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack ``folder`` from a tar archive into ``root`` and delete the archive.

    All is unpacked elsewhere first, and then put in its place file by file; other files stay.

    Raises:
        InputError: if the archive is broken, reaches outside ``root``, or has no such folder.
    """
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as temporary:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{archive}: cannot be unpacked ({reason(error)}); delete it, fetch again") from None
        unpacked = Path(temporary, folder)
        if not unpacked.is_dir():
            raise InputError(f"{archive}: holds no folder {folder}; delete it, fetch again")
        (root / folder).mkdir(exist_ok=True)
        for file in unpacked.iterdir():
            file.replace(root / folder / file.name)
    archive.unlink()
