"""Every corruption: range, shape, seed; and one by one against examples worked by hand."""

import math

import pytest
import torch

from analysis import corruptions
from analysis.corruptions import CORRUPTIONS, corrupt
from support import close

every_kind = pytest.mark.parametrize("kind", sorted(CORRUPTIONS))
RANDOM = {"gaussian_noise", "impulse_noise", "motion_blur", "spatter"}


def pictures(B=3, C=1, H=28, W=28):
    """Smooth images in [0, 1], all different."""
    y, x = torch.linspace(0, 3, H)[:, None], torch.linspace(0, 4, W)
    return torch.stack([0.5 + 0.4 * torch.sin(x + y * (1 + 0.2 * i) + 0.3 * i)
                        for i in range(B * C)]).view(B, C, H, W)


def seeded():
    return torch.Generator().manual_seed(0)


@every_kind
@pytest.mark.parametrize("C, H, W", [(1, 28, 28), (3, 32, 32), (3, 13, 7), (1, 1, 1)])
def test_shape_and_range(kind, C, H, W):
    images = pictures(2, C, H, W)
    images[0] = images[0].round()                                     # black and white, too
    copy = images.clone()
    for severity in range(1, 6):
        out = corrupt(images, kind, severity)
        assert out.shape == images.shape and out.dtype == images.dtype
        assert out.min() >= 0 and out.max() <= 1                      # False for NaN, too
    assert images.equal(copy)


@every_kind
def test_seeded_per_image(kind):
    """Same seed, same bits; the first images of a batch do not depend on how many follow."""
    images, state = pictures(5), torch.get_rng_state()
    out = corrupt(images, kind, 3)
    assert state.equal(torch.get_rng_state())
    assert out.equal(corrupt(images, kind, 3))
    close(out[:2], corrupt(images[:2], kind, 3), atol=1e-6, rtol=0)
    assert out.equal(corrupt(images, kind, 3, seed=1)) == (kind not in RANDOM)
    twins = corrupt(images[:1].expand(6, -1, -1, -1), kind, 3)
    assert (twins == twins[0]).all() == (kind not in RANDOM)          # every image its own draw


@every_kind
def test_float64_agrees_with_float32(kind):
    images = (255 * pictures()).round() / 255
    wide = corrupt(images.double(), kind, 2)
    assert wide.dtype == torch.float64
    assert (wide - corrupt(images, kind, 2)).abs().mean() < 1e-3      # JPEG's rounding may flip
    assert corrupt(images.bfloat16(), kind, 2).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", sorted(set(CORRUPTIONS) - {"spatter"}))
def test_severity_is_monotone(kind):
    """In mean distance; motion blur only from 1 to 3, as 4 has a longer tail of weight near 0."""
    images = pictures(40) if kind in RANDOM else pictures(4)
    if kind == "pixelate":                                            # a ramp, so no aliasing
        images = torch.linspace(0, 1, 200).expand(1, 1, 200, 200)
    moved = [(corrupt(images, kind, s) - images).abs().mean() for s in range(1, 6)]
    moved = moved[:3] if kind == "motion_blur" else moved
    assert all(b > a > 0 for a, b in zip(moved, moved[1:]))


