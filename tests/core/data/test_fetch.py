"""Downloads from a server on this machine that breaks off, lies, or knows no ranges; and what check says."""

import hashlib
import http.server
import io
import re
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from s2ap_core.data import fetch as fetching
from s2ap_core.data import load
from s2ap_core.data.fetch import ResumingDownloader, Source, check, download, fetch
from s2ap_core.errors import InputError

BODY = bytes(np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8))
CHUNK = ResumingDownloader.CHUNK
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; ``breaks`` says after how many bytes the next answers end too early."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.ranges, self.asked, self.sent = {}, [], True, [], 0

    def source(self, name, folder="", checksum=None):
        checksum = checksum or "md5:" + hashlib.md5(self.files[name]).hexdigest()
        return Source(f"http://127.0.0.1:{self.server_port}/{name}?download=1", checksum, folder)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        body = server.files.get(self.path.lstrip("/").partition("?")[0])
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if body is None or (start and start >= len(body)):
            self.send_response(404 if body is None else 416)
            if body is not None:
                self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:][: server.breaks.pop(0) if server.breaks else None]
        self.wfile.write(rest)
        server.sent += len(rest)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(ResumingDownloader, "PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        running.files["data.bin"] = BODY
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = [400_000, 300_000]
    seen = []
    path = download(server.source("data.bin"), tmp_path, lambda *args: seen.append(args))
    assert path == tmp_path / "data.bin"
    assert path.read_bytes() == BODY
    assert server.sent <= len(BODY) + 2 * CHUNK  # nothing was sent twice, but for the chunks that broke
    assert server.asked[0] is None
    starts = [int(asked.strip("bytes=-")) for asked in server.asked[1:]]
    assert 400_000 - CHUNK < starts[0] <= 400_000
    assert 700_000 - 2 * CHUNK < starts[1] <= 700_000
    names, done, totals = zip(*seen, strict=True)
    assert set(names) == {"data.bin"}
    assert set(totals) == {len(BODY)}
    assert list(done) == sorted(done)
    assert done[-1] == len(BODY)
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin"]


def test_a_second_call_goes_on_from_what_the_first_one_left(server, tmp_path):
    server.breaks = [250_000] + [0] * ResumingDownloader.TRIES
    with pytest.raises(InputError, match=r"data\.bin.*broke off.*what arrived is kept, fetch it again"):
        download(server.source("data.bin"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin.partial"]
    kept = (tmp_path / "data.bin.partial").read_bytes()
    assert len(kept) > 250_000 - CHUNK
    assert kept == BODY[: len(kept)]
    assert download(server.source("data.bin"), tmp_path).read_bytes() == BODY
    assert server.asked[-1] == f"bytes={len(kept)}-"


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges, server.breaks = False, [400_000]
    assert download(server.source("data.bin"), tmp_path).read_bytes() == BODY
    assert server.sent == 400_000 + len(BODY)


def test_a_complete_partial_file_is_taken_and_a_too_long_one_dropped(server, tmp_path):
    (tmp_path / "data.bin.partial").write_bytes(BODY)
    assert download(server.source("data.bin"), tmp_path).read_bytes() == BODY
    assert server.sent == 0
    (tmp_path / "data.bin").unlink()
    (tmp_path / "data.bin.partial").write_bytes(BODY + b"more")
    assert download(server.source("data.bin"), tmp_path).read_bytes() == BODY


def test_a_wrong_checksum_leaves_the_old_file_and_nothing_else(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"old")
    with pytest.raises(InputError, match=r"data\.bin.*checksum differs from md5:0+; fetch it again"):
        download(server.source("data.bin", checksum="md5:" + "0" * 32), tmp_path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_a_file_that_is_there_is_not_asked_for_and_a_wrong_one_is_replaced(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(BODY)
    download(server.source("data.bin"), tmp_path)
    assert server.asked == []
    (tmp_path / "data.bin").write_bytes(BODY[:-1])
    assert download(server.source("data.bin"), tmp_path).read_bytes() == BODY


def test_a_refusal_is_not_repeated(server, tmp_path):
    with pytest.raises(InputError, match=r"missing\.bin.*the server refused \(404"):
        download(server.source("missing.bin", checksum=MD5), tmp_path)
    assert len(server.asked) == 1


def test_no_server_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(ResumingDownloader, "PAUSE", 0)
    with pytest.raises(InputError, match="broke off") as capture:
        download(Source("http://127.0.0.1:9/data.bin", MD5, ""), tmp_path)
    assert "\n" not in str(capture.value)


def test_without_pooch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match=r"pip install 's2ap-diag\[data\]'"):
        download(Source("http://127.0.0.1:9/data.bin", MD5, ""), tmp_path)


def tar(files: dict[str, bytes], mode="w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def corruptions(server, monkeypatch):
    """CIFAR-10-C in small on the server; returns the files of its archive."""
    files = {"CIFAR-10-C/labels.npy": npy(np.tile(np.arange(4, dtype=np.uint8), 5))}
    for i, name in enumerate(fetching.cifar10c.CORRUPTIONS):
        files[f"CIFAR-10-C/{name}.npy"] = npy(np.full((20, 32, 32, 3), i, np.uint8))
    server.files["CIFAR-10-C.tar"] = tar(files, "w")
    source = server.source("CIFAR-10-C.tar", "CIFAR-10-C")
    monkeypatch.setitem(fetching.SOURCES, "cifar10c", (source,))
    return files


def test_fetch_downloads_unpacks_and_checks_and_does_nothing_twice(server, corruptions, tmp_path):
    root = tmp_path / "new" / "root"
    server.breaks = [100_000]
    parts = fetch("cifar10c", root)
    assert [p.images for p in parts] == [20] * 16
    assert [p.name for p in root.iterdir()] == ["CIFAR-10-C"]
    x = next(load("cifar10c", root, corruption="fog").batches("test", 8)).x
    assert x.unique().mul(255).round().tolist() == [fetching.cifar10c.CORRUPTIONS.index("fog")]
    asked = len(server.asked)
    assert asked == 2
    assert fetch("cifar10c", root) == parts
    assert len(server.asked) == asked


def test_fetch_mends_a_broken_file_and_leaves_the_users_own(corruptions, tmp_path):
    fetch("cifar10c", tmp_path)
    (tmp_path / "CIFAR-10-C" / "fog.npy").write_bytes(b"broken")
    (tmp_path / "CIFAR-10-C" / "mine.txt").write_text("mine")
    assert all(p.problem is None for p in fetch("cifar10c", tmp_path))
    assert (tmp_path / "CIFAR-10-C" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"../owned": b"x"}, "cannot be unpacked"),
        ({"elsewhere/labels.npy": b"x"}, "holds no folder CIFAR-10-C"),
        (None, "cannot be unpacked"),
    ],
)
def test_fetch_refuses_archives_that_reach_outside_or_hold_something_else(
    server, corruptions, tmp_path, monkeypatch, files, words
):
    server.files["CIFAR-10-C.tar"] = tar(files) if files else b"no archive"
    monkeypatch.setitem(fetching.SOURCES, "cifar10c", (server.source("CIFAR-10-C.tar", "CIFAR-10-C"),))
    root = tmp_path / "root"
    with pytest.raises(InputError, match=words):
        fetch("cifar10c", root)
    assert [p.name for p in root.iterdir()] == ["CIFAR-10-C.tar"]
    assert not (tmp_path / "owned").exists()


def test_fetch_puts_svhn_where_load_finds_it(server, tmp_path, monkeypatch):
    names = ("train_32x32.mat", "test_32x32.mat")
    for name in names:
        buffer = io.BytesIO()
        x = np.zeros((32, 32, 3, 20), np.uint8)
        scipy.io.savemat(buffer, {"X": x, "y": np.arange(1, 21)[:, None] % 10 + 1})
        server.files[name] = buffer.getvalue()
    monkeypatch.setitem(fetching.SOURCES, "svhn", tuple(server.source(name, "svhn") for name in names))
    assert [(Path(p.name).name, p.images) for p in fetch("svhn", tmp_path)] == [(name, 20) for name in names]
    assert load("svhn", tmp_path).count("test") == 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagenet", r"cannot be fetched: get ILSVRC 2012 .* lay the images out as train/CLASS"),
        ("digits", r"digits has nothing to fetch; to be fetched: cifar10, svhn, cifar10c"),
        ("mnist", r"unknown data set 'mnist'"),
    ],
)
def test_what_cannot_be_fetched_says_why(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        fetch(name, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_root_that_cannot_be_a_folder(corruptions, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be written"):
        fetch("cifar10c", tmp_path / "file")


def test_check_says_what_is_there_missing_and_broken(corruptions, tmp_path):
    fetch("cifar10c", tmp_path)
    folder = tmp_path / "CIFAR-10-C"
    (folder / "fog.npy").unlink()
    (folder / "snow.npy").write_bytes((folder / "snow.npy").read_bytes()[:-1])
    np.save(folder / "frost.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(folder / "saturate.npy", np.zeros((20, 32, 32, 3), np.uint8))
    parts = {Path(p.name).stem: p for p in check("cifar10c", tmp_path)}
    assert len(parts) == 1 + 15 + 1  # labels, the benchmark's, and the extra one that is there
    assert (parts["fog"].there, parts["fog"].images) == (False, None)
    assert "missing" in parts["fog"].problem
    assert (parts["snow"].there, parts["snow"].images) == (True, None)
    assert "truncated" in parts["snow"].problem
    assert "10 images but 20 labels" in parts["frost"].problem
    sound = set(parts) - {"fog", "snow", "frost"}
    assert all(parts[name].images == 20 and parts[name].problem is None for name in sound)


def test_check_of_the_embedded_data_counts_its_splits():
    assert [p.images for p in check("digits", None)] == [1197, 200, 400]


def test_check_needs_a_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        check("cifar10", tmp_path / "nowhere")
    with pytest.raises(InputError, match="unknown data set"):
        check("mnist", tmp_path)


def test_the_published_sources_agree_with_the_readers():
    assert {s.file for s in fetching.SOURCES["svhn"]} == {"train_32x32.mat", "test_32x32.mat"}
    for sources in fetching.SOURCES.values():
        for source in sources:
            assert re.fullmatch(r"md5:[0-9a-f]{32}", source.checksum)
            assert source.archive == source.file.endswith((".tar", ".tar.gz"))
