"""Every reader on small files in the published format, and on broken ones: one line that says what to do."""

import codecs
import io
import os
import pickle
import pickletools
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from s2ap_core.data import cifar10, cifar10c, load
from s2ap_core.errors import InputError

REMEDY = r"get the published files with `s2ap-diag data fetch \w+ --root DIR`"


def one_line(capture, path, *words):
    """The message is one line that names the file, the defect and the remedy."""
    message = str(capture.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    for word in words:
        assert word in message
    assert re.search(REMEDY, message)


def read(data, split):
    batches = list(data.batches(split, 7))
    return tuple(torch.cat(field) for field in zip(*batches, strict=True))


# --- CIFAR-10 -------------------------------------------------------------------------------------------


def python2_batch(data: np.ndarray, labels: list[int]) -> bytes:
    """The bytes that Python 2 and the numpy of 2009 wrote: protocol 2, str as SHORT_BINSTRING/BINSTRING.

    Written by hand, opcode by opcode, since no Python 3 writes them.
    """

    def string(raw: bytes) -> bytes:
        if len(raw) < 256:
            return b"U" + bytes([len(raw)]) + raw
        return b"T" + len(raw).to_bytes(4, "little") + raw

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n"
    array += integer(0) + b"\x85" + string(b"b") + b"\x87R"
    array += b"(" + integer(1) + integer(len(data)) + integer(3072) + b"\x86" + dtype + b"\x89"
    array += string(data.tobytes()) + b"tb"
    items = string(b"batch_label") + string(b"training batch 1 of 5")
    items += string(b"labels") + b"](" + b"".join(map(integer, labels)) + b"e"
    items += string(b"data") + array
    items += string(b"filenames") + b"](" + b"".join(string(b"%d.png" % i) for i in range(len(data))) + b"e"
    return b"\x80\x02}(" + items + b"u."


@pytest.fixture
def cifar(tmp_path):
    """Five training batches of 40 and a test batch of 20; returns the folder, images and labels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    content = {}
    for name in (*cifar10.TRAIN, cifar10.TEST):
        count = 20 if name == cifar10.TEST else 40
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.permutation(np.arange(count) % 10).tolist()
        (folder / name).write_bytes(python2_batch(data, labels))
        content[name] = data, labels
    return folder, content


def test_cifar10_images_and_labels_are_the_files(cifar):
    folder, content = cifar
    data = load("cifar10", folder.parent, val=20)
    assert (data.classes, data.channels, data.size) == (10, 3, 32)
    x, y, _ = read(data, "test")
    expected, labels = content["test_batch"]
    for i in range(20):  # a row holds 1,024 red, then green, then blue values, row by row
        for channel in range(3):
            plane = expected[i, 1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
            assert np.array_equal((x[i, channel] * 255).round().numpy(), plane)
    assert y.tolist() == labels


def test_cifar10_validation_is_held_out_from_train_and_stratified(cifar):
    folder, content = cifar
    data = load("cifar10", folder, val=20)  # the folder of the batches itself
    assert data.labels("val").bincount().tolist() == [2] * 10
    rows = torch.cat([(read(data, split)[0] * 255).round().flatten(1) for split in ("train", "val")])
    labels = torch.cat([data.labels("train"), data.labels("val")])
    found = {bytes(row.byte().numpy()): int(label) for row, label in zip(rows, labels, strict=True)}
    expected = {bytes(row): label for name in cifar10.TRAIN for row, label in zip(*content[name], strict=True)}
    assert found == expected
    assert len(found) == 200


def test_cifar10_holds_out_at_most_a_tenth(cifar):
    data = load("cifar10", cifar[0])  # 1,000 by default, but only 200 are there
    assert (data.count("train"), data.count("val")) == (180, 20)
    with pytest.raises(InputError, match="val = 0"):
        load("cifar10", cifar[0], val=0)


def test_cifar10_augments_by_crops_of_the_padded_image_and_their_mirrors(cifar):
    data = load("cifar10", cifar[0])
    plain, _, _ = read(data, "train")
    (batch,) = data.batches("train", 180, shuffle=5, augment=True)
    padded = torch.nn.functional.pad(plain[batch.index], (4,) * 4)
    drawn = []
    for image, source in zip(batch.x[:80], padded, strict=False):
        views = {(r, c): source[:, r : r + 32, c : c + 32] for r in range(9) for c in range(9)}
        for place, view in views.items():
            drawn += [(*place, flip) for flip in (False, True) if torch.equal(image, view.flip(-1) if flip else view)]
    assert len(drawn) == 80  # each image is exactly one of its views
    assert [set(values) for values in zip(*drawn, strict=True)] == [set(range(9)), set(range(9)), {False, True}]


def test_cifar10_without_augmentation_is_as_it_was_read(cifar):
    data = load("cifar10", cifar[0], augment=False)
    (plain,), (batch,) = (data.batches("train", 180, shuffle=5, augment=a) for a in (False, True))
    assert torch.equal(batch.x, plain.x)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_batches_rewritten_by_python_3_are_read(cifar, protocol):
    data, labels = cifar[1]["test_batch"]
    (cifar[0] / "test_batch").write_bytes(pickle.dumps({"data": data, "labels": np.array(labels)}, protocol=protocol))
    x, y, _ = read(load("cifar10", cifar[0]), "test")
    assert np.array_equal((x * 255).round().flatten(1).numpy(), data)
    assert y.tolist() == labels


def test_cifar10_batches_rewritten_with_names_of_bytes_are_read(cifar):
    """As after ``pickle.load(file, encoding="bytes")``, which the data set's page shows."""
    data, labels = cifar[1]["test_batch"]
    (cifar[0] / "test_batch").write_bytes(pickle.dumps({b"data": data, b"labels": labels}))
    assert read(load("cifar10", cifar[0]), "test")[1].tolist() == labels


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_cifar10_missing_batch(cifar, name):
    (cifar[0] / name).unlink()
    with pytest.raises(InputError) as capture:
        load("cifar10", cifar[0])
    one_line(capture, cifar[0] / name, "missing")


@pytest.mark.parametrize("keep", [0, 1, 200, 50_000, -1])
def test_cifar10_truncated_batch(cifar, keep):
    path = cifar[0] / "data_batch_2"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as capture:
        load("cifar10", cifar[0])
    one_line(capture, path, "truncated")


DATA = np.zeros((4, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"data": DATA, "labels": [0, 1, 10, 3]}, "label 10 of image 2 is not in 0..9"),
        ({"data": DATA, "labels": [0, -1, 1, 3]}, "label -1 of image 1"),
        ({"data": DATA, "labels": [0, 1, 2]}, "4 images but 3 labels"),
        ({"data": DATA, "labels": ["cat"] * 4}, "labels are not a list of integers"),
        ({"data": DATA}, "no data and labels"),
        ({"data": DATA, "fine_labels": [0] * 4}, "no data and labels"),
        ([1, 2], "no data and labels"),
        ({"data": DATA[:, :100], "labels": [0] * 4}, "shape [4, 100], not [N, 3072]"),
        ({"data": DATA.astype(float), "labels": [0] * 4}, "not an array of bytes"),
        ({"data": [[0]], "labels": [0]}, "not an array of bytes"),
    ],
)
def test_cifar10_mislabelled_or_other_content(cifar, content, words):
    path = cifar[0] / "data_batch_5"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError) as capture:
        load("cifar10", cifar[0])
    one_line(capture, path, words)


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def touch(path):
    Path(path).touch()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, touch, os.mkdir, getattr, np.fromfile, np.load])
