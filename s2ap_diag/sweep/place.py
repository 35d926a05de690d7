"""Where a sweep's runs lie: a folder of this machine, or what an fsspec URL names."""

from typing import Any

import fsspec

from s2ap_core.errors import InputError

EXTRA = ("s3", "s3a", "gs", "gcs")
"""Schemes whose packages come with the extra ``remote``."""


def filesystem_of(root: str) -> tuple[Any, str]:
    """Return the file system of a folder or URL, and the path in it.

    Raises:
        InputError: if the URL's scheme is unknown, its package is missing, or the URL does not say what it needs.
    """
    scheme = root.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(root)
    except ImportError as error:
        how = "pip install 's2ap-diag[remote]'" if scheme in EXTRA else f"{error}"
        raise InputError(f"{root}: the package that reads {scheme}:// is not installed; {how}") from error
    except Exception as error:  # each file system has errors of its own
        raise InputError(f"{root}: cannot be opened ({error}); give a folder, s3:// or gs://") from error
    return filesystem, str(path)
