"""Seven image corruptions in five severities. arXiv:1903.12261 (ImageNet-C, CIFAR-10-C)

Shapes   images x (B, C, H, W) in [0, 1], C = 1 (gray) or 3 (RGB), H and W free · m (B, 1, H, W)
The severities are those of the 32 x 32 images of CIFAR-10-C.

Differs  Only torch, no image library. The size of pixelate's blocks follows the image, not a fixed
         32. The drops of water get soft edges from a second blur, not from an edge detector and a
         distance transform. motion_blur rounds its line to pixels. jpeg leaves out the entropy
         coding, which loses nothing. Only jpeg rounds its result to 8 bits.
"""

import inspect
import math

import torch
import torch.nn.functional as F

CORRUPTIONS = {}         # name -> function(images, *values[, generator]); .levels, five tuples
LUMA = (0.299, 0.587, 0.114)
WATER = (175 / 255, 238 / 255, 238 / 255)
MUD = (63 / 255, 42 / 255, 20 / 255)


def corruption(*levels):
    """Decorator: register a corruption with its values at severity 1 .. 5."""
    def registered(function):
        function.levels = [v if isinstance(v, tuple) else (v,) for v in levels]
        CORRUPTIONS[function.__name__] = function
        return function
    return registered


def corrupt(images, name, severity, seed=0):
    """Corrupted images, same shape and dtype, in [0, 1].

    images     (B, C, H, W) in [0, 1], before any normalisation; C is 1 or 3
    name       a key of CORRUPTIONS;  severity   1 .. 5
    seed       (0) one draw per image, in order: image i depends on seed and i, not on B
    """
    function, extra = CORRUPTIONS[name], {}
    if "generator" in inspect.signature(function).parameters:
        extra["generator"] = torch.Generator().manual_seed(seed)
    wide = images.to(torch.promote_types(images.dtype, torch.float32))
    out = function(wide, *function.levels[severity - 1], **extra)
    return out.clamp(0, 1).to(images.dtype)


def draw(sampler, images, *shape, generator):
    """One draw (*shape) per image, in order, always in float32: (B, *shape) like the images."""
    return torch.stack([sampler(shape, generator=generator) for _ in images]).to(images)


@corruption(0.04, 0.06, 0.08, 0.09, 0.10)
def gaussian_noise(images, sigma, generator):
    """x + sigma n,  n ~ N(0, 1)"""
    return images + sigma * draw(torch.randn, images, *images.shape[1:], generator=generator)


@corruption(0.01, 0.02, 0.03, 0.05, 0.07)
def impulse_noise(images, amount, generator):
    """Salt and pepper: every value is 0 or 1 with probability amount / 2 each."""
    u = draw(torch.rand, images, *images.shape[1:], generator=generator)
    return torch.where(u < amount / 2, 0, torch.where(u >= 1 - amount / 2, 1, images))


@corruption(0.75, 0.5, 0.4, 0.3, 0.15)
def contrast(images, c):
    """m + c (x - m),  m (B, C, 1, 1) the mean of a channel over its pixels"""
    m = images.mean((2, 3), keepdim=True)
    return m + c * (images - m)


def blocks(size, c):
    """P (size, size): the mean over blocks of pixels, int(c size) of them as even as can be.

    Pixel p lies in the block that holds its centre: shrinking with a box filter and enlarging with
    the nearest pixel. A projection with rows and columns that sum to 1.
    """
    count = max(1, int(c * size))
    block = ((torch.arange(size, dtype=torch.float64) + 0.5) * count / size).long()
    member = F.one_hot(block, count).double()                                # (size, count)
    return member / member.sum(0) @ member.T


@corruption(0.95, 0.9, 0.85, 0.75, 0.65)
def pixelate(images, c):
    """P_H x P_W with c H by c W blocks: a pixel becomes the mean of its block"""
    P_H, P_W = (blocks(size, c).to(images) for size in images.shape[2:])
    return P_H @ images @ P_W


@corruption((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))
def motion_blur(images, radius, sigma, generator):
    """sum_i w_i x(p + round(i d)),  w_i ~ exp(-i^2 / 2 sigma^2),  i = 0 .. 2 radius: one-sided.

    d = (sin a, cos a), a ~ U(-45, 45) degrees per image; the border is repeated outwards.
    """
    B, _, H, W = images.shape
    i = torch.arange(2 * radius + 1, device=images.device)
    w = torch.exp(-i.to(images) ** 2 / (2 * sigma ** 2))
    angle = (draw(torch.rand, images, 1, generator=generator) - 0.5) * math.pi / 2
    down, right = ((i * f(angle)).round().long() for f in (torch.sin, torch.cos))
    pixels, out = images.movedim(1, -1), 0                                   # (B, H, W, C)
    image = torch.arange(B, device=i.device)[:, None, None]
    y, x = torch.arange(H, device=i.device)[:, None], torch.arange(W, device=i.device)
    for step, weight in enumerate(w / w.sum()):
        rows = (y + down[:, step, None, None]).clamp(0, H - 1)               # (B, H, 1)
        columns = (x + right[:, step, None, None]).clamp(0, W - 1)           # (B, 1, W)
        out = out + weight * pixels[image, rows, columns]
    return out.movedim(-1, 1)