def test_cifar10_pickle_that_names_anything_else_is_refused_before_it_runs(cifar, function, protocol):
    target = cifar[0].parent / "owned"
    command = {os.system: f"touch {target}", eval: f"open({str(target)!r}, 'w')"}.get(function, str(target))
    path = cifar[0] / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Call(function, command), "labels": [0]}, protocol=protocol))
    with pytest.raises(InputError) as capture:
        load("cifar10", cifar[0])
    one_line(capture, path, "refused", function.__name__)
    assert not target.exists()


def test_cifar10_dotted_names_and_other_codecs_are_refused(cifar):
    path = cifar[0] / "data_batch_1"
    dotted = pickle.PROTO + b"\x04" + b"\x8c\x05numpy" + b"\x8c\x0endarray.tofile" + pickle.STACK_GLOBAL + b"."

    for content, word in ((dotted, "ndarray.tofile"), (pickle.dumps(Call(codecs.encode, "x", "zip")), "zip")):
        path.write_bytes(content)
        with pytest.raises(InputError) as capture:
            load("cifar10", cifar[0])
        one_line(capture, path, "refused", word)


def test_the_python_2_writer_of_these_tests_is_right():
    # Checked with the standard library: otherwise these tests and the reader could agree on a wrong format.
    data = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    raw = python2_batch(data, [3, 5])
    assert pickletools.dis(raw, out=io.StringIO()) is None
    content = pickle.loads(raw, encoding="bytes")
    assert np.array_equal(content[b"data"], data)
    assert content[b"labels"] == [3, 5]
    assert content[b"filenames"] == [b"0.png", b"1.png"]


