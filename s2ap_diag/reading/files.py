"""Where checkpoints and masks lie: the files that paths to files, folders and runs stand for."""

import itertools
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input

Kind = Literal["checkpoint", "masks"]


FOLDERS: dict[Kind, str] = {"checkpoint": "ckpt", "masks": "masks"}
"""The folder of a run that holds each kind."""


_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".tar")


ARRAYS = (".npz", ".npy")


SUFFIXES: dict[Kind, tuple[str, ...]] = {"checkpoint": _CHECKPOINTS, "masks": (*_CHECKPOINTS, *ARRAYS)}


NUMBERED = ("wrn_28_4",)
"""Names of networks that end in a number, which is no epoch."""


_EPOCH = re.compile(r"[-_ ]?epoch[-_ ]?(\d+)", re.IGNORECASE)


_LAST_NUMBER = re.compile(r"(?:^|[-_ ])(\d+)$")


_CHECKSUM = re.compile(r"-[0-9a-f]{8}$")


COMFORT = 20
"""Characters of a name up to which it heads a column whole."""


_BEST = re.compile(r"(?:^|[-_ ])best$", re.IGNORECASE)


def expand(paths: Sequence[Path], kind: Kind) -> list[Path]:
    """List the files that paths stand for, in the order given.

    A file stands for itself, a run for its ``ckpt`` or ``masks`` folder, a folder for its files of a
    known suffix in the order of the numbers in their names, and those called best after the others;
    states of a stage (``state-*``), hidden and temporary files are left out. Folders within folders are
    not entered.

    Raises:
        InputError: if a path is missing or cannot be read, or a folder holds no such file.
    """
    return [file for path in paths for file in _files(path, kind)]


def _files(path: Path, kind: Kind) -> list[Path]:
    if os.path.isfile(path):  # pathlib's raises for names that no file can have
        return [path]
    if not os.path.isdir(path):
        check_input(path)
        raise InputError(f"{path}: no such file or folder")
    folder = path / FOLDERS[kind] if any((path / name).is_dir() for name in FOLDERS.values()) else path
    try:
        files = [
            file
            for file in folder.iterdir()
            if file.suffix in SUFFIXES[kind] and not file.name.startswith((".", "state-")) and file.is_file()
        ]
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no such folder; the run has not saved any {kind} yet") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); give the files") from error
    if not files:
        raise InputError(f"{folder}: holds no {kind} file ({', '.join(SUFFIXES[kind])})")
    return sorted(files, key=lambda file: (is_best(file), _natural(file.name), file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Make a key that sorts epoch-2 before epoch-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Name paths by as much of their ends as tells them apart, without the suffix of checkpoints.

    >>> told_apart([Path("runs/a/ckpt/prune-best.safetensors"), Path("runs/b/ckpt/prune-best.safetensors")])
    ['a/ckpt/prune-best', 'b/ckpt/prune-best']
    """
    whole = [path.absolute() for path in paths]
    bare = [path.with_suffix("") if path.suffix in _CHECKPOINTS else path for path in whole]
    if len(set(bare)) == len(set(whole)):
        whole = bare
    depth = 1
    while len({path.parts[-depth:] for path in whole}) < len(set(whole)):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in whole]


def told_shortly(names: Sequence[str]) -> list[str]:
    """Name what is called at length by the words in which the names differ, or by letters; short names stay.

    The checksum that ends the name of a sweep's run is no word where the others tell the names apart.

    >>> told_shortly(["svhn-harp-orig-90-fold0-s0-045c95db", "svhn-harp-s2ap-plain-90-fold0-s0-a7fa7034"])
    ['orig', 's2ap-plain']
    >>> told_shortly(["svhn-resnet18-harp-s2ap-90", "svhn-resnet18-harp-s2ap-plain-90"])
    ['s2ap', 's2ap-plain']
    >>> told_shortly(["the_narrow_network_again", "the_wide_network_of_may"])
    ['A', 'B']
    """
    if len(names) < 2 or max(map(len, names)) <= COMFORT:
        return list(names)
    bare = [_CHECKSUM.sub("", name) for name in names]
    words = [re.split("[-/]", name) for name in (bare if len(set(bare)) == len(set(names)) else names)]
    same = set.intersection(*map(set, words))
    if not all(set(one) - same for one in words):  # one has no word of its own and is called by the one before
        begins = len([*itertools.takewhile(lambda those: len(set(those)) == 1, zip(*words, strict=False))])
        same -= set(words[0][max(begins - 1, 0) : begins])
    told = ["-".join(word for word in one if word not in same) for one in words]
    if all(told) and len(set(told)) == len(set(names)) and max(map(len, told)) <= COMFORT:
        return told
    return list(string.ascii_uppercase[: len(names)]) if len(names) <= len(string.ascii_uppercase) else list(names)


def which_is_which(names: Sequence[str], told: Sequence[str]) -> list[str]:
    """Say what each of the names that were made short stands for.

    >>> which_is_which(["svhn-harp-orig-90", "svhn-harp-s2ap-90"], ["orig", "s2ap"])
    ['orig: svhn-harp-orig-90', 's2ap: svhn-harp-s2ap-90']
    """
    return [f"{one}: {name}" for name, one in zip(names, told, strict=True) if one != name]


def epoch_of(path: Path, networks: Iterable[str] = NUMBERED) -> int | None:
    """Return the epoch that a file's name says: the number behind ``epoch``, else one that stands alone or last.

    Args:
        networks: names that may be part of the file's, whose numbers are no epochs.

    >>> [epoch_of(Path(p)) for p in ("prune-epoch-012.safetensors", "mask_7.pth.tar", "3.npz", "resnet18.pt")]
    [12, 7, 3, None]
    """
    stem = path.name.partition(".")[0].lower()
    for network in networks:
        stem = stem.replace(network, "")
    named = _EPOCH.search(stem) or _LAST_NUMBER.search(stem)
    return int(named[1]) if named else None


def how_read(headers: Iterable[tuple[Path, Mapping[str, Any]]]) -> list[str]:
    """Say of other tools' files how they were read, a line for all that were read alike.

    >>> how_read([(Path("a.pt"), {"read": "tensors under net"}), (Path("b.pt"), {"read": "tensors under net"})])
    ['a.pt and 1 more: tensors under net']
    """
    alike: dict[str, list[Path]] = {}
    for path, header in headers:
        if header.get("read"):
            alike.setdefault(header["read"], []).append(path)
    more = {how: f" and {len(paths) - 1} more" if len(paths) > 1 else "" for how, paths in alike.items()}
    return [f"{paths[0]}{more[how]}: {how}" for how, paths in alike.items()]


def is_best(path: Path) -> bool:
    """Say whether a file's name calls it the best, as ours call the epoch that a stage handed on."""
    return _BEST.search(path.name.partition(".")[0]) is not None


def series_of(path: Path) -> str:
    """Return what a file's name says besides its epoch: the same for all checkpoints of one stage in a folder.

    >>> [series_of(Path(p)) for p in ("prune-epoch-012.safetensors", "prune-best.safetensors", "resnet18.pt")]
    ['prune', 'prune', 'resnet18']
    """
    stem = path.name.partition(".")[0]
    if epoch_of(path) is None:
        return _BEST.sub("", stem)
    return (_EPOCH if _EPOCH.search(stem) else _LAST_NUMBER).sub("", stem)
