"""JSON files of a run, read without trusting what they hold; and TOML of anyone."""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from s2ap_core.errors import InputError
from s2ap_core.files.kinds import check_input

Record = TypeVar("Record", dict[str, Any], list[Any])


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        tomllib.TOMLDecodeError: if it is none.
        ValueError: if it is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def load_json(path: Path, kind: type[Record], remedy: str) -> Record:
    """Read a JSON file that holds an object (``dict``) or an array (``list``).

    Raises:
        InputError: if it is missing, no file, not JSON, or holds something else; the message ends with ``remedy``.
    """
    check_input(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; {remedy}") from error
    except (OSError, ValueError, RecursionError) as error:  # the last of JSON that is nested too deeply
        raise InputError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(record, kind):
        raise InputError(f"{path}: holds no JSON {'object' if kind is dict else 'array'}; {remedy}")
    return record