# --- SVHN -----------------------------------------------------------------------------------------------


@pytest.fixture
def svhn(tmp_path):
    rng = np.random.default_rng(0)
    content = {}
    for name, count in (("train", 60), ("test", 20)):
        x = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        y = (1 + np.arange(count) % 10).astype(np.uint8)[:, None]
        scipy.io.savemat(tmp_path / f"{name}_32x32.mat", {"X": x, "y": y}, do_compression=True)
        content[name] = x, y
    return tmp_path, content


def test_svhn_images_are_the_files_and_label_ten_is_zero(svhn):
    folder, content = svhn
    data = load("svhn", folder)
    x, y, _ = read(data, "test")
    images, labels = content["test"]
    for i in range(20):
        assert np.array_equal((x[i] * 255).round().permute(1, 2, 0).numpy(), images[:, :, :, i])
        assert y[i] == (0 if labels[i, 0] == 10 else labels[i, 0])
    assert (data.count("train"), data.count("val")) == (54, 6)
    seen = torch.cat([read(data, split)[0] for split in ("train", "val")]).permute(0, 2, 3, 1)
    expected = np.moveaxis(content["train"][0], -1, 0)
    assert sorted(bytes(i) for i in (seen * 255).round().byte().numpy()) == sorted(bytes(i) for i in expected)


def test_svhn_is_padded_by_4_cropped_and_flipped_unless_told_otherwise(svhn):
    data, off = (load("svhn", svhn[0], **options) for options in ({}, {"augment": False}))
    plain, augmented = (next(data.batches("train", 54, shuffle=1, augment=a)) for a in (False, True))
    seen = set()
    for image, found in zip(plain.x, augmented.x, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        crops = {
            (row, column, mirrored): padded[:, row : row + 32, column : column + 32].flip(2 if mirrored else ())
            for row in range(9) for column in range(9) for mirrored in (False, True)
        }  # fmt: skip
        (place,) = (place for place, crop in crops.items() if torch.equal(crop, found))
        seen.add(place)
    assert [len({place[axis] for place in seen}) for axis in range(3)] == [9, 9, 2]
    assert torch.equal(next(off.batches("train", 54, shuffle=1, augment=True)).x, plain.x)
    assert data.checksum("train") != off.checksum("train")
    assert data.checksum("test") == off.checksum("test")


def test_svhn_is_found_in_its_own_folder(svhn):
    (svhn[0] / "svhn").mkdir()
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (svhn[0] / name).rename(svhn[0] / "svhn" / name)
    assert load("svhn", svhn[0]).count("test") == 20


def test_svhn_missing_and_truncated_file(svhn):
    path = svhn[0] / "test_32x32.mat"
    raw = path.read_bytes()
    for keep in (0, 60, 5000, len(raw) - 40):
        path.write_bytes(raw[:keep])
        with pytest.raises(InputError) as capture:
            load("svhn", svhn[0])
        one_line(capture, path)
    path.unlink()
    with pytest.raises(InputError) as capture:
        load("svhn", svhn[0])
    one_line(capture, path, "missing")


X = np.zeros((32, 32, 3, 2), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"X": X, "y": np.array([[1], [0]])}, "label 0 of image 1 is not in 1..10"),
        ({"X": X, "y": np.array([[11], [1]])}, "label 11 of image 0"),
        ({"X": X, "y": np.array([[1], [2], [3]])}, "2 images but 3 labels"),
        ({"X": X}, "no X and y"),
        ({"X": np.moveaxis(X, -1, 0), "y": np.array([[1], [2]])}, "shape [2, 32, 32, 3], not [32, 32, 3, N]"),
        ({"X": X.astype(float), "y": np.array([[1], [2]])}, "not an array of bytes"),
    ],
)
def test_svhn_mislabelled_or_other_content(svhn, content, words):
    path = svhn[0] / "train_32x32.mat"
    scipy.io.savemat(path, content)
    with pytest.raises(InputError) as capture:
        load("svhn", svhn[0])
    one_line(capture, path, words)


