"""Choose from what pip is about to install the files that requirements.lock knows: `python locked.py REPORT`.

REPORT is what `pip install --dry-run --report REPORT` writes. Requirements with hashes are printed, for
`pip install --no-deps --require-hashes -r`; what is left, such as a local build of torch, is named on standard error.
Nothing but Python is needed: it runs before anything is installed.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("requirements.lock")


def hashes_of(lock: str) -> dict[tuple[str, str], set[str]]:
    """Read the SHA-256 of each package's files, by name and version."""
    known: dict[tuple[str, str], set[str]] = {}
    for name, version, rest in re.findall(r"^([\w.-]+)==(\S+)(.*?)(?=^\w|\Z)", lock, re.MULTILINE | re.DOTALL):
        known[name, version] = set(re.findall(r"--hash=sha256:(\w+)", rest))
    return known


def chosen(report: Mapping[str, Any], known: Mapping[tuple[str, str], set[str]]) -> tuple[list[str], list[str]]:
    """Sort the files of a report into requirements with hashes, and names of what the lock does not have."""
    locked, others = [], []
    for entry in report["install"]:
        name = re.sub(r"[-_.]+", "-", entry["metadata"]["name"]).lower()
        version = entry["metadata"]["version"]
        digest = entry["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest in known.get((name, version), ()):
            locked.append(f"{name}=={version} --hash=sha256:{digest}")
        elif "dir_info" not in entry["download_info"]:  # the package itself
            others.append(f"{name} {version}")
    return locked, others


def main(arguments: Iterable[str]) -> None:
    """Print the requirements of a report."""
    (report,) = arguments
    locked, others = chosen(json.loads(Path(report).read_text()), hashes_of(LOCK.read_text()))
    print("\n".join(locked))
    if others:
        print(f"not the files of {LOCK.name}, installed by their versions alone: {', '.join(others)}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