def blur(maps, sigma):
    """Gaussian blur of maps (B, 1, H, W) up to 4 sigma, the border repeated outwards."""
    steps = torch.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1, device=maps.device)
    w = torch.exp(-steps.to(maps) ** 2 / (2 * sigma ** 2))
    for dim in (2, 3):
        n = maps.shape[dim]
        places = [(torch.arange(n, device=maps.device) + s).clamp(0, n - 1) for s in steps]
        maps = sum(v * maps.index_select(dim, p) for v, p in zip(w / w.sum(), places))
    return maps


@corruption(("water", 0.62, 0.1, 0.7, 0.7, 0.5), ("water", 0.65, 0.1, 0.8, 0.7, 0.5),
            ("water", 0.65, 0.3, 1.0, 0.69, 0.5), ("mud", 0.65, 0.1, 0.7, 0.69, 0.6),
            ("mud", 0.65, 0.1, 0.5, 0.68, 0.6))
def spatter(images, liquid, mean, spread, sigma, threshold, last, generator):
    """Drops d = 1[blur(mean + spread n, sigma) > threshold], n ~ N(0, 1), one map for all channels.

    mud     m = blur(d, last), 0 where below .8;                        (1 - m) x + m color
    water   m = last blur(d, sigma) / its maximum over the image;       x + m color
    On gray images the color is its luminance. Mud is as in the paper's code, water simplified.
    """
    noise = draw(torch.randn, images, 1, *images.shape[2:], generator=generator)
    drops = (blur(mean + spread * noise, sigma) > threshold).to(images)
    color = images.new_tensor(MUD if liquid == "mud" else WATER)
    if images.shape[1] == 1:
        color = (color * color.new_tensor(LUMA)).sum(0, keepdim=True)
    color = color[:, None, None]                                             # (C, 1, 1)
    if liquid == "mud":
        m = blur(drops, last)
        m = torch.where(m < 0.8, 0, m)
        return (1 - m) * images + m * color
    m = blur(drops, sigma)
    return images + last * m / m.amax((2, 3), keepdim=True).clamp(min=1e-6) * color


# ---- JPEG ----------------------------------------------------------------------------------------

# The example tables of the standard (ITU-T T.81, annex K), at quality 50.
LUMINANCE = ((16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
             (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
             (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
             (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99))
CHROMINANCE = ((17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
               (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
               *[(99,) * 8] * 4)


def quantization(table, quality):
    """Q (8, 8) integers in 1 .. 255: the table scaled from quality 50; quality 100 is all ones."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * scale + 50) // 100).clamp(1, 255)


def dct_matrix():
    """C (8, 8) orthogonal:  C_kn = a_k cos((2 n + 1) k pi / 16),  a_0 = 1/sqrt 8, else 1/2"""
    k, n = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    C = torch.cos((2 * n + 1) * k * math.pi / 16) / 2
    C[0] /= math.sqrt(2)
    return C


def code(plane, Q):
    """A plane (B, H, W) around 0, coded and decoded: C^T (Q round(C b C^T / Q)) C per block b."""
    H, W = plane.shape[1:]
    C, Q = dct_matrix().to(plane), Q.to(plane)
    plane = F.pad(plane, (0, -W % 8, 0, -H % 8), mode="replicate")
    b = plane.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).transpose(2, 3)    # (B, H/8, W/8, 8, 8)
    b = C.T @ (Q * (C @ b @ C.T / Q).round()) @ C
    return b.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :H, :W]


@corruption(80, 65, 58, 50, 40)
def jpeg(images, quality):
    """JPEG with 8-bit values. Gray: luminance only. RGB: Y, and Cb, Cr averaged over 2 x 2 pixels.

    Y = .299 R + .587 G + .114 B,   Cb = (B - Y) / 1.772,   Cr = (R - Y) / 1.402
    """
    x = (255 * images).round() - 128
    Q = quantization(LUMINANCE, quality)
    if x.shape[1] == 1:
        return (code(x[:, 0], Q)[:, None] + 128).round() / 255
    H, W = x.shape[2:]
    r, g, b = x.unbind(1)                                                    # (B, H, W) each
    Y = LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
    chroma = torch.cat([(b - Y) / 1.772, (r - Y) / 1.402])                   # (2 B, H, W)
    half = F.avg_pool2d(F.pad(chroma, (0, W % 2, 0, H % 2), mode="replicate"), 2).round()
    half = code(half, quantization(CHROMINANCE, quality))
    full = F.interpolate(half[None], scale_factor=2, mode="bilinear")[0]     # as libjpeg does
    Y, (Cb, Cr) = code(Y.round(), Q), full[:, :H, :W].chunk(2)
    b, r = Y + 1.772 * Cb, Y + 1.402 * Cr
    g = (Y - LUMA[0] * r - LUMA[2] * b) / LUMA[1]
    return (torch.stack([r, g, b], 1) + 128).round() / 255
