"""What holds for every corruption: the box, severity 0, more change at a higher severity, noise that belongs to a sample."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.corruptions import CORRUPTIONS, SEVERITIES, Columns, Draws, corrupt, get
from audit.corruptions.weather import plasma
from audit.errors import UsageError

IMAGES = [name for name, c in CORRUPTIONS.items() if c.kind == "image"]
ROWS = [name for name, c in CORRUPTIONS.items() if c.kind == "columns"]
UNBOUNDED = ["shifted_columns", "wrong_unit", "swapped_columns"]  # leave a column's range, unless it was stated


def test_the_registry_holds_what_is_promised():
    assert set(IMAGES) == {
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "defocus_blur",
        "motion_blur",
        "brightness",
        "contrast",
        "haze",
        "pixelation",
        "jpeg",
        "occlusion",
        "rotation",
        "shift",
    }
    imputations = ["missing_mean", "missing_median", "missing_frequent", "missing_knn"]
    assert set(ROWS) == {"column_noise", *imputations, *UNBOUNDED}
    for corruption in CORRUPTIONS.values():
        assert len(corruption.strengths) == len(SEVERITIES)
        assert corruption.title
        assert corruption.unit
        assert corruption.family in type(corruption).__module__


def images(n: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return smooth images with detail at every scale, as photographs have, in [0, 1]; the subject is in the middle."""
    draws = Draws(torch.arange(n * channels), seed=seed, purpose="test", like=torch.zeros(1))
    clouds = plasma(height, width, draws).reshape(n, channels, height, width)
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]
    return clouds * torch.exp(-1.5 * (rows**2 + columns**2))


