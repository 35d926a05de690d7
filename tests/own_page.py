"""What docs/own.md shows, and a refusal of it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from s2ap_core.errors import InputError
from s2ap_core.files import code

PAGE = (Path(__file__).parents[1] / "docs" / "own.md").read_text()
EXAMPLE, CONFIG = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)[1] for kind in ("python", "toml"))  # type: ignore[index]


def work_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with the page's files the working directory; nothing in it has been named yet."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(code, "named", set())
    (folder / "mine.py").write_text(EXAMPLE)
    (folder / "mine.toml").write_text(CONFIG)
    return folder


def refusal(call: Callable[[], object]) -> str:
    """The one line of an InputError."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
