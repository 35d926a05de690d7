"""The commands called in this process, and a run of seconds for them."""

from pathlib import Path

from click.testing import CliRunner

from s2ap_diag.commands import main


def invoke(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def tiny_run(folder: Path, settings: str) -> Path:
    """Make a run of a TOML of settings through the command line."""
    (folder / "tiny.toml").write_text(settings)
    result = invoke("run", folder / "tiny.toml", "--out", folder / "tiny")
    assert result.exit_code == 0, result.output
    return folder / "tiny"