def test_severities_are_those_of_small_images():
    table = {"gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10), "jpeg": (80, 65, 58, 50, 40),
             "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
             "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
             "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
             "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))}
    for kind, values in table.items():
        assert CORRUPTIONS[kind].levels == [v if isinstance(v, tuple) else (v,) for v in values]
    assert CORRUPTIONS["spatter"].levels == [
        ("water", 0.62, 0.1, 0.7, 0.7, 0.5), ("water", 0.65, 0.1, 0.8, 0.7, 0.5),
        ("water", 0.65, 0.3, 1.0, 0.69, 0.5), ("mud", 0.65, 0.1, 0.7, 0.69, 0.6),
        ("mud", 0.65, 0.1, 0.5, 0.68, 0.6)]
    images, noise = pictures(), CORRUPTIONS["gaussian_noise"]
    assert corrupt(images, "gaussian_noise", 4).equal(noise(images, 0.09, seeded()).clamp(0, 1))


# ---- one by one ----------------------------------------------------------------------------------

def test_settings_that_change_nothing():
    """sigma = 0, no salt, c = 1, one pixel of line, no drops."""
    x = pictures(2, 3, 9, 11)
    assert CORRUPTIONS["gaussian_noise"](x, 0.0, seeded()).equal(x)
    assert CORRUPTIONS["impulse_noise"](x, 0.0, seeded()).equal(x)
    assert CORRUPTIONS["contrast"](x, 1.0).sub(x).abs().max() < 1e-6
    assert CORRUPTIONS["pixelate"](x, 1.0).equal(x)
    assert CORRUPTIONS["motion_blur"](x, 0, 1.0, seeded()).equal(x)
    for liquid in ("water", "mud"):
        assert CORRUPTIONS["spatter"](x, liquid, 0.0, 0.1, 1.0, 9.0, 0.6, seeded()).equal(x)


def test_gaussian_noise_has_its_sigma():
    noise = CORRUPTIONS["gaussian_noise"](torch.zeros(4, 1, 50, 50), 0.1, seeded())
    assert abs(noise.mean()) < 5 * 0.1 / 100
    assert noise.std().item() == pytest.approx(0.1, rel=0.03)


def test_impulse_noise_is_half_salt_half_pepper():
    x = torch.full((4, 3, 50, 50), 0.5)
    out = CORRUPTIONS["impulse_noise"](x, 0.2, seeded())
    assert set(out.unique().tolist()) == {0.0, 0.5, 1.0}
    for value in (0.0, 1.0):
        assert (out == value).double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not (out[:, 0] == 0).equal(out[:, 1] == 0)                 # per channel


def test_contrast_keeps_the_mean_of_every_channel():
    x = pictures(2, 3)
    out = CORRUPTIONS["contrast"](x, 0.4)
    close(out.mean((2, 3)), x.mean((2, 3)))
    close(out.std((2, 3)), 0.4 * x.std((2, 3)))


def test_pixelate_by_hand():
    """4 pixels in 2 blocks; 5 pixels in 2 blocks, the middle one's centre in the second."""
    row = torch.tensor([1.0, 3, 5, 9]).view(1, 1, 1, 4)
    assert CORRUPTIONS["pixelate"](row, 0.5).flatten().tolist() == [2, 2, 7, 7]
    row = torch.tensor([1.0, 3, 5, 9, 10]).view(1, 1, 5, 1)
    assert CORRUPTIONS["pixelate"](row, 0.5).flatten().tolist() == [2, 2, 8, 8, 8]
    flat = torch.full((1, 3, 28, 20), 0.3)
    close(CORRUPTIONS["pixelate"](flat, 0.65), flat)


def test_blocks_are_a_projection_of_the_right_rank():
    P = corruptions.blocks(28, 0.85)
    close(P @ P, P)
    close(P.sum(0), torch.ones(28).double())
    assert P.equal(P.T) and round(P.trace().item()) == 23             # int(0.85 x 28)


def test_motion_blur_draws_a_tail():
    """A dot becomes the line of weights w_i = exp(-i^2 / 8), i = 0 .. 12, to one side only."""
    dot = torch.zeros(30, 1, 41, 41, dtype=torch.float64)
    dot[:, :, 20, 20] = 1
    out = CORRUPTIONS["motion_blur"](dot, 6, 2.0, seeded())
    close(out.sum((1, 2, 3)), torch.ones(30).double())
    assert not out[..., 21:].any()                                    # angles within 45 degrees
    flattest = out[out[:, 0, 20, 14].argmax(), 0, 20]
    assert (flattest[17:20] / flattest[20]).tolist() == pytest.approx(
        [math.exp(-i * i / 8) for i in (3, 2, 1)])
    wide, tall = ((out > 0).any(dim).sum((1, 2)) - 1 for dim in (2, 3))
    assert wide.max() == 12 and wide.min() >= 8 and 7 <= tall.max() <= 8        # 12 sin 45 = 8.5
    up, down = out[:, :, :20].sum((1, 2, 3)), out[:, :, 21:].sum((1, 2, 3))
    assert (up > 0).any() and (down > 0).any() and not ((up > 0) & (down > 0)).any()
    tower = torch.ones(9, 1, 40, 3)                                   # borders are repeated
    tower[:, :, :10] = 0
    bottom = CORRUPTIONS["motion_blur"](tower, 9, 2.5, seeded())[:, :, -1]
    close(bottom, torch.ones(9, 1, 3))


def test_blur_keeps_mass_and_has_its_sigma():
    dot = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    dot[..., 10, 10] = 1
    out = corruptions.blur(dot, 1.5)[0, 0]
    place = torch.arange(21).double() - 10
    assert out.sum().item() == pytest.approx(1) and out.equal(out.flip(0))
    for margin in (out.sum(0), out.sum(1)):
        assert (margin * place ** 2).sum().item() == pytest.approx(1.5 ** 2, rel=0.01)
    close(corruptions.blur(dot * 0 + 0.3, 2.0), dot * 0 + 0.3)
    corner = dot.roll((-10, -10), (2, 3))
    close(corruptions.blur(corner, 2.0).flip(2, 3), corruptions.blur(corner.flip(2, 3), 2.0))


def test_spatter_colors():
    """Mud covers: where m is 1 only its color is left. Water adds at most half of its color."""
    x = torch.full((8, 3, 32, 32), 0.25)
    mud = CORRUPTIONS["spatter"](x, "mud", 0.65, 0.1, 3.0, 0.65, 0.6, seeded())
    color = torch.tensor([[63.0], [42], [20]]) / 255
    assert (mud.movedim(1, 0).flatten(1) - color).abs().amax(0).min() < 1e-3
    flood = CORRUPTIONS["spatter"](x, "mud", 0.7, 0.0, 3.0, 0.65, 0.6, seeded())
    close(flood.movedim(1, 0).flatten(1), color.expand(3, 8 * 32 * 32))
    assert (mud[:, 0] - 0.25).abs().gt(1e-6).float().mean() < 0.7     # and leaves the rest alone
    water = corrupt(x, "spatter", 1) - x
    half = 0.5 * torch.tensor([175.0, 238, 238]) / 255
    close(water.amax((2, 3)), half.expand(8, 3))
    assert water.min() == 0
    gray = corrupt(x[:, :1], "spatter", 1) - x[:, :1]
    close(gray.amax((1, 2, 3)), torch.full((8,), half @ torch.tensor([0.299, 0.587, 0.114])))


def test_jpeg_tables():
    """Quality 50 is the table itself, 100 all ones, 25 twice the table, cut at 255."""
    Q = lambda quality: corruptions.quantization(corruptions.LUMINANCE, quality)
    assert Q(50).equal(torch.tensor(corruptions.LUMINANCE)) and (Q(100) == 1).all()
    assert Q(25).equal(2 * Q(50)) and Q(10).max() == 255
    assert Q(80)[0].tolist() == [6, 4, 4, 6, 10, 16, 20, 24]          # (40 x + 50) // 100
    assert Q(50).sum() == 3688                                        # a digit mistyped shows here
    assert corruptions.quantization(corruptions.CHROMINANCE, 50).sum() == 5505
    C = corruptions.dct_matrix()
    close(C @ C.T, torch.eye(8).double())
    assert C[1, 0].item() == pytest.approx(math.cos(math.pi / 16) / 2)


@pytest.mark.parametrize("C, H, W", [(1, 28, 28), (3, 32, 32), (3, 13, 7)])
def test_jpeg_at_full_quality_is_nearly_lossless(C, H, W):
    x = pictures(2, C, 6 * H, 6 * W)[..., :H, :W]                     # halved chroma costs detail
    assert (CORRUPTIONS["jpeg"](x, 100) - x).abs().max() < 0.02


def test_jpeg_by_hand():
    """A flat block has one coefficient, 8 (v - 128), rounded to a multiple of Q_00 = 16."""
    flat = torch.full((1, 1, 8, 8), 201 / 255)                        # 8 x 73 = 584 = 36.5 x 16
    assert round(255 * CORRUPTIONS["jpeg"](flat, 50)[0, 0, 0, 0].item()) in (200, 202)
    flat = torch.full((1, 1, 12, 9), 203 / 255)                       # 600 = 37.5 x 16 -> 38 x 2
    assert (255 * CORRUPTIONS["jpeg"](flat, 50)).round().eq(204).all()


def test_jpeg_of_a_gray_picture_in_color_is_gray():
    gray = pictures(2)
    color = CORRUPTIONS["jpeg"](gray.expand(-1, 3, -1, -1), 50)
    for channel in range(3):
        close(color[:, channel], CORRUPTIONS["jpeg"](gray, 50)[:, 0])


def test_jpeg_keeps_a_flat_color():
    red = torch.tensor([0.9, 0.1, 0.2]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    assert (CORRUPTIONS["jpeg"](red, 90) - red).abs().max() < 0.02
