"""Toy videos: a textured object moves over a textured background; its direction is the label.

These properties must not reveal the class:

* Position. The world is a torus of the frame's size: an object that leaves on one side re-enters on
  the opposite side and is drawn on both. Starts are uniform, so the position in every single frame
  is uniform for every class. Starts that keep the path inside the frame would leak the class (an
  object at the right edge came from the left); on a larger canvas the object would leave the view.
* Speed. It is constant, and drawn from the same range for all classes.
* Appearance. Shape, colours, background, flicker and format are drawn independently of the class;
  still distractors look like the moving object. Only faint compression artefacts remain.

Mirroring changes the class of most videos, so classifiers must be trained without random flips.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Label k moves in the direction of k eighths of a full turn, clockwise from right.
CLASSES = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")

SPEED = (0.04, 0.06)  # path length per frame, as a share of the side
RADIUS = (0.16, 0.2)  # of the moving object, as a share of the side
STILL_RADIUS = (0.1, 0.14)  # of a distractor: too small to hide the object

_BLOCK_BYTES = 64 << 20  # of frames drawn at once, four bytes per sample

# Outlines as (corners, inner radius / outer radius): disc, square, bulging triangle, star.
_SHAPES = ((32, math.cos(math.pi / 32)), (4, math.cos(math.pi / 4)), (3, 0.62), (5, 0.58))


def toy_positions(seed: int, index: int, *, size: int, num_frames: int) -> Floats:
    """The positions of the object in video `index`: (T, 3) float32 of y, x, radius in pixels.

    The centre lies in [0, size) on the torus; y = 0 is the middle of the first row of pixels.
    """
    rng = np.random.default_rng((seed, index))
    return _draw_track(rng, CLASSES[index % 8], size, num_frames)


def render_toy_video(
    seed: int, index: int, *, size: int, num_frames: int, distractors: int = 1
) -> tuple[NDArray[np.uint8], Floats]:
    """Draw video `index`: frames (T, size, size, 3) uint8, and positions as in `toy_positions`."""
    blocks, positions = draw_toy_video(
        seed, index, size=size, num_frames=num_frames, distractors=distractors
    )
    return np.concatenate(list(blocks)), positions


def draw_toy_video(
    seed: int, index: int, *, size: int, num_frames: int, distractors: int = 1
) -> tuple[Iterator[NDArray[np.uint8]], Floats]:
    """Like `render_toy_video`, but yields blocks (t, size, size, 3), drawn as they are consumed."""
    rng = np.random.default_rng((seed, index))
    positions = _draw_track(rng, CLASSES[index % 8], size, num_frames)
    moving = _draw_object(rng, float(positions[0, 2]))
    flicker_period, flicker_phase = rng.uniform(20, 60), rng.uniform()
    still = _draw_background(rng, size)[None]  # (1, H, W, 3)
    for _ in range(distractors):
        distractor = _draw_object(rng, size * rng.uniform(*STILL_RADIUS))
        _paste(still, distractor, rng.uniform(0, size, (1, 2)))

    turn = np.arange(num_frames) / flicker_period + flicker_phase
    gain = (1 + 0.05 * np.sin(2 * np.pi * turn)).astype(np.float32)

    def block(start: int, stop: int) -> NDArray[np.uint8]:
        frames = np.repeat(still, stop - start, axis=0)  # (t, H, W, 3)
        _paste(frames, moving, positions[start:stop, :2].astype(np.float64))
        frames *= 255 * gain[start:stop, None, None, None]
        return np.clip(np.rint(frames), 0, 255).astype(np.uint8)

    length = max(1, _BLOCK_BYTES // still.nbytes)
    starts = range(0, num_frames, length)
    return (block(start, min(start + length, num_frames)) for start in starts), positions


def _draw_track(rng: np.random.Generator, name: str, size: int, num_frames: int) -> Floats:
    # All classes draw the same random numbers in the same order; the class only rotates the path.
    start = rng.uniform(0, size, 2)
    radius, speed = size * rng.uniform(*RADIUS), size * rng.uniform(*SPEED)
    angle = 2 * np.pi * CLASSES.index(name) / len(CLASSES)  # y points down: clockwise
    path = speed * np.arange(num_frames)[:, None] * np.array([np.sin(angle), np.cos(angle)])
    centres = np.round(start + path, 3) % size  # precision of positions.csv
    return np.column_stack([centres, np.full(num_frames, round(radius, 3))]).astype(np.float32)


def _draw_background(rng: np.random.Generator, size: int) -> Floats:
    # Smooth colour noise: random grids of 2, 4 and 8 cells, interpolated around the torus.
    image = np.zeros((3, size, size))
    for cells, weight in ((2, 1.0), (4, 0.6), (8, 0.2)):
        at = np.arange(size) * cells / size
        left, share = at.astype(int), (1 - np.cos(np.pi * (at % 1))) / 2
        spread = np.zeros((size, cells))
        spread[np.arange(size), left] = 1 - share
        spread[np.arange(size), (left + 1) % cells] += share
        image += weight * (spread @ rng.uniform(-1, 1, (3, cells, cells)) @ spread.T)
    image = rng.uniform(0.35, 0.65, (3, 1, 1)) + 0.12 * image
    return np.clip(image, 0.05, 0.95).transpose(1, 2, 0).astype(np.float32)


def _draw_object(rng: np.random.Generator, radius: float) -> Floats:
    # A patch (n, n, 4) of colour times coverage, and coverage; drawn at 4x resolution, then
    # averaged.
    (corners, inner), turn = _SHAPES[rng.integers(len(_SHAPES))], rng.uniform(0, 2 * np.pi)
    # Two shades of one colour: a visible piece of the object reveals its inside, so a model that
    # fills in hidden parts is left to learn where the object is and where it goes.
    bright = rng.uniform(0.15, 1, 3)
    dark = 0.8 * bright
    mosaic = rng.permutation(16).reshape(4, 4) < 8  # not periodic, so that motion is unambiguous
    half, fine = math.ceil(radius) + 1, 4
    axis = ((np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5) / radius
    y, x, sin, cos = axis[:, None], axis[None, :], np.sin(turn), np.cos(turn)
    u, v = x * cos + y * sin, y * cos - x * sin
    wedge = np.pi / corners
    angle = np.abs((np.arctan2(v, u) + wedge) % (2 * wedge) - wedge)  # from the nearest corner
    edge = inner * np.sin(wedge) / (np.sin(angle) + inner * np.sin(wedge - angle))
    row, column = (np.clip((2 + 2 * w).astype(int), 0, 3) for w in (v, u))
    colour = np.where(mosaic[row, column][..., None], bright, dark)
    patch = np.concatenate([colour, np.ones_like(colour[..., :1])], axis=2)
    patch *= (np.hypot(u, v) <= edge)[..., None]
    n = 2 * half + 1
    return np.asarray(patch.reshape(n, fine, n, fine, 4).mean(axis=(1, 3)), dtype=np.float32)


def _paste(frames: Floats, patch: Floats, centres: NDArray[np.float64]) -> None:
    # Draw the patch into (T, H, W, 3) in place, centred at (T, 2) between pixels, around the torus.
    size, n = frames.shape[1], len(patch)
    whole = np.floor(centres).astype(int)
    fy, fx = np.moveaxis((centres - whole).astype(np.float32), 1, 0)[:, :, None, None, None]
    tall = np.pad(patch, ((1, 1), (0, 0), (0, 0)))
    moved = (1 - fy) * tall[1:] + fy * tall[:-1]  # (T, n + 1, n, 4)
    wide = np.pad(moved, ((0, 0), (0, 0), (1, 1), (0, 0)))
    moved = (1 - fx) * wide[:, :, 1:] + fx * wide[:, :, :-1]  # (T, n + 1, n + 1, 4)
    reach = np.arange(n + 1) - n // 2
    rows, columns = ((whole[:, axis, None] + reach) % size for axis in (0, 1))
    place = np.arange(len(frames))[:, None, None], rows[:, :, None], columns[:, None, :]
    frames[place] = frames[place] * (1 - moved[..., 3:]) + moved[..., :3]
