"""What a command imports before it is called: nothing that takes seconds."""

import subprocess
import sys

import pytest

from s2ap_diag.commands import COMMANDS

HEAVY = ("torch", "numpy", "pandas", "matplotlib", "seaborn", "scipy", "sklearn", "ray", "pydantic", "rich")

HELP = """
import sys
from s2ap_diag.commands import main
heavy = sys.argv[1].split()
for line in sys.stdin:
    try:
        main([*line.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0, line
    imported = [name for name in heavy if name in sys.modules]
    assert not imported, (line, imported)
"""


def test_help_of_every_command_imports_nothing_heavy():
    calls = ["", *COMMANDS, "data fetch", "data check"]
    done = subprocess.run(
        [sys.executable, "-c", HELP, " ".join(HEAVY)],
        input="\n".join(calls),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(calls)


@pytest.mark.parametrize("package", ["s2ap_diag", "s2ap_core"])
def test_importing_a_package_imports_nothing_heavy(package):
    code = f"import sys, {package}; sys.exit(', '.join(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr.strip() == ""
