"""Augmentation: one draw per clip, nothing that the options do not ask for."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refuses

from jaxreid.augment import PER_FRAME, Augmentation, augment, normalize, to_unit
from jaxreid.data.batch import Batch

MEAN = (0.5, 0.4, 0.3)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    clips, frames = 64, 3
    # All frames of a clip are equal, so that a draw per frame would show.
    picture = rng.integers(1, 255, (clips, 1, 20, 10, 3), np.uint8)
    number = jnp.zeros(clips, jnp.int32)
    columns = ("tracklet", "part", "camera", "camera_index", "platform", "session", "identity", "pair", "clothes")
    return to_unit(
        Batch(
            frames=jnp.asarray(np.repeat(picture, frames, 1)),
            frame_mask=jnp.ones((clips, frames), bool),
            modality=jnp.arange(clips, dtype=jnp.int32) % 2,
            geometry=jnp.zeros((clips, 3)),
            valid=jnp.ones(clips, bool),
            **dict.fromkeys(columns, number),
        )
    )


def changed(batch, seed=0, **options):
    return np.asarray(augment(batch, jax.random.PRNGKey(seed), Augmentation(**options), MEAN).frames)


def test_no_options_no_change(batch):
    assert np.array_equal(changed(batch), np.asarray(batch.frames))


@pytest.mark.parametrize(
    "options",
    [
        {"crop": 3},
        {"flip": 0.5},
        {"erase": 1.0},
        {"channel_exchange": 1.0, "infrared_mix": True},
        {"brightness": 0.3, "contrast": 0.3},
    ],
)
def test_one_draw_per_clip(batch, options):
    frames = changed(batch, **options)
    assert frames.shape == batch.frames.shape
    assert (frames == frames[:, :1]).all(), "frames of a clip differ"
    assert (frames != np.asarray(batch.frames)).any()
    assert not np.array_equal(frames, changed(batch, seed=1, **options))


def test_flip_is_a_mirror(batch):
    frames, original = changed(batch, flip=0.5), np.asarray(batch.frames)
    mirrored = (frames == original[:, :, :, ::-1]).all((1, 2, 3, 4))
    same = (frames == original).all((1, 2, 3, 4))
    assert (mirrored | same).all() and 16 < mirrored.sum() < 48


def test_crop_is_a_shift_of_the_padded_picture(batch):
    frames, original = changed(batch, crop=2)[:, 0], np.asarray(batch.frames)[:, 0]
    padded = np.pad(original, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for clip, big in zip(frames, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if np.array_equal(clip, big[y : y + 20, x : x + 10])]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 15


def test_channels_by_modality(batch):
    visible = np.asarray(batch.modality) == 0
    frames, original = changed(batch, channel_exchange=1.0), np.asarray(batch.frames)
    assert np.array_equal(frames[~visible], original[~visible])
    equal = (frames[visible] == frames[visible][..., :1]).all()
    assert equal and any(np.array_equal(frames[visible][0][..., 0], original[visible][0][..., c]) for c in range(3))
    mixed = changed(batch, infrared_mix=True)
    assert np.array_equal(mixed[visible], original[visible])
    assert (mixed[~visible] != original[~visible]).any()


def test_erased_box_is_the_mean(batch):
    frames, original = changed(batch, erase=1.0)[:, 0], np.asarray(batch.frames)[:, 0]
    differs = (frames != original).any(-1)
    assert np.allclose(frames[differs], MEAN, atol=1e-6)
    share = differs.mean((1, 2))
    # 2–40 % of the area; a box longer than the picture is cut, rounding to pixels adds a little.
    assert share.max() < 0.5 and share.mean() > 0.05
    assert (changed(batch, erase=0.0) == np.asarray(batch.frames)).all()


def test_erased_area_has_a_limit(batch):
    frames, original = changed(batch, erase=1.0, erase_area=0.03)[:, 0], np.asarray(batch.frames)[:, 0]
    found = (frames != original).any(-1).sum((1, 2))
    # 2 to 3 % of 200 pixels are 4 to 6; a side between 1 and 4.5 pixels is rounded by half a pixel.
    assert found.max() <= (np.sqrt(6 * 10 / 3) + 0.5) * (np.sqrt(6 / (10 / 3)) + 0.5) and found.min() >= 1


@pytest.mark.parametrize("what", sorted(PER_FRAME))
def test_frames_draw_for_themselves(batch, what):
    """What is named differs between the frames of a clip, all else does not."""
    options = {
        "crop": {"crop": 3},
        "flip": {"flip": 0.5},
        "channel": {"channel_exchange": 1.0, "infrared_mix": True},
        "erase": {"erase": 0.5},
        "jitter": {"brightness": 0.1, "hue": 0.3},
    }
    for name, values in options.items():
        frames = changed(batch, per_frame=(what,), **values)
        assert frames.shape == batch.frames.shape
        alike = (frames == frames[:, :1]).all((1, 2, 3, 4))
        assert alike.mean() < 0.7 if name == what.removesuffix("_size") else alike.all(), name


def test_a_visible_clip_s_colours_are_exchanged_in_all_frames_or_in_none(batch):
    visible = np.asarray(batch.modality) == 0
    frames = changed(batch, channel_exchange=0.5, per_frame=("channel",))[visible]
    grey = (frames == frames[..., :1]).all((2, 3, 4))  # [clips, frames]
    assert (grey == grey[:, :1]).all() and 4 < grey[:, 0].sum() < 28


def test_what_frames_cannot_draw_is_named():
    with refuses(ValueError, "per_frame", "gamma", "crop", "flip", "channel", "erase"):
        Augmentation(per_frame=("gamma",))


def test_normalize(batch):
    found = normalize(batch, MEAN, (0.1, 0.2, 0.4), jnp.float32).frames
    wanted = (np.asarray(batch.frames) - np.array(MEAN)) / np.array([0.1, 0.2, 0.4])
    assert np.allclose(found, wanted, atol=1e-5)  # float32 rounding of values up to 10


def test_saturation_and_hue_turn_colours(batch):
    """Beside the colour arithmetic of the standard library, pixel by pixel; grey stays grey."""
    found = changed(batch, hue=0.5)
    for clip in range(8):
        before, after = np.asarray(batch.frames)[clip, 0].reshape(-1, 3), found[clip, 0].reshape(-1, 3)
        turns = []
        for old, new in zip(before, after, strict=True):
            (h, s, v), (h2, s2, v2) = colorsys.rgb_to_hsv(*old), colorsys.rgb_to_hsv(*new)
            np.testing.assert_allclose([s2, v2], [s, v], atol=1e-3)
            if s * v > 0.2:  # the hue of a grey pixel means nothing
                turns.append((h2 - h) % 1.0)
        turns = np.exp(2j * np.pi * np.array(turns))
        assert np.abs(turns.mean()) > 0.999  # one turn for the clip
    assert np.std([colorsys.rgb_to_hsv(*found[clip, 0, 0, 0])[0] for clip in range(8)]) > 0
    found, grey = changed(batch, saturation=1.0), np.array([0.2989, 0.5870, 0.1140])
    before = np.asarray(batch.frames)
    around = before @ grey
    inside = (found > 0).all(-1) & (found < 1).all(-1)  # what was not cut off
    factor = (found - around[..., None])[inside] / np.where(
        np.abs(x := before - around[..., None])[inside] > 0.05, x[inside], np.nan
    )
    assert np.nanmin(factor) >= 0 and np.nanmax(factor) < 2 and np.nanstd(factor) > 0.2
    level = batch.replace(frames=jnp.broadcast_to(batch.frames[..., :1], batch.frames.shape))
    # The weights of grey add up to 0.9999.
    np.testing.assert_allclose(changed(level, hue=0.5, saturation=1.0), np.asarray(level.frames), atol=1.1e-4)


def test_more_options_leave_the_draws_of_others_alone(batch):
    plain = changed(batch, crop=2, flip=0.5, erase=0.5)
    gone = (plain == np.array(MEAN, np.float32)).all(-1)
    for fill in ("random", "constant"):
        found = changed(batch, crop=2, flip=0.5, erase=0.5, erase_fill=fill, erase_constant=(1.0, 2.0, 3.0))
        np.testing.assert_array_equal(found[~gone], plain[~gone])
        assert (found[gone] != plain[gone]).any(-1).mean() > 0.99
    found = changed(batch, crop=2, flip=0.5, erase=0.5, hue=0.1)
    np.testing.assert_array_equal((found == np.array(MEAN, np.float32)).all(-1), gone)


def test_what_erased_boxes_show(batch):
    std = (0.2, 0.3, 0.4)

    def filled(fill):
        options = Augmentation(erase=1.0, erase_fill=fill, erase_constant=(0.4914, 0.4822, 0.4465))
        found = normalize(augment(batch, jax.random.PRNGKey(0), options, MEAN, std), MEAN, std, jnp.float32)
        return np.asarray(found.frames)

    untouched = np.asarray(normalize(batch, MEAN, std, jnp.float32).frames)
    gone = (filled("mean") != untouched).any(-1)
    np.testing.assert_allclose(filled("mean")[gone], 0.0, atol=1e-6)
    np.testing.assert_allclose(filled("constant")[gone], np.tile((0.4914, 0.4822, 0.4465), (gone.sum(), 1)), atol=1e-5)
    noise = filled("random")[gone]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05  # some ten thousand draws
    assert not np.array_equal(filled("random")[:, 0], filled("random")[:, 1])  # every pixel of every frame


def test_frames_draw_the_size_of_a_box_and_share_its_place(batch):
    found = changed(batch, erase=1.0, per_frame=("erase_size",))
    gone = (found == np.array(MEAN, np.float32)).all(-1)
    areas = gone.sum((2, 3))
    assert (areas > 0).all() and (areas.std(1) > 0).mean() > 0.9
    # Where the box of one frame touches the upper or left edge of the room that is left to it, so do the others.
    middle = [np.argwhere(frame).mean(0) / (20, 10) for clip in gone for frame in clip]
    spread = np.array(middle).reshape(64, 3, 2)
    assert spread.std(1).mean() < 0.7 * spread.reshape(-1, 2).std(0).mean()


def test_frames_that_do_not_count_change_no_contrast(batch):
    """Contrast is around the mean of the others."""
    mask = batch.frame_mask.at[:, -1].set(False)
    noise = jax.random.uniform(jax.random.key(1), batch.frames[:, -1].shape)
    filled = batch.replace(frame_mask=mask, frames=batch.frames.at[:, -1].set(noise))
    found = changed(filled, contrast=0.3)[:, :-1]
    np.testing.assert_array_equal(found, changed(batch.replace(frame_mask=mask), contrast=0.3)[:, :-1])
    # All frames of a clip are the same here, and so is their mean.
    np.testing.assert_allclose(found, changed(batch, contrast=0.3)[:, :-1], atol=1e-6)