def table(n: int = 300, seed: int = 0) -> np.ndarray:
    """Return related columns in different units: two of real numbers, one of counts, one of 0 and 1, one skewed."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=n)
    columns = [
        100 + 20 * hidden,
        0.01 * (hidden + rng.normal(size=n)),
        rng.poisson(np.exp(0.5 * hidden + 1)),
        (hidden + rng.normal(size=n) > 1).astype(float),
        np.exp(rng.normal(size=n)),
    ]
    return np.stack(columns, axis=1)


def far(changed: Tensor | np.ndarray, clean: Tensor | np.ndarray) -> float:
    return float(np.abs(np.asarray(changed) - np.asarray(clean)).mean())


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    channels=st.integers(1, 4),
    low=st.floats(-300, 200),
    width=st.floats(0.01, 1000),
    severity=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_images_stay_in_their_box_and_shape(name, size, channels, low, width, severity, seed):
    if get(name).left_out((channels, *size)):
        return
    x = low + width * torch.rand(3, channels, *size, generator=torch.Generator().manual_seed(seed))
    # Roundings of this very sum may leave the box, and severity 0 gives back what it was given.
    x = x.clamp(float(np.float32(low)), float(np.float32(low + width)))
    changed = corrupt(x, name, severity, low=low, high=low + width, seed=seed)
    assert changed.shape == x.shape
    assert changed.dtype == x.dtype
    assert bool(torch.isfinite(changed).all())
    assert float(changed.min()) >= np.float32(low)
    assert float(changed.max()) <= np.float32(low + width)
    if severity == 0:
        assert torch.equal(changed, x)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (28, 28), (32, 32), (48, 64)], ids=str)
def test_a_higher_severity_changes_images_more(name, size):
    x = images(48, 3, *size)
    moved = [far(corrupt(x, name, severity), x) for severity in (0, *SEVERITIES)]
    assert moved[0] == 0
    assert moved[1] > 1e-3
    # Blocks that do not divide the image lie differently at each size, and small JPEGs have few steps left.
    slack = 0.02 if name in ("pixelation", "jpeg") else 0.0
    assert all(after > before * (1 - slack) for before, after in pairwise(moved)), moved
    assert moved[5] > 1.3 * moved[1]


@pytest.mark.parametrize("name", IMAGES)
def test_a_box_with_its_own_limits_a_channel_is_kept(name):
    unit = images(6, 3, 16, 16)
    low, high = np.asarray([-1.0, 0.0, 10.0]).reshape(3, 1, 1), np.asarray([1.0, 255.0, 11.0]).reshape(3, 1, 1)
    x = torch.from_numpy(low + (high - low) * unit.double().numpy()).float()
    changed = corrupt(x, name, 4, low=low, high=high).double().numpy()
    assert (changed >= low - 1e-6).all()
    assert (changed <= high + 1e-4).all()
    # The same as in the unit box: no limits leak from channel to channel.
    np.testing.assert_allclose((changed - low) / (high - low), corrupt(unit, name, 4).double().numpy(), atol=6e-3)


@pytest.mark.parametrize("name", [*IMAGES, *ROWS])
def test_noise_belongs_to_the_sample(name):
    x = images(90, 1, 12, 12) if name in IMAGES else torch.from_numpy(table(90))
    known = {} if name in IMAGES else {"columns": Columns.fit(table(200, seed=1))}
    ids = torch.arange(90) * 3 + 5
    whole = corrupt(x, name, 3, ids=ids, **known)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))[:40]
    np.testing.assert_allclose(whole[order], corrupt(x[order], name, 3, ids=ids[order], **known), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole[7:8], corrupt(x[7:8], name, 3, ids=ids[7:8], **known), rtol=1e-5, atol=1e-6)
    assert torch.equal(whole, corrupt(x, name, 3, ids=ids, **known))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "haze", "occlusion", "shift"])
def test_another_seed_is_another_draw(name):
    x = images(8, 1, 12, 12)
    assert not torch.equal(corrupt(x, name, 3, seed=0), corrupt(x, name, 3, seed=1))


def test_arrays_come_back_as_arrays():
    x = images(4, 1, 8, 8).numpy()
    assert isinstance(corrupt(x, "contrast"), np.ndarray)
    assert corrupt(x, "contrast").dtype == np.float32


def test_gaussian_noise_has_its_size():
    x = torch.full((200, 1, 16, 16), 0.5)
    noise = corrupt(x, "gaussian_noise", 1) - x
    n = noise.numel()
    assert float(noise.mean()) == pytest.approx(0, abs=3 * 0.08 / n**0.5)
    assert float(noise.std()) == pytest.approx(0.08, abs=3 * 0.08 / (2 * n) ** 0.5)


def test_shot_noise_is_poisson():
    """Mean, variance and the share of zeros of the counts, each within three standard errors."""
    light, photons = 0.1, 12
    counts = corrupt(torch.full((200, 1, 16, 16), light), "shot_noise", 2).double().numpy() * photons
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    n, rate = counts.size, light * photons
    assert counts.max() < photons, "nothing was cut off at the box, so the moments are those of the counts"
    assert counts.mean() == pytest.approx(rate, abs=3 * (rate / n) ** 0.5)
    spread = ((rate + 2 * rate**2) / n) ** 0.5
    assert counts.var() == pytest.approx(rate, abs=4 * spread)
    none = np.exp(-rate)
    assert (counts < 0.5).mean() == pytest.approx(none, abs=3 * (none / n) ** 0.5)


def test_impulse_noise_hits_its_share_and_severities_are_nested():
    x = torch.full((100, 1, 16, 16), 0.5)
    hit = [corrupt(x, "impulse_noise", s) != 0.5 for s in SEVERITIES]
    for mask, share in zip(hit, get("impulse_noise").strengths, strict=True):
        assert float(mask.double().mean()) == pytest.approx(share, abs=3 * (share / x.numel()) ** 0.5)
    assert all(bool((more | ~less).all()) for less, more in pairwise(hit))


def test_blur_keeps_the_light_and_a_point_becomes_a_disk():
    from audit.corruptions.blur import disk

    for radius in (0.6, 1.5, 3.0, 10.0):
        kernel = disk(radius)
        assert float(kernel.sum()) == pytest.approx(1)
        assert torch.equal(kernel, kernel.T)
        assert torch.equal(kernel, kernel.flip(0))
        assert 1 / float(kernel.max()) == pytest.approx(np.pi * radius**2, rel=0.04), "full pixels share the disk's area"
    x = torch.zeros(4, 1, 33, 33)
    x[:, :, 16, 16] = 1
    for name in ("defocus_blur", "motion_blur"):
        np.testing.assert_allclose(corrupt(x, name, 3).sum(dim=(1, 2, 3)), 1, rtol=1e-4)


def test_pixelation_into_whole_blocks_is_their_mean():
    x = images(5, 2, 12, 16)
    small = torch.nn.functional.avg_pool2d(x, 2)
    expected = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    np.testing.assert_allclose(corrupt(x, "pixelation", 3), expected, atol=1e-6)


def test_contrast_and_brightness_do_what_they_say():
    x = images(5, 3, 10, 10)
    flat = corrupt(x, "contrast", 3)
    np.testing.assert_allclose(flat.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=1e-6)
    np.testing.assert_allclose(flat.std(dim=(2, 3)), 0.2 * x.std(dim=(2, 3)), rtol=1e-4)
    np.testing.assert_allclose(corrupt(x, "brightness", 2), (x + 0.2).clamp(max=1), atol=1e-6)


def test_a_turn_back_and_a_shift_move_what_is_there():
    from audit.corruptions.warp import moved, turned

    x = torch.zeros(1, 1, 9, 13)
    x[0, 0, 4, 6] = 1
    right = moved(x, torch.tensor([2.0]), torch.tensor([-1.0]))
    assert float(right[0, 0, 3, 8]) == pytest.approx(1, abs=1e-5)
    half = turned(images(1, 1, 9, 13), torch.tensor([180.0]))
    np.testing.assert_allclose(half, images(1, 1, 9, 13).flip(2, 3), atol=1e-5)
    arm = torch.zeros(1, 1, 9, 9)
    arm[0, 0, 4, 7] = 1
    assert float(turned(arm, torch.tensor([90.0]))[0, 0, 1, 4]) == pytest.approx(1, abs=1e-4), (
        "a quarter turn is a turn to the left"
    )


def test_jpeg_is_what_pillow_writes():
    import io

    from PIL import Image

    x = (images(1, 3, 16, 24) * 255).round() / 255
    file = io.BytesIO()
    pixels = (x[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=25)
    expected = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
    assert torch.equal(corrupt(x, "jpeg", 1)[0], expected)


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_a_higher_severity_changes_rows_more(name):
    x = table()
    columns = Columns.fit(table(400, seed=3))
    moved = [far(corrupt(x, name, s, columns=columns) / columns.std, x / columns.std) for s in (0, *SEVERITIES)]
    assert moved[0] == 0
    if name == "swapped_columns":  # five columns are two pairs
        assert moved[1] < moved[2] == moved[3] == moved[5]
    else:
        assert all(before < after for before, after in pairwise(moved)), moved


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("stated", [False, True])
def test_rows_stay_in_range(name, stated):
    x = table()
    low, high = x.min(axis=0), x.max(axis=0)
    bounds = {"low": low, "high": high} if stated else {}
    changed = corrupt(x, name, 5, columns=Columns.fit(x, **bounds))
    inside = (changed >= low - 1e-9).all() and (changed <= high + 1e-9).all()
    assert inside == (stated or name not in UNBOUNDED)


def test_noise_keeps_whole_numbers_whole_and_moves_some_at_every_severity():
    x = table(2000)
    for severity in SEVERITIES:
        noisy = corrupt(x, "column_noise", severity)
        assert (noisy[:, 2:4] == noisy[:, 2:4].round()).all()
        assert (noisy[:, 2:4] != x[:, 2:4]).any(axis=0).all()
        assert set(np.unique(noisy[:, 3])) == {0.0, 1.0}
    assert (corrupt(np.full((9, 2), 3.0), "column_noise", 5) == 3).all(), "a column that does not vary has no noise"


def test_all_imputations_fill_the_same_gaps():
    x = table() + 0.123  # so that no filled value is the true one by chance
    columns = Columns.fit(table(400, seed=3))
    gaps = [corrupt(x, f"missing_{how}", 4, columns=columns) != x for how in ("mean", "median", "frequent", "knn")]
    assert all((gap == gaps[0]).all() for gap in gaps)
    share = gaps[0].mean()
    assert share == pytest.approx(0.3, abs=3 * (0.21 / x.size) ** 0.5)
    filled = corrupt(x, "missing_mean", 4, columns=columns)
    assert np.isclose(filled[gaps[0]], np.broadcast_to(columns.mean, x.shape)[gaps[0]]).all()
    assert columns.frequent[3] == 0
    assert columns.frequent[0] == columns.median[0]


def test_neighbours_are_those_of_scikit_learn():
    from sklearn.impute import KNNImputer

    rng = np.random.default_rng(0)
    reference, x = rng.normal(size=(150, 6)) * [1, 5, 100, 0.1, 2, 3], rng.normal(size=(400, 6)) * [1, 5, 100, 0.1, 2, 3]
    columns = Columns.fit(reference)
    ours = corrupt(x, "missing_knn", 5, columns=columns)
    gone = corrupt(x, "missing_mean", 5, columns=columns) != x
    scaled = np.where(gone, np.nan, (x - columns.mean) / columns.std)
    some = ~gone.all(axis=1)
    imputer = KNNImputer(n_neighbors=5).fit((reference - columns.mean) / columns.std)
    theirs = imputer.transform(scaled) * columns.std + columns.mean
    np.testing.assert_allclose(ours[some], theirs[some], rtol=1e-9)
    assert gone.any()
    assert (~some).any(), "a row without any value is there, too"
    np.testing.assert_allclose(ours[~some], np.broadcast_to(columns.mean, x.shape)[~some])


def test_a_sample_is_not_its_own_neighbour():
    """Rows far apart from each other: whoever could look at itself would fill every gap nearly right."""
    x = np.random.default_rng(1).normal(size=(60, 12))
    cheat = corrupt(x, "missing_knn", 1, columns=Columns.fit(x))
    fair = corrupt(x, "missing_knn", 1, columns=Columns.fit(x, own_ids=np.arange(60)))
    assert far(fair, x) > 1.1 * far(cheat, x)
    np.testing.assert_allclose(fair, corrupt(x, "missing_knn", 1), err_msg="on its own data it is fair unless told otherwise")


def test_one_row_alone_has_no_neighbour_and_gets_the_mean():
    x = np.asarray([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(corrupt(x, "missing_knn", 5), x)


def test_faults_of_the_pipeline_do_what_they_say():
    x = table() + np.asarray([0.1, 0.2, 0.3, 0.4, 0.5])  # no two values of a row are the same
    assert (np.sort(corrupt(x, "swapped_columns", 2), axis=1) == np.sort(x, axis=1)).all()
    assert ((corrupt(x, "swapped_columns", 1) != x).sum(axis=1) == 2).all()
    wrong = corrupt(x, "wrong_unit", 3) / x
    assert (np.isclose(wrong, 10).sum(axis=1) == 1).all()
    assert (np.isclose(wrong, 1).sum(axis=1) == 4).all()
    columns = Columns.fit(x)
    shifted = (corrupt(x, "shifted_columns", 3, columns=columns) - x) / columns.std
    assert (np.isclose(np.abs(shifted), 2).sum(axis=1) == 1).all()
    assert (np.isclose(shifted, 0, atol=1e-9).sum(axis=1) == 4).all()


def test_arrays_of_other_shapes_are_columns():
    x = np.random.default_rng(0).normal(size=(20, 4, 5)).astype(np.float32)
    for name in ROWS:
        assert corrupt(x, name, 3).shape == x.shape
    flat = corrupt(x.reshape(20, 20), "column_noise", 3)
    np.testing.assert_array_equal(corrupt(x, "column_noise", 3).reshape(20, 20), flat)


# --- misuse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corrupt(images(2, 1, 8, 8), "gausian_noise"), "gaussian_noise"),
        (lambda: corrupt(images(2, 1, 8, 8), "contrast", 6), "severity is a whole number from 0"),
        (lambda: corrupt(images(2, 1, 8, 8), "contrast", -1), "severity is a whole number from 0"),
        (lambda: corrupt(torch.zeros(2, 1, 7, 8), "contrast"), "at least 8×8"),
        (lambda: corrupt(torch.zeros(2, 8), "contrast"), "expected images of shape"),
        (lambda: corrupt(images(2, 2, 8, 8), "jpeg"), "1 or 3 channels, and the images have 2"),
        (lambda: corrupt(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "contrast"), "floating point"),
        (lambda: corrupt(images(3, 1, 8, 8), "contrast", ids=[1, 2]), "one id for each of 3"),
        (lambda: corrupt(table(), "column_noise", columns=Columns.fit(table()[:, :2])), "rows of 2 columns, got 5"),
        (lambda: corrupt(table()[:, :1], "swapped_columns"), "there is one column"),
    ],
)
def test_misuse_says_what_was_expected(call, message):
    with pytest.raises(UsageError, match=message):
        call()
