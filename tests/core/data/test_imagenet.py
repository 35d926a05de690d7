"""ImageNet's folders: what is decoded, how it is split and augmented, and what broken folders say."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from s2ap_core.data import load
from s2ap_core.data.imagenet import centre_crop, random_resized_crop
from s2ap_core.errors import InputError

CLASSES = ("n01440764", "n01443537", "n02102040")


@pytest.fixture
def folder(tmp_path):
    """Three classes; every image has a grey value of its own: 10 per class and 1 per image."""
    for split, counts in (("train", (4, 9, 2)), ("val", (3, 3, 3))):
        for label, (name, count) in enumerate(zip(CLASSES, counts, strict=True)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                grey = 10 * label + i + 1
                Image.new("L", (40, 30), grey).save(tmp_path / split / name / f"{name}_{i}.JPEG", quality=95)
    (tmp_path / "val" / CLASSES[0] / "notes.txt").write_text("not an image")
    return tmp_path


def greys(data, split, **options):
    batches = list(data.batches(split, 4, **options))
    x, y, index = (torch.cat(field) for field in zip(*batches, strict=True))
    assert x.dtype == torch.float32
    assert torch.equal(y, data.labels(split)[index])
    return [round(float(image.mean()) * 255) for image in x], y.tolist(), index.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_splits_hold_each_image_once_with_its_folder_as_class(folder, workers):
    data = load("imagenet", folder, size=14, workers=workers)
    assert (data.classes, data.channels, data.size) == (3, 3, 14)
    values, y, index = greys(data, "test")
    assert index == list(range(9))
    assert sorted(zip(values, y, strict=True)) == [(10 * c + i + 1, c) for c in range(3) for i in range(3)]
    # One percent of 15 is no image at all: one per class is held out.
    assert sorted(data.labels("val").tolist()) == [0, 1, 2]
    both = [greys(data, split) for split in ("train", "val")]
    seen = [pair for values, y, _ in both for pair in zip(values, y, strict=True)]
    assert sorted(seen) == [(10 * c + i + 1, c) for c, count in enumerate((4, 9, 2)) for i in range(count)]


def test_the_first_images_of_a_split_are_not_of_one_class(tmp_path):
    for split in ("train", "val"):
        for name in "abcdefghij":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                Image.new("L", (16, 16)).save(tmp_path / split / name / f"{i}.png")
    data = load("imagenet", tmp_path, size=14, workers=0)
    for split in ("train", "test"):
        assert len(set(data.labels(split)[:10].tolist())) > 3


@pytest.mark.parametrize("limit", [None, 5])
def test_augmentation_depends_on_seed_and_image_alone(folder, limit):
    rng = np.random.default_rng(0)
    for path in (folder / "train").glob("*/*"):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path, quality=95)
    here = load("imagenet", folder, size=14, workers=0)
    workers = load("imagenet", folder, size=14, workers=2)

    def run(data, batch_size, seed):
        batches = list(data.batches("train", batch_size, shuffle=seed, augment=True, limit=limit))
        return [torch.cat(field) for field in zip(*batches, strict=True)]

    state = torch.get_rng_state()
    first, again, other = run(here, 4, 1), run(workers, 3, 1), run(here, 4, 2)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[2], other[2])
    by_index = {int(i): x for x, i in zip(other[0], other[2], strict=True)}
    assert all(
        not torch.equal(x, by_index[int(i)]) for x, i in zip(first[0], first[2], strict=True) if int(i) in by_index
    )


def test_images_of_one_batch_are_cropped_differently(folder):
    for path in (folder / "train").glob("*/*"):
        Image.linear_gradient("L").save(path)
    (batch,) = load("imagenet", folder, size=14, workers=0).batches("train", 12, shuffle=1, augment=True)
    assert len(batch.x.flatten(1).unique(dim=0)) == len(batch.x) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_without_augmentation_training_sees_the_centre(folder, workers):
    for path in (folder / "train").glob("*/*"):
        Image.linear_gradient("L").save(path)
    data = load("imagenet", folder, size=14, workers=workers, augment=False)
    (plain,), (batch,) = (data.batches("train", 12, shuffle=1, augment=a) for a in (False, True))
    assert torch.equal(batch.x, plain.x)
    augmented = load("imagenet", folder, size=14, workers=0)
    assert data.checksum("train") != augmented.checksum("train")
    assert data.checksum("test") == augmented.checksum("test")


def test_centre_crop_is_the_middle_of_the_image_at_256_to_224():
    # A linear ramp stays one under bilinear resizing: pixel values tell where the crop lies.
    ramp = np.tile(np.arange(0, 250, dtype=np.uint8), (100, 1))
    view = np.asarray(centre_crop(Image.fromarray(ramp), 56)).astype(float)
    assert view.shape == (56, 56)
    # 100 rows become 64, so one pixel of the view is 100 / 64 of the ramp.
    assert abs(np.diff(view[28]).mean() - 100 / 64) < 0.02
    assert abs(view[28].mean() - 124.5) < 1.6
    tall = np.asarray(centre_crop(Image.fromarray(ramp.T), 56)).astype(float)
    assert np.abs(tall.T - view).max() <= 1


def test_random_resized_crop_draws_area_aspect_place_and_side():
    # Red tells the column and green the row of each pixel: both ends of the view give the box.
    side = 256
    columns, rows = np.meshgrid(np.arange(side), np.arange(side))
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))
    areas, aspects, mirrored, centres = [], [], 0, []
    for seed in range(400):
        view = np.asarray(random_resized_crop(image, 32, random.Random(seed))).astype(float)
        slope_x, slope_y = np.diff(view[16, 2:-2, 0]).mean(), np.diff(view[2:-2, 16, 1]).mean()
        mirrored += slope_x < 0
        width, height = abs(slope_x) * 32, slope_y * 32
        areas.append(width * height / side**2)
        aspects.append(width / height)
        centres.append(view[:, :, 0].mean())
    assert abs(mirrored / 400 - 0.5) < 0.08
    assert min(areas) > 0.07
    assert max(areas) > 0.8
    assert 0.3 < np.mean(areas) < 0.55  # uniform on 0.08..1, less the largest at an aspect that does not fit
    assert 0.73 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.37
    assert abs(np.mean(np.log(aspects))) < 0.05 * math.log(2)
    assert abs(np.mean(centres) - 127.5) < 8
    assert np.std(centres) > 20


def test_very_long_images_are_cropped_in_the_middle():
    image = Image.new("RGB", (900, 10))
    image.paste((255, 255, 255), (440, 0, 460, 10))
    view = np.asarray(random_resized_crop(image, 8, random.Random(0)))
    assert view.shape == (8, 8, 3)
    assert view.min() > 250


def test_val_alone_is_enough_to_evaluate(folder):
    (folder / "train").rename(folder / "elsewhere")
    data = load("imagenet", folder, size=14, workers=0)
    assert data.count("test") == 9
    with pytest.raises(InputError, match=r"train: missing; lay the images out as"):
        data.count("train")


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_named_in_one_line(folder, workers):
    path = folder / "val" / CLASSES[1] / f"{CLASSES[1]}_2.JPEG"
    data = load("imagenet", folder, size=14, workers=workers)
    whole = path.read_bytes()
    for raw in (b"", b"no image", whole[: len(whole) // 2]):
        path.write_bytes(raw)
        with pytest.raises(InputError) as capture:
            list(data.batches("test", 4))
        message = str(capture.value)
        assert message.startswith(f"{path}: not an image that can be decoded")
        assert message.endswith("replace it")
        assert "\n" not in message


def empty_class(folder):
    for path in (folder / "val" / CLASSES[2]).iterdir():
        path.unlink()


def flat_val(folder):
    for name in CLASSES:
        (folder / "val" / name).rename(folder / name)


def one_image(folder):
    (folder / "train" / CLASSES[2] / f"{CLASSES[2]}_0.JPEG").unlink()


@pytest.mark.parametrize(
    ("spoil", "split", "words"),
    [
        (lambda f: (f / "val").rename(f / "v"), "test", "val: missing"),
        (flat_val, "test", "val: holds no class folders"),
        (empty_class, "test", "n02102040: holds no .JPEG, .jpg or .png image"),
        (one_image, "train", "n02102040: one image, too few to hold one out"),
        (
            lambda f: (f / "val" / CLASSES[0]).rename(f / "val" / "zebra"),
            "test",
            "class n01440764 is in only one",
        ),
        (lambda f: (f / "train" / "zebra").mkdir(), "test", "class zebra is in only one of train and val"),
    ],
)
def test_folders_laid_out_otherwise(folder, spoil, split, words):
    spoil(folder)
    with pytest.raises(InputError) as capture:
        load("imagenet", folder).count(split)
    message = str(capture.value)
    assert message.startswith(str(folder))
    assert words in message
    assert message.endswith("lay the images out as train/CLASS/*.JPEG and val/CLASS/*.JPEG")


@pytest.mark.parametrize(("option", "value"), [("size", 0), ("workers", -1)])
def test_options_out_of_range(folder, option, value):
    with pytest.raises(InputError, match=f"{option} = {value}"):
        load("imagenet", folder, **{option: value})
