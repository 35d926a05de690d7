"""What the shell completes: presets, grids and settings."""

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


def presets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a preset, or of a TOML file."""
    from s2ap_core.presets.compose import presets as known  # --help needs none of it

    named = [CompletionItem(name, help=preset.title) for name, preset in known().items() if name.startswith(incomplete)]
    return [*named, *_files(incomplete)]


def grids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a grid, or of a TOML file."""
    from s2ap_core.presets.compose import grid_names  # --help needs none of it

    names = [name for name in grid_names() if name.startswith(incomplete)]
    return [*map(CompletionItem, names), *_files(incomplete)]


def runs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a grid, a preset, or a TOML file."""
    named = grids(ctx, param, incomplete)
    known = {item.value for item in named}
    return [*named, *(item for item in presets(ctx, param, incomplete) if item.value not in known)]


def settings(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the key of a setting, and behind ``KEY=`` the values that it can have, where they are words."""
    from s2ap_core.config import setting_names, setting_values  # --help needs none of it

    key, equals, begun = incomplete.partition("=")
    if not equals:
        return [CompletionItem(f"{name}=") for name in setting_names() if name.startswith(key)]
    return [CompletionItem(f"{key}={value}") for value in setting_values(key) if value.startswith(begun)]


def _files(incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")] if incomplete and list(_matching(incomplete)) else []


def _matching(incomplete: str) -> Any:
    path = Path(incomplete)
    folder, begun = (path, "") if incomplete.endswith("/") else (path.parent, path.name)
    return (entry for entry in folder.glob("*") if entry.name.startswith(begun))
