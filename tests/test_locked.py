"""requirements.lock has what is installed, in the versions of constraints.txt; files that are others are left out."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from locked import LOCK, chosen, hashes_of

KNOWN = hashes_of(LOCK.read_text())


def entry(name: str, version: str, digest: str) -> dict[str, object]:
    return {
        "metadata": {"name": name, "version": version},
        "download_info": {"url": f"https://x/{name}.whl", "archive_info": {"hashes": {"sha256": digest}}},
    }


def test_the_lock_has_each_dependency_in_the_version_that_was_tested() -> None:
    pinned = dict(line.split("==") for line in Path("constraints.txt").read_text().split())
    versions = dict(KNOWN)
    assert [(name, version) for name, version in versions if pinned.get(name, version) != version] == []
    wanted = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    names = {name for name, _ in versions}
    assert [found for found in wanted if re.split("[><=]", found)[0] not in names] == []
    assert all(hashes and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes) for hashes in KNOWN.values())


def test_files_of_the_lock_are_taken_with_their_hashes_and_others_named() -> None:
    (name, version), digests = next((key, found) for key, found in KNOWN.items() if key[0] == "pyautoattack")
    digest = min(digests)
    report = {
        "install": [
            entry("PyAutoAttack", version, digest),
            entry("pyautoattack", version, digest[::-1]),
            entry("pyautoattack", "9.9", digest),
            entry("torch", "2.13.0+cpu", "0" * 64),
            {"metadata": {"name": "s2ap-diag", "version": "1"}, "download_info": {"url": "file:///x", "dir_info": {}}},
        ]
    }
    locked, others = chosen(report, KNOWN)
    assert locked == [f"{name}=={version} --hash=sha256:{digest}"]
    assert others == [f"pyautoattack {version}", "pyautoattack 9.9", "torch 2.13.0+cpu"]


def test_it_runs_on_a_report_without_anything_installed(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"install": [entry("torch", "2.13.0+cpu", "0" * 64)]}))
    call = [sys.executable, "-S", "-I", str(LOCK.with_name("locked.py")), str(tmp_path / "report.json")]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert "installed by their versions alone: torch 2.13.0+cpu" in done.stderr