# --- CIFAR-10-C -----------------------------------------------------------------------------------------


@pytest.fixture
def corrupted(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    labels = np.tile(np.array([3, 8, 8, 0], np.uint8), 5)
    np.save(folder / "labels.npy", labels)
    content = {}
    for name in ("fog", "saturate"):
        content[name] = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        np.save(folder / f"{name}.npy", content[name])
    return folder, content


@pytest.mark.parametrize(("options", "severity"), [({}, 3), ({"severity": 1}, 1), ({"severity": 5}, 5)])
@pytest.mark.parametrize("corruption", ["fog", "saturate"])
def test_cifar10c_gives_the_images_of_one_severity(corrupted, corruption, options, severity):
    data = load("cifar10c", corrupted[0].parent, corruption=corruption, **options)
    x, y, _ = read(data, "test")
    assert y.tolist() == [3, 8, 8, 0]
    expected = corrupted[1][corruption][4 * (severity - 1) : 4 * severity]
    assert np.array_equal((x * 255).round().permute(0, 2, 3, 1).numpy(), expected)
    with pytest.raises(InputError, match="no train split"):
        data.count("train")


def test_cifar10c_names_the_fifteen_corruptions_of_the_benchmark():
    # Table 1 of Hendrycks and Dietterich: noise, blur, weather, digital.
    assert len(set(cifar10c.CORRUPTIONS)) == 15
    assert not set(cifar10c.CORRUPTIONS) & set(cifar10c.EXTRA_CORRUPTIONS)
    assert sum("noise" in c for c in cifar10c.CORRUPTIONS) == 3
    assert sum("blur" in c for c in cifar10c.CORRUPTIONS) == 4


def test_cifar10c_unknown_corruption_and_severity(corrupted):
    with pytest.raises(InputError, match=r"corruption = 'rain'.*fog"):
        load("cifar10c", corrupted[0], corruption="rain")
    for severity in (0, 6):
        with pytest.raises(InputError, match=f"severity = {severity}"):
            load("cifar10c", corrupted[0], corruption="fog", severity=severity)


@pytest.mark.parametrize("name", ["fog.npy", "labels.npy"])
@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_cifar10c_truncated_and_missing_file(corrupted, name, keep):
    path = corrupted[0] / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as capture:
        load("cifar10c", corrupted[0], corruption="fog")
    one_line(capture, path, "truncated")
    path.unlink()
    with pytest.raises(InputError) as capture:
        load("cifar10c", corrupted[0], corruption="fog")
    one_line(capture, path, "missing")


IMAGES = np.zeros((20, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.npy", np.full(20, 10), "label 10 of image 0"),
        ("labels.npy", np.zeros(4, int), "20 images but 4 labels"),
        ("labels.npy", np.zeros(20), "labels are not a list of integers"),
        ("labels.npy", np.array(3), "not a .npy array of images or labels"),
        ("fog.npy", IMAGES[:18], "18 images, not a multiple of its 5 severities"),
        ("fog.npy", IMAGES[:0], "0 images"),
        ("fog.npy", IMAGES.transpose(0, 3, 1, 2), "shape [20, 3, 32, 32], not [N, 32, 32, 3]"),
        ("fog.npy", IMAGES / 255, "not an array of bytes"),
        ("fog.npy", np.array([Call(touch, "owned")] * 5, dtype=object), "not a .npy array"),
    ],
)
def test_cifar10c_mislabelled_or_other_content(corrupted, name, content, words):
    path = corrupted[0] / name
    np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError) as capture:
        load("cifar10c", corrupted[0], corruption="fog")
    one_line(capture, path, words)
