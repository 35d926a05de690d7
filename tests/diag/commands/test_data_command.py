"""``s2ap-diag data`` as it is called from a shell."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from s2ap_core.data import fetch as fetching
from s2ap_diag.commands import main


def call(capsys, *arguments):
    """Exit status, standard output and standard error of one call."""
    with pytest.raises(SystemExit) as exit_:
        main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return exit_.value.code, captured.out, captured.err


def save_svhn(folder: Path, name: str, count: int) -> bytes:
    labels = 1 + np.arange(count)[:, None] % 10
    scipy.io.savemat(folder / name, {"X": np.zeros((32, 32, 3, count), np.uint8), "y": labels})
    return (folder / name).read_bytes()


def test_fetch_and_then_check(capsys, tmp_path, monkeypatch):
    published, root = tmp_path / "published", tmp_path / "root"
    published.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(published))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        sources = []
        for name, count in (("train_32x32.mat", 30), ("test_32x32.mat", 20)):
            checksum = "md5:" + hashlib.md5(save_svhn(published, name, count)).hexdigest()
            url = f"http://127.0.0.1:{server.server_port}/{name}"
            sources.append(fetching.Source(url, checksum, "svhn"))
        monkeypatch.setitem(fetching.SOURCES, "svhn", tuple(sources))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        status, out, err = call(capsys, "fetch", "svhn", "--root", root)
        server.shutdown()
        thread.join()
    assert (status, err) == (0, "")  # no bar where standard error is no terminal
    assert "30" in out
    status, out, err = call(capsys, "check", "svhn", "--root", root, "--json", "-")
    assert (status, err) == (0, "")
    assert [(Path(r["part"]).name, r["images"], r["problem"]) for r in json.loads(out)] == [
        ("train_32x32.mat", 30, None),
        ("test_32x32.mat", 20, None),
    ]


def test_check_of_an_incomplete_data_set_shows_it_and_exits_2(capsys, tmp_path):
    save_svhn(tmp_path, "train_32x32.mat", 30)
    status, out, err = call(capsys, "check", "svhn", "--root", tmp_path)
    assert status == 2
    assert [word for word in out.split() if word in ("there", "missing", "broken")] == ["there", "missing"]
    assert err.count("\n") == 1
    assert "svhn: 1 of 2 parts cannot be used" in err
    assert f"{tmp_path / 'test_32x32.mat'}: missing" in err


def test_check_all_takes_what_is_absent_for_granted_but_not_what_is_half_there(capsys, tmp_path):
    status, out, err = call(capsys, "check", "all", "--root", tmp_path, "--json", "-")
    assert (status, err) == (0, "")
    records = json.loads(out)
    assert {r["data"] for r in records} == {"digits", "cifar10", "cifar10c", "svhn", "imagenet"}
    assert {r["data"] for r in records if r["there"]} == {"digits"}
    save_svhn(tmp_path, "train_32x32.mat", 30)
    status, _, err = call(capsys, "check", "all", "--root", tmp_path)
    assert status == 2
    assert "test_32x32.mat: missing" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fetch", "imagenet", "--root", "data"), "imagenet is licensed and cannot be fetched"),
        (("fetch", "svhn"), "--root"),
        (("check", "cifar10"), "data set cifar10 is read from a folder: set its root"),
        (("check", "cifar10", "--root", "nowhere"), "nowhere: no such folder"),
        (("check", "mnist", "--root", "."), "unknown data set 'mnist'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())


def test_check_digits_through_the_installed_console_script():
    script = Path(sys.executable).with_name("s2ap-diag")
    done = subprocess.run([script, "data", "check", "digits", "--json", "-"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [r["images"] for r in json.loads(done.stdout)] == [1197, 200, 400]
