"""Augmentations against a hand computation of each image, and against PIL."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from snnfast.data import Augment, load_data
from snnfast.data.augment import transform
from snnfast.data.autoaugment import OPERATIONS, POLICY
from snnfast.data.transforms import Normalise

NAMES = ("crop4", "shift2", "flip", "cutout16", "autoaugment", "events")


def pictures(n=6, size=32, channels=3):
    """Smooth noise with flat parts, and with little contrast in the second half of the images."""
    small = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(small, (size, size), mode="bilinear")
    images[:, :, : size // 4] = 0.3
    images[:, :, 1, :3], images[:, :, 2, :3] = 0, 1
    images[n // 2 :] = 0.4 + 0.2 * images[n // 2 :]
    return (images * 255).round() / 255


def draw(name, n, seed=0):
    return transform("test", name).draw(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_is_one_result_for_any_slice(name):
    images = pictures(24)
    augment = Augment([transform("test", name), transform("test", "crop4")])
    whole = augment(images, seed=5)
    assert whole.shape == images.shape and torch.equal(whole, augment(images, seed=5))
    for first, last in ((0, 7), (7, 24), (11, 12)):
        part = augment(images[first:last], seed=5, first=first, total=24)
        assert torch.equal(part, whole[first:last])
    assert not torch.equal(whole, augment(images, seed=6))
    # One draw for each image, not one for the batch: equal images come out different.
    same = augment(images[:1].expand(24, -1, -1, -1), seed=5)
    assert len({image.numpy().tobytes() for image in same}) > 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_does_what_the_cpu_does(name):
    images, augment = pictures(64), Augment([transform("test", name)])
    on_gpu = augment(images.cuda(), seed=4)
    torch.testing.assert_close(on_gpu.cpu(), augment(images, seed=4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "autoaugment"])
def test_all_frames_of_a_sequence_are_treated_alike(name):
    frames = torch.stack([pictures(9, channels=2), pictures(9, channels=2).flip(-2)])
    augment = Augment([transform("test", name)])
    out = augment(frames, seed=2)
    for t in range(2):
        assert torch.equal(out[t], augment(frames[t], seed=2))
    part = augment(frames[:, 4:6], seed=2, first=4, total=9)
    assert torch.equal(part, out[:, 4:6])


def test_augmentation_leaves_its_input_alone():
    images = pictures()
    kept = images.clone()
    for name in NAMES:
        Augment([transform("test", name)])(images, seed=1)
        assert torch.equal(images, kept), name


@pytest.mark.parametrize(("name", "pixels"), [("crop4", 4), ("shift2", 2)])
def test_shift_pads_and_crops(name, pixels):
    images, corner = pictures(50), draw(name, 50)["corner"]
    out = transform("test", name).apply(images, {"corner": corner})
    for image, (row, column), got in zip(images, corner.tolist(), out):
        padded = torch.zeros(3, 32 + 2 * pixels, 32 + 2 * pixels)
        padded[:, pixels:-pixels, pixels:-pixels] = image
        assert torch.equal(got, padded[:, row : row + 32, column : column + 32])
    assert set(corner.flatten().tolist()) == set(range(2 * pixels + 1))


def test_flip_changes_half_of_the_images():
    images, flip = pictures(40), draw("flip", 40)["flip"]
    out = transform("test", "flip").apply(images, {"flip": flip})
    for image, changed, got in zip(images, flip, out):
        assert torch.equal(got, image.flip(-1) if changed else image)
    assert 10 < flip.sum() < 30


def test_cutout_is_cut_off_at_the_border():
    images, centre = pictures(30) + 0.1, draw("cutout16", 30)["centre"]
    centre[0], centre[1] = 0.0, torch.tensor([0.999, 0.5])
    out = transform("test", "cutout16").apply(images, {"centre": centre})
    for image, (y, x), got in zip(images, centre.tolist(), out):
        y, x = int(y * 32), int(x * 32)
        expected = image.clone()
        expected[:, max(0, y - 8) : y + 8, max(0, x - 8) : x + 8] = 0
        assert torch.equal(got, expected)
    assert (out[0] == 0).all(0).sum() == 64 and (out[1] == 0).all(0).sum() == 9 * 16


def test_normalise():
    images = pictures()
    out = Augment([Normalise((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))])(images, seed=0)
    for channel, (mean, std) in enumerate(((0.5, 0.1), (0.4, 0.2), (0.3, 0.3))):
        torch.testing.assert_close(out[:, channel], (images[:, channel] - mean) / std)


def test_events_roll_turn_or_cut_out():
    images = pictures(60, size=48, channels=2) + 0.1
    events, draws = transform("test", "events"), draw("events", 60)
    out = events.apply(images, events.arrange(draws))
    assert torch.bincount(draws["choice"], minlength=3).min() > 8
    assert draws["roll"].abs().max() == 5 and draws["degrees"].abs().max() <= 30
    assert draws["degrees"].min() < -20 and draws["degrees"].max() > 20
    for i, choice in enumerate(draws["choice"].tolist()):
        if choice == 0:
            expected = torch.roll(images[i], draws["roll"][i].tolist(), (-2, -1))
        elif choice == 1:
            planes = [Image.fromarray(plane.numpy()) for plane in images[i]]
            turned = [np.array(plane.rotate(draws["degrees"][i].item())) for plane in planes]
            expected = torch.from_numpy(np.stack(turned))
        else:
            y, x = (int(value) for value in draws["centre"][i] * 48)
            expected = images[i].clone()
            expected[:, max(0, y - 8) : y + 8, max(0, x - 8) : x + 8] = 0
        differ = (out[i] - expected).abs().gt(1e-6).float().mean()
        assert differ == 0, (i, choice)


def pil(name, image, strength):
    """The operation as PIL does it."""
    size, fill = image.size, (128, 128, 128)
    maps = {
        "shear_y": (1, 0, 0, strength, 1, 0),
        "translate_x": (1, 0, strength * size[0], 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, strength * size[1]),
    }
    if name in maps:
        return image.transform(size, Image.Transform.AFFINE, maps[name], fillcolor=fill)
    enhanced = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhanced:
        return enhanced[name](image).enhance(strength)
    if name == "rotate":
        return image.rotate(strength, fillcolor=fill)
    if name == "posterize":
        return ImageOps.posterize(image, int(strength))
    if name == "solarize":
        return ImageOps.solarize(image, strength)
    return getattr(ImageOps, name)(image)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pil(name):
    images = (pictures() * 255).round()
    for magnitude in range(10):
        for sign in (-1.0, 1.0):
            strength = OPERATIONS[name].strength(
                torch.full((6,), float(magnitude), dtype=torch.float64), torch.full((6,), sign)
            )
            out = OPERATIONS[name].run(images, strength.double())
            for image, got, value in zip(images, out, strength.tolist()):
                before = Image.fromarray(image.byte().permute(1, 2, 0).numpy())
                after = torch.from_numpy(np.array(pil(name, before, value))).permute(2, 0, 1)
                off = (got - after).abs()
                # PIL may round the other way where its own arithmetic is inexact.
                assert off.max() <= 1 and off.mean() < 0.005, (magnitude, sign)


def test_strengths_reach_from_nothing_to_all():
    one = torch.ones(1, dtype=torch.float64)
    reach = {
        n: (o.strength(0 * one, one), o.strength(9 * one, -one)) for n, o in OPERATIONS.items()
    }
    assert {name: (a.item(), round(b.item(), 6)) for name, (a, b) in reach.items()} == {
        "rotate": (0, -30),
        "shear_y": (0, -0.3),
        "translate_x": (0, round(-150 / 331, 6)),
        "translate_y": (0, round(-150 / 331, 6)),
        "posterize": (8, 4),
        "solarize": (256, 0),
        "color": (1, 0.1),
        "contrast": (1, 0.1),
        "brightness": (1, 0.1),
        "sharpness": (1, 0.1),
        "autocontrast": (0, 0),
        "equalize": (0, 0),
        "invert": (0, 0),
    }


def test_policy_is_the_published_one():
    """By how often each operation is in it, and by sums over it that a slip would change."""
    names = Counter(name for pair in POLICY for name, _, _ in pair)
    assert names == {
        "equalize": 9,
        "autocontrast": 7,
        **dict.fromkeys(("sharpness", "translate_y", "color"), 5),
        **dict.fromkeys(("brightness", "solarize"), 4),
        "invert": 3,
        **dict.fromkeys(("contrast", "translate_x", "shear_y"), 2),
        **dict.fromkeys(("rotate", "posterize"), 1),
    }
    sums = {
        (turn, part): sum(i * pair[turn][part] for i, pair in enumerate(POLICY, 1))
        for turn in (0, 1)
        for part in (1, 2)
    }
    assert sums == {(0, 1): 1884, (1, 1): 1746, (0, 2): 1850, (1, 2): 1475}


def test_autoaugment_does_one_pair_to_every_image():
    images = pictures(200)
    policy, draws = transform("test", "autoaugment"), draw("autoaugment", 200)
    out = policy.apply(images, policy.arrange(draws))
    assert len(POLICY) == 25 and draws["pair"].unique().numel() == 25
    one = torch.ones(1, dtype=torch.float64)
    for i, pair in enumerate(draws["pair"].tolist()):
        levels = (images[i : i + 1] * 255).round()
        for turn, (name, tenths, magnitude) in enumerate(POLICY[pair]):
            if draws["chance"][i, turn] < tenths / 10:
                sign = 1 if draws["sign"][i, turn] else -1
                strength = OPERATIONS[name].strength(magnitude * one, sign * one)
                levels = OPERATIONS[name].run(levels, strength)
        torch.testing.assert_close(out[i : i + 1] * 255, levels, atol=1e-3, rtol=0)
    # Only what no chance touched stays as it is.
    assert 0.02 < (out == images).all((1, 2, 3)).float().mean() < 0.6


def test_sets_are_augmented_and_normalised_as_asked():
    data = load_data("digits", train=10, test=10, augment=["shift2"], normalise=True)
    ((images, _),) = data.test.batches([torch.arange(10)])
    torch.testing.assert_close(data.prepare(images, seed=0), (images - 0.1307) / 0.3081)
    trained = data.augment(images, seed=3)
    moved = Augment([transform("digits", "shift2")])(images, seed=3)
    torch.testing.assert_close(trained, (moved - 0.1307) / 0.3081)
    plain = load_data("digits", train=10, test=10, augment=[])
    assert torch.equal(plain.augment(images, 0), images)
