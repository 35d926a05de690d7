"""Read the settings of a run: a TOML file, or a preset, with overrides on top."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

from s2ap_core.config import Config, override, parse_config
from s2ap_core.errors import InputError
from s2ap_core.presets.compose import presets


def read_config(source: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """The settings of a TOML file or preset, with ``a.b=value`` overrides on top.

    Args:
        source: path of a TOML file, or a preset's name.
        overrides: TOML assignments by dotted key; a value that is no TOML is taken as a string.

    Raises:
        InputError: if there is no such file or preset, it is not TOML, or a key or value does not fit.
    """
    path, known = Path(source), presets()
    if path.is_file():
        settings = _read_toml(path)
    elif str(source) in known:
        settings = known[str(source)].settings
    else:
        close = difflib.get_close_matches(str(source), known, cutoff=0.8)
        hint = f"did you mean {', '.join(close)}" if close else "`s2ap-diag run --list` shows the presets"
        raise InputError(f"{source}: neither a file nor a preset; {hint}")
    return override(parse_config(settings, str(source)), overrides, str(source))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); give a TOML config") from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and nesting as deep
        raise InputError(f"{path}: not valid TOML: {error}") from error
