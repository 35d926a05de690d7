"""What a run must find unchanged when it goes on: its settings, images and network, and the code that makes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from s2ap_core import __version__
from s2ap_core.config import Config
from s2ap_core.config.parts import checksum, source_of, sources
from s2ap_core.data import Dataset, Split
from s2ap_core.distributed.group import wait
from s2ap_core.errors import InputError
from s2ap_core.files.atomic import write_file
from s2ap_core.files.record import load_json
from s2ap_core.runs.checkpoints import build_network, describe
from s2ap_core.runs.definitions import checksums, definitions, files_of
from s2ap_core.runs.directory import FORMAT, RunDirectory

FILE = "fingerprint.json"


CODE = "code"
"""The folder of a run that keeps the user's files whose code it runs."""


PACKAGE = Path(__file__).parents[1]
"""The package whose code makes a run."""


SOURCE = "code.source"
"""The key under which the checksums of its definitions stand."""


SETTINGS = "config"
"""The key under which the settings of ``config.toml`` stand."""


FREE = ("title", "data.root")
"""Settings that may change: images are known by their checksums, wherever they lie."""


Changes = dict[str, tuple[Any, Any]]
"""By dotted key: the value before and the value now; None where there is none."""


SHOWN = 3
"""How many differences a message names."""


def identity(config: Config, data: Dataset) -> dict[str, Any]:
    """Collect what a run depends on, by dotted key.

    Settings, checksum of each file of the user's code, number and checksum of each split's images, shape of each
    parameter, version of the code and the checksum of each of its definitions.
    """
    with torch.device("meta"):
        network = build_network(describe(config, data, "pretrain", 0)["network"])
    splits: tuple[Split, ...] = ("train", "val", "test")
    return flat(
        {
            SETTINGS: settings(config),
            "parts": {name: checksum(content) for name, _, content in sources(config.parts)},
            "data": {split: _split(data, split) for split in splits},
            "network": {name: list(parameter.shape) for name, parameter in network.named_parameters()},
            "code": {
                "version": __version__,
                "format": FORMAT,
                "source": checksums(definitions(PACKAGE)),
            },
        }
    )


def settings(config: Config, *, defaults: bool = True) -> dict[str, Any]:
    """Collect the settings that may not change, by dotted key; ``defaults`` says whether those at their default too."""
    entries = flat(config.model_dump(mode="json", exclude_defaults=not defaults))
    return {key: value for key, value in entries.items() if key not in FREE}


def check_config(run: RunDirectory) -> None:
    """Check that ``config.toml`` and the files of the user's code still hold what the run began with.

    Raises:
        InputError: naming what differs, before and now.
    """
    noted = load_json(run.path / FILE, dict, "run it again") if (run.path / FILE).exists() else {}
    now = {f"parts.{name}": checksum(content) for name, _, content in sources(run.config.parts)}
    if edited := differences({key: noted[key] for key in now if key in noted}, {k: now[k] for k in now if k in noted}):
        raise InputError(refusal(run.path, edited))
    changes = differences(settings(run.config), settings(RunDirectory.open(run.path).config))
    if changes:
        raise InputError(refusal(run.path, {f"{key} (config.toml)": values for key, values in changes.items()}))


def note_config(run: RunDirectory) -> None:
    """Write the settings of a run into what it is held to, in place of those that stand there."""
    path = run.path / FILE
    if path.exists():
        noted = flat(load_json(path, dict, "remove it if nothing has changed since the run began"))
        others = {key: value for key, value in noted.items() if not key.startswith(f"{SETTINGS}.")}
        _note(run, flat({SETTINGS: settings(run.config)}) | others)


def _split(data: Dataset, split: Split) -> dict[str, Any] | None:
    try:
        return {"images": data.count(split), "checksum": data.checksum(split)}
    except InputError:  # not every run needs all splits; one that does says itself what is wrong
        return None


def check_unchanged(run: RunDirectory, data: Dataset) -> None:
    """Note what a new run depends on; check that a resumed one finds it unchanged.

    Raises:
        InputError: naming what differs, before and now, and the file where it is code.
    """
    changes = changed(run, data)
    if changes is None:
        _note(run, identity(run.config, data))
    elif changes:
        raise InputError(refusal(run.path, changes))


def accept_changes(run: RunDirectory, data: Dataset) -> None:
    """Let a run go on despite what changed, and note the changes in ``environment.json``."""
    changes = changed(run, data)
    if changes:
        run.record_forced(changes)
        _note(run, identity(run.config, data))
    wait()  # the other processes read what the first has noted


def changed(run: RunDirectory, data: Dataset) -> Changes | None:
    """Compare with what the run began with; None if it has not begun.

    Raises:
        InputError: if its file is damaged.
    """
    path = run.path / FILE
    if not path.exists():
        return None
    before = flat(load_json(path, dict, "remove it if nothing has changed since the run began"))
    now = identity(run.config, data)
    if SOURCE in before:  # an earlier version noted one checksum of all files
        now = {key: value for key, value in now.items() if not key.startswith(SOURCE)}
        now[SOURCE] = "noted for each definition by itself, so that the two cannot be compared"
    said = {f"{SETTINGS}.{key}" for key in settings(run.config, defaults=False)}
    noted = any(key.startswith(f"{SETTINGS}.") for key in before)
    for key in [key for key in now if key.startswith(f"{SETTINGS}.") and key not in before]:
        if not (noted and key in said):  # an earlier version noted no settings, or knew none of this name
            del now[key]
    return {_with_file(key, old): (old, new) for key, (old, new) in differences(before, now).items()}


def _with_file(key: str, before: Any) -> str:
    """Add to a key the file that holds it now, to that of the user's code the copy of what it was; others stay."""
    if key.startswith(f"{SETTINGS}."):
        return f"{key.removeprefix(f'{SETTINGS}.')} (config.toml)"
    file = source_of(key.removeprefix("parts."))
    if file is not None and before is not None:
        return f"{key} ({_copy(file, before)} is a copy)"
    name = key.removeprefix(f"{SOURCE}.")
    if name == key:
        return key
    return f"{name} ({', '.join(files_of(name, before, definitions(PACKAGE))) or 'removed'})"


def _copy(file: Path, checksum: object) -> Path:
    return Path(CODE, f"{file.stem}-{checksum}{file.suffix}")


def _note(run: RunDirectory, entries: Mapping[str, Any]) -> None:
    """Write the entries, and beside them a copy of each file of the user's code, its checksum in its name."""
    for _, file, code in sources(run.config.parts):
        write_file(run.path / _copy(file, checksum(code)), code)
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entries.items())
    write_file(run.path / FILE, "{\n" + ",\n".join(lines) + "\n}\n")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Find the entries of nested settings that differ, by dotted key, in their order."""
    old, new = flat(before), flat(now)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def refusal(run: Path, changes: Changes) -> str:
    """Say in one line why a run may not go on."""
    shown = [f"{key} = {old}, now {new}" for key, (old, new) in list(changes.items())[:SHOWN]]
    if len(changes) > SHOWN:
        shown.append(f"{len(changes) - SHOWN} more")
    return f"{run}: began with {'; '.join(shown)}; use another --out, drop the change, or --force to go on all the same"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to one mapping by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves
