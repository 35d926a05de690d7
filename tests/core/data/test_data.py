"""The contract of all data sets, augmentation, and digits."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from s2ap_core.data import DATASETS, InMemory, load
from s2ap_core.data.base import hold_out, without_lone_image
from s2ap_core.data.memory import crop_and_flip
from s2ap_core.errors import InputError
from s2ap_core.presets.read import read_config


@pytest.fixture
def colours():
    """Ten training images whose every pixel is different enough to tell where it came from."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (10, 3, 8, 8), dtype=np.uint8)
    return InMemory("colours", 10, {"train": (images, np.arange(10))}, pad=2, flip=True)


def gather(batches):
    batches = list(batches)
    return tuple(torch.cat(field) for field in zip(*batches, strict=True))


def test_digits_are_scikit_learns_digits_each_in_exactly_one_split():
    data, bunch = load("digits"), load_digits()
    rows = []
    for split, count in (("train", 1197), ("val", 200), ("test", 400)):
        x, y, index = gather(data.batches(split, 128))
        assert len(x) == data.count(split) == count
        assert torch.equal(index, torch.arange(count))
        assert torch.equal(y, data.labels(split))
        rows += [(*image, label) for image, label in zip((x * 16).flatten(1).tolist(), y.tolist(), strict=True)]
        share = np.bincount(y, minlength=10) / count
        assert np.abs(share - np.bincount(bunch.target) / 1797).max() < 1 / count
    expected = [(*image, label) for image, label in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True)]
    assert sorted(rows) == sorted(expected)


def test_each_digit_is_in_one_folds_test_split_and_in_one_split_of_each_fold():
    everything = sorted((*image, label) for image, label in zip(*load_digits(return_X_y=True), strict=True))
    tested = []
    for fold in range(5):
        data = load("digits", fold=fold)
        rows = {}
        for split in ("train", "val", "test"):
            x, y, _ = gather(data.batches(split, 512))
            rows[split] = [(*i, n) for i, n in zip((x * 16).flatten(1).tolist(), y.tolist(), strict=True)]
            share = np.bincount(y, minlength=10) / len(y)
            assert np.abs(share - np.bincount(load_digits().target) / 1797).max() < 1.5 / len(y)
        assert sorted(rows["train"] + rows["val"] + rows["test"]) == everything
        assert len(rows["val"]) == 200
        tested += rows["test"]
    assert sorted(tested) == everything
    assert load("digits", fold=3).checksum("test") == load("digits", fold=3).checksum("test")


@pytest.mark.parametrize("fold", [5, -1, 1.5, "2", True])
def test_a_fold_that_there_is_not_is_refused(fold):
    with pytest.raises(InputError, match=r"digits: fold = .*: give one of 0 to 4, or leave it out"):
        load("digits", fold=fold)


def test_digits_split_does_not_depend_on_global_generators():
    first = load("digits")
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    again = load("digits")
    for split in ("train", "val", "test"):
        assert torch.equal(first.labels(split), again.labels(split))


def test_batches_are_float_in_unit_range_and_the_last_partial_one_is_kept(colours):
    batches = list(colours.batches("train", 4, shuffle=3, augment=True))
    assert [len(b.y) for b in batches] == [4, 4, 2]
    for b in batches:
        assert b.x.dtype == torch.float32
        assert b.y.dtype == b.index.dtype == torch.int64
        assert b.x.min() >= 0
        assert b.x.max() <= 1


def test_order_and_augmentation_depend_on_the_seed_alone(colours):
    first = gather(colours.batches("train", 4, shuffle=7, augment=True))
    torch.manual_seed(1)
    other_batches = gather(colours.batches("train", 3, shuffle=7, augment=True))
    for a, b in zip(first, other_batches, strict=True):
        assert torch.equal(a, b)
    head = gather(colours.batches("train", 4, shuffle=7, augment=True, limit=5))
    for a, b in zip(first, head, strict=True):
        assert torch.equal(a[:5], b)
    other_seed = gather(colours.batches("train", 4, shuffle=8, augment=True))
    assert not torch.equal(first[2], other_seed[2])
    assert sorted(other_seed[2].tolist()) == list(range(10))


def test_reading_leaves_the_global_generator_alone(colours):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(colours.batches("train", 4, shuffle=7, augment=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_crop_and_flip_equals_a_loop_over_images_and_pixels(pad):
    rng = torch.Generator().manual_seed(pad)
    x = torch.randint(1, 256, (9, 2, 5, 6), generator=rng, dtype=torch.uint8)
    shifts = torch.randint(0, 2 * pad + 1, (9, 2), generator=rng)
    mirrored = torch.rand(9, generator=rng) < 0.5
    expected = torch.zeros_like(x)
    for b in range(9):
        for row in range(5):
            for column in range(6):
                source_row = row + int(shifts[b, 0]) - pad
                cropped_column = 5 - column if mirrored[b] else column
                source_column = cropped_column + int(shifts[b, 1]) - pad
                if 0 <= source_row < 5 and 0 <= source_column < 6:
                    expected[b, :, row, column] = x[b, :, source_row, source_column]
    assert torch.equal(crop_and_flip(x, pad, shifts, mirrored), expected)


def test_augmentation_draws_every_shift_and_both_sides_evenly():
    # One image in 4,000 copies with a single lit pixel in the middle: where it lands tells what was drawn.
    image = np.zeros((4000, 1, 8, 8), np.uint8)
    image[:, :, 4, 2] = 255
    data = InMemory("lamp", 1, {"train": (image, np.zeros(4000, np.int64))}, pad=2, flip=True)
    x, _, _ = gather(data.batches("train", 1000, shuffle=0, augment=True))
    rows, columns = x[:, 0].flatten(1).argmax(1) // 8, x[:, 0].flatten(1).argmax(1) % 8
    assert x.sum() == 4000  # the pixel never leaves the image
    for row in range(2, 7):
        assert abs((rows == row).float().mean() - 0.2) < 0.03
    # Columns 0..4 unmirrored, 7..3 mirrored; 3 and 4 are reached both ways.
    expected = torch.tensor([1, 1, 1, 2, 2, 1, 1, 1]) / 10
    assert (columns.bincount(minlength=8) / 4000 - expected).abs().max() < 0.03


def test_digits_are_augmented_when_asked_to():
    data = load("digits", augment=True)
    plain, augmented = (next(data.batches("train", 400, shuffle=1, augment=a)).x for a in (False, True))
    same = augmented == plain
    # One of nine places and one of two sides is the image itself; blank margins make some more of them so.
    assert 1 / 18 - 0.04 < same.flatten(1).all(1).float().mean() < 1 / 18 + 0.1
    padded = torch.nn.functional.pad(plain, (1,) * 4)
    views = [padded[:, :, r : r + 8, c : c + 8] for r in range(3) for c in range(3)]
    found = torch.stack([(augmented == v).flatten(1).all(1) for view in views for v in (view, view.flip(3))])
    assert found.any(0).all()


def test_without_a_usual_augmentation_nothing_is_changed():
    plain = gather(load("digits").batches("val", 64, shuffle=1))
    augmented = gather(load("digits").batches("val", 64, shuffle=1, augment=True))
    assert torch.equal(plain[0], augmented[0])


def test_augmentation_without_a_seed_is_a_mistake(colours):
    with pytest.raises(ValueError, match="shuffle"):
        next(colours.batches("train", 4, augment=True))


def test_images_must_be_bytes():
    with pytest.raises(ValueError, match="uint8"):
        InMemory("floats", 1, {"train": (np.ones((1, 1, 8, 8)), np.zeros(1))})


def test_to_moves_a_copy(colours):
    moved = colours.to("meta")
    assert moved.labels("train").device.type == "meta"
    assert colours.labels("train").device.type == "cpu"


def test_grey_images_are_not_taken_for_channels_last():
    """numpy leaves the one channel's stride at 1, with which torch would choose another convolution."""
    images = np.zeros((3, 5, 4), dtype=np.uint8)[:, None]
    assert torch.from_numpy(images).is_contiguous(memory_format=torch.channels_last)
    (batch,) = InMemory("grey", 2, {"train": (images, np.arange(3))}).batches("train", 3)
    assert batch.x.stride() == (20, 20, 4, 1)


def test_missing_split_is_named(colours):
    with pytest.raises(InputError, match="colours has no test split, only train"):
        colours.count("test")


def test_unknown_data_set_and_option_are_named():
    with pytest.raises(InputError, match=r"unknown data set 'mnist'.*digits.*cifar10"):
        load("mnist")
    with pytest.raises(InputError, match=r"data set digits.*colour.*options: augment"):
        load("digits", colour=True)
    with pytest.raises(InputError, match=r"data set cifar10c.*corruption.*options: corruption, severity"):
        load("cifar10c")


@pytest.mark.parametrize("value", ["off", 0, 1, "true"])
def test_an_option_of_another_type_is_refused_with_what_it_takes(value):
    with pytest.raises(InputError, match=rf"data set digits: augment = {value!r}: give true or false"):
        load("digits", augment=value)
    with pytest.raises(InputError, match=r"data set cifar10: val = '5': give a whole number"):
        load("cifar10", val="5")


def test_a_config_turns_augmentation_off_and_keeps_it_so(tmp_path):
    config = read_config("digits", ("data.options.augment=false", "data.options.val=3"))
    assert config.data.options == {"augment": False, "val": 3}
    (tmp_path / "config.toml").write_text(config.to_toml())
    again = read_config(tmp_path / "config.toml").data.options
    assert [type(value) for value in again.values()] == [bool, int]
    assert again == config.data.options


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenet"])
def test_data_sets_on_disk_need_an_existing_folder(name, tmp_path):
    with pytest.raises(InputError, match=f"data set {name} .*root"):
        load(name)
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        load(name, tmp_path / "nowhere")


def test_a_data_set_from_outside_is_one_line(monkeypatch, colours):
    monkeypatch.setitem(DATASETS, "colours", lambda root: colours)
    assert load("colours").count("train") == 10
    with pytest.raises(InputError, match="colours"):
        load("mnist")


@pytest.mark.parametrize("count", [1, 3, 4, 17, 40])
def test_hold_out_takes_every_class_in_proportion(count):
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, 5], [100, 40, 7, 3]))
    rest, held = hold_out(labels, count)
    assert sorted([*rest, *held]) == list(range(150))
    assert len(held) == count
    taken = np.bincount(labels[held], minlength=6)[[0, 1, 2, 5]]
    if count < 5:
        assert taken.max() == 1  # each class gives one first
    else:
        assert taken.min() >= 1
        assert np.abs(taken - count * np.array([100, 40, 7, 3]) / 150).max() < 1
    assert not np.array_equal(held, hold_out(labels, count, seed=1)[1])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_a_last_batch_of_one_image_joins_the_one_before(size):
    for count in range(1, 15):
        found = [batch.tolist() for batch in without_lone_image(torch.arange(count).split(size))]
        assert [position for batch in found for position in batch] == list(range(count))
        lone = size > 1 and count > size and count % size == 1
        sizes = [size] * (count // size) + [count % size] * (count % size > 0)
        assert [len(batch) for batch in found] == ([*sizes[:-2], size + 1] if lone else sizes)
