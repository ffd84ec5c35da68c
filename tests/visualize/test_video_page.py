"""Pages in a real browser: its masks are Python's, its overlay lies on what it is about."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from scipy.stats import spearmanr
from videos import turn

from hpm_video.config import DataConfig, MaskingConfig
from hpm_video.method.blocks import Blocks
from hpm_video.method.masking import make_mask, num_hard_units, num_masked_units
from hpm_video.models.tokens import TokenGrid
from hpm_video.visualize.figures import heat_at, picture
from hpm_video.visualize.films import GAP, LABEL_HEIGHT, film_frames, panel_size, write_mp4
from hpm_video.visualize.geometry import Place
from hpm_video.visualize.hard_tubes import HardTubes
from hpm_video.visualize.verdict import mean_of, verdict
from hpm_video.visualize.video_page import Asked, Film, video_page
from hpm_video.visualize.windows import View, read_window, window_indices

GRID = TokenGrid(4, 8, 8)
TUBELET = 2
CROP = 64  # pixels: tokens of 8
ASKED = Asked("outputs/<pre>", step=7, settings="run: {}\n", num_masks=8)
SIZES = {"landscape": (96, 160), "portrait": (160, 96), "odd": (97, 131), "rotated": (96, 160)}


def show(browser: Any, film: Film, folder: Path, asked: Asked = ASKED) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    path = folder / "page.html"
    path.write_text(video_page(film, asked), encoding="utf-8")
    browser.get(path.as_uri())
    WebDriverWait(browser, 120).until(
        lambda b: b.execute_script("return document.documentElement.dataset.ready === 'true'")
    )
    browser.execute_script("play(false); show(0)")  # a page begins playing


def pixels(browser: Any, canvas: str = "picture") -> np.ndarray:
    """A canvas of the page, (H, W, 3)."""
    source = browser.execute_script(f"return document.getElementById('{canvas}').toDataURL()")
    image = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    return np.asarray(image.convert("RGB")).astype(float)


def moving_square(path: Path, kind: str, *, num_frames: int = 12) -> Path:
    """A video as displayed of SIZES[kind]: a white square of 20 pixels crosses a dark picture."""
    height, width = SIZES[kind]
    turned = kind == "rotated"
    with av.open(str(path), "w") as container:
        codec = "ffv1" if kind == "odd" else "libx264"
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = (width, height) if turned else (height, width)
        stream.pix_fmt = "bgr0" if kind == "odd" else "yuv420p"
        for number in range(num_frames):
            frame = np.full((height, width, 3), 40, dtype=np.uint8)
            top, left = height // 2 - 24 + 3 * number, width // 2 - 30 + 4 * number
            frame[top : top + 20, left : left + 20] = 230
            # The player turns it counter-clockwise, so it is stored turned clockwise
            stored = np.ascontiguousarray(np.rot90(frame, -1)) if turned else frame
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode(None))
    if turned:
        turn(path, 90)
    return path


def film_of(path: Path, view: View | None = None) -> Film:
    """Of a video's bright parts: as if the loss were the share of each token that they cover."""
    data = DataConfig(num_frames=8, frame_stride=1, crop_size=CROP, num_workers=0, sampling="dense")
    view = view or View()
    (indices,) = window_indices(12, data, view)
    window = read_window(path, indices, data, view)
    tubes = []
    for crop, place in zip(window.crops, window.places, strict=True):
        bright = crop.mean(axis=-1) > 128  # (T, S, S)
        shares = bright.reshape(4, TUBELET, 8, 8, 8, 8).mean(axis=(1, 3, 5)).astype(np.float32)
        mask = np.zeros((4, 8, 8), dtype=bool)
        mask[:, :4] = True
        tubes.append(
            HardTubes(
                frames=window.frames,
                place=place,
                crop=crop,
                indices=indices,
                grid=GRID,
                predicted=shares,
                measured=shares[:, ::-1].copy() + 0.5,
                others={
                    "motion": shares[:, :, ::-1].copy(),
                    "codec": shares[:, ::-1, ::-1].copy(),
                },
                random_mask=mask,
                honest=crop,
                flattering=255 - crop,
                spearman=0.25,
                rank_accuracy=0.75,
                masking=MaskingConfig(mask_ratio=0.5),
                hard_ratio=0.5,
            )
        )
    return Film(path.name, (tuple(tubes),), fps=10, video_fps=10, num_frames=12)


def hardest_by(tubes: HardTubes, source: str) -> np.ndarray:
    """The hard tubes of the run's masks, had they been chosen by another source."""
    return replace(tubes, masking=replace(tubes.masking, source=source)).hard


def middle(flags: np.ndarray) -> np.ndarray:
    """The mean place (y, x) of what is flagged, in shares of the picture."""
    assert flags.any()
    return (np.argwhere(flags).mean(axis=0) + 0.5) / flags.shape


def check_on_object(hot: np.ndarray, frame: np.ndarray, place: Place, what: str) -> None:
    """Hot pixels (H, W) lie within a token of the square in a frame (h, w, 3), and around it."""
    height, width = frame.shape[:2]
    token = np.array([place.height * height, place.width * width]) / 8
    object_there = frame.mean(axis=-1) > 128
    apart = (middle(hot) - middle(object_there)) * (height, width)
    assert (np.abs(apart) < token).all(), f"{what}: {apart} pixels away, a token is {token}"
    ends = np.array([np.argwhere(hot).min(axis=0), np.argwhere(hot).max(axis=0) + 1]) / hot.shape
    inner = np.argwhere(object_there)
    shape = np.array([height, width])
    assert (np.abs(ends[0] * shape - inner.min(axis=0)) < 1.3 * token).all(), what
    assert (np.abs(ends[1] * shape - inner.max(axis=0) - 1) < 1.3 * token).all(), what


def is_hot(picture: np.ndarray) -> np.ndarray:
    """Where the heat is yellow to white: more red and green than dark and purple have."""
    return (picture[..., 0] > 150) & (picture[..., 1] > 90)


def test_a_page_needs_nothing_and_escapes_names(tmp_path: Path) -> None:
    film = film_of(moving_square(tmp_path / "a.mp4", "portrait"))
    hostile = replace(film, name="</script><img src=x onerror=alert(1)>{{data}}")
    page = video_page(hostile, ASKED)
    assert "<img src=x" not in page and page.count("</script>") == 2
    assert "outputs/&lt;pre&gt;" in page and "&lt;img src=x" in page
    assert "http" not in re.sub(r"http-equiv|base64,[^\"]*", "", page)
    assert "default-src 'none'" in page and len(page) < 10_000_000
    assert not re.search(r"\b(NaN|Infinity)\b", page.split('id="data">')[1].split("</script>")[0])


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("view", [View(), View(whole_frame=True)], ids=["crop", "whole"])
def test_figures_and_films_lie_on_the_object(tmp_path: Path, kind: str, view: View) -> None:
    video = moving_square(tmp_path / ("a.mkv" if kind == "odd" else "a.mp4"), kind)
    film = film_of(video, view)
    (tubes,) = film.windows[0]
    assert tubes.frames.shape[1:3] == SIZES[kind]
    write_mp4(film_frames(film), tmp_path / "film.mp4", fps=10)
    height, width = panel_size(film)
    with av.open(str(tmp_path / "film.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 8
    for number in (0, 5):
        left = width + GAP  # the second panel: the loss predicted
        panel = shown[number][LABEL_HEIGHT : LABEL_HEIGHT + height, left : left + width]
        check_on_object(is_hot(panel), tubes.frames[number], tubes.place, f"mp4 {kind} {number}")
    figure = picture(tubes, title="a")
    figure.savefig(tmp_path / "a.png", dpi=100)
    drawn = imread(tmp_path / "a.png")[..., :3] * 255
    axes = figure.axes[1]  # frames and the loss predicted are the first two rows
    step = width_of(tubes) + max(1, width_of(tubes) // 24)
    ends = [
        axes.transData.transform((5 * step + x - 0.5, y - 0.5))
        for x, y in ((0, 0), (width_of(tubes), tubes.frames.shape[1]))
    ]
    (x0, y0), (x1, y1) = (np.round(end * 100 / figure.dpi).astype(int) for end in ends)
    part = drawn[len(drawn) - y0 : len(drawn) - y1, x0:x1]
    check_on_object(is_hot(part), tubes.frames[5], tubes.place, f"png {kind}")


def width_of(tubes: HardTubes) -> int:
    return tubes.frames.shape[2]


def test_pictures_count_frames_from_1(tmp_path: Path) -> None:
    (tubes,) = film_of(moving_square(tmp_path / "a.mp4", "landscape")).windows[0]
    assert tubes.indices.tolist() == list(range(2, 10))  # the middle 8 of 12
    captions = [label.get_text() for label in picture(tubes, title="").axes[-1].get_xticklabels()]
    assert captions[0] == "frame 3" and captions[-1] == "frame 10"


def test_heat_outside_of_the_crop_is_none() -> None:
    frames = np.full((1, 8, 16, 3), 0.8, dtype=np.float32)
    drawn = heat_at(frames, np.ones((1, 2, 2)), Place(0, 0.25, 1, 0.5))
    assert np.allclose(drawn[0, :, :4], 0.4) and np.allclose(drawn[0, :, 12:], 0.4)
    assert (drawn[0, :, 4:12, 0] > 0.85).all()


@pytest.mark.browser
@pytest.mark.parametrize("kind", SIZES)
def test_the_page_lies_on_the_object(browser: Any, tmp_path: Path, kind: str) -> None:
    video = moving_square(tmp_path / ("a.mkv" if kind == "odd" else "a.mp4"), kind)
    for view in (View(), View(whole_frame=True)):
        film = film_of(video, view)
        show(browser, film, tmp_path)
        for number in (0, 5):
            browser.execute_script(
                f"state.opacity = 1; state.row = state.column = 0; look('predicted');show({number})"
            )
            drawn = pixels(browser)
            height, width = SIZES[kind]
            assert drawn.shape[0] / drawn.shape[1] == pytest.approx(height / width, rel=0.01)
            # The chosen tube's white frame is at the corner, none of the heat
            (tubes,) = film.windows[0]
            top, left, high, wide = tubes.place.pixels(*drawn.shape[:2])
            rows = slice(max(0, top - 8), top + high // 8 + 8)
            drawn[rows, max(0, left - 8) : left + wide // 8 + 8] = 0
            check_on_object(is_hot(drawn), tubes.frames[number], tubes.place, f"{kind} {number}")
    assert errors(browser) == []


def errors(browser: Any) -> list[Any]:
    return browser.get_log("browser")


@pytest.mark.browser
def test_masks_of_the_page_are_those_of_python(browser: Any, tmp_path: Path) -> None:
    film = film_of(moving_square(tmp_path / "a.mp4", "portrait"))
    show(browser, film, tmp_path)
    rng = np.random.default_rng(0)
    cases = []
    for case in range(200):
        grid = TokenGrid(4, int(rng.integers(2, 9)), int(rng.integers(2, 9)))
        scores = rng.normal(size=(grid.time, grid.height, grid.width)).astype(np.float32)
        if case % 3 == 0:
            scores = np.round(scores)  # with ties
        mask_ratio, hard_ratio = (float(n) / 100 for n in rng.integers((10, 0), (91, 101)))
        masking = MaskingConfig(mask_ratio=mask_ratio, tube_length=int(rng.choice([1, 2, 4])))
        cases.append(
            replace(
                film.windows[0][0], grid=grid, predicted=scores, measured=scores, masking=masking,
                hard_ratio=hard_ratio,
            )
        )  # fmt: skip
    given = [
        [
            *(tubes.per_tube(tubes.scores).tolist(), tubes.mask_ratio, tubes.hard_ratio),
            *([tubes.grid.time, tubes.grid.height, tubes.grid.width], tubes.tube_length),
        ]
        for tubes in cases
    ]
    found = browser.execute_script(
        """return JSON.parse(arguments[0]).map(([units, maskRatio, hardRatio, grid, size], seed) =>
        {
          const mask = masks.hardMask(Float32Array.from(units), maskRatio, hardRatio, seed);
          const tokens = (flags) => Array.from(masks.toTokens(flags, grid, size));
          return [tokens(mask.hard), tokens(mask.masked),
            tokens(masks.randomMask(units.length, maskRatio, seed))];
        })""",
        json.dumps(given),
    )
    for tubes, answer in zip(cases, found, strict=True):
        hard, masked, random = (
            np.array(f, dtype=bool).reshape(tubes.measured.shape) for f in answer
        )
        assert np.array_equal(hard, tubes.hardest())
        assert masked.sum() == random.sum() == tubes.mask.sum()
        assert (masked | ~hard).all() and (tubes.mask | ~hard).all()
        # Those of training, but that of equals it takes any
        units = torch.from_numpy(tubes.per_tube(tubes.scores))
        for seed in range(3):
            chosen = make_mask(
                torch.from_numpy(tubes.scores).reshape(1, -1), tubes.grid, tubes.masking,
                hard_ratio=tubes.hard_ratio, batch_size=1,
                generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
            theirs = chosen.hard.reshape(hard.shape).numpy()
            values = (
                tubes.per_tube(hard.astype(np.float32)),
                tubes.per_tube(theirs.astype(np.float32)),
            )
            one, other = (units[torch.from_numpy(flags) > 0].sort().values for flags in values)
            assert torch.equal(one, other)
            if len(units.unique()) == len(units):
                assert np.array_equal(hard, theirs)


@pytest.mark.browser
def test_blocks_are_those_of_training(browser: Any, tmp_path: Path) -> None:
    """By the same random numbers: in what order masks hide tubes, and which blocks are hard."""
    show(browser, film_of(moving_square(tmp_path / "a.mp4", "portrait")), tmp_path)
    rng = np.random.default_rng(0)
    cases = [
        (rng.normal(size=rows * columns).tolist(), float(ratio), float(hard), [rows, columns])
        for rows, columns in rng.integers(2, 15, (100, 2)).tolist()
        for ratio, hard in [rng.uniform((0.3, 0), (0.95, 1))]
    ]
    found = browser.execute_script(
        """return JSON.parse(arguments[0]).map(([values, ratio, hardRatio, frame], seed) => {
          const draws = masks.draws(seed, 121);
          const blocks = masks.blocks(frame, draws);
          const mask = masks.hardMask(values, ratio, hardRatio, seed, frame);
          const scores = blocks.scores(values).map((score) => Math.max(score, -99));
          return [draws, Array.from(blocks.turn), scores,
            Array.from(mask.hard), Array.from(mask.masked),
            Array.from(masks.randomMask(values.length, ratio, seed, frame))];
        })""",
        json.dumps(cases),
    )
    kinds = set()
    for (values, ratio, hard_ratio, frame), answer in zip(cases, found, strict=True):
        draws, turn, scores, hard, masked, random = (np.array(each) for each in answer)
        grid = TokenGrid(1, *frame)
        theirs = Blocks(torch.from_numpy(draws)[None], grid)
        assert turn.tolist() == theirs.order()[0].tolist()
        expected = theirs.scores(torch.tensor([values], dtype=torch.float64))[0]
        assert np.allclose(scores, expected.nan_to_num(nan=-99).numpy())
        count = num_masked_units(grid, mask_ratio=ratio, tube_length=1)
        assert masked.sum() == random.sum() == count and (masked >= hard).all()
        is_there = scores > -99
        assert hard.sum() == min(int(hard_ratio * count), is_there.sum())
        assert scores[hard == 1].min(initial=9) >= scores[hard == 0].max(initial=-9)
        for taken, free in ((masked, hard == 0), (random, turn >= 0)):
            assert turn[free & (taken == 1)].max(initial=0) <= turn[taken == 0].min()
        kinds.add(draws[0] < 0.5)
    assert len(kinds) == 2


@pytest.mark.browser
def test_a_run_with_blocks_shows_blocks(browser: Any, tmp_path: Path) -> None:
    film = film_of(moving_square(tmp_path / "a.mp4", "portrait"))
    (tubes,) = film.windows[0]
    shown = replace(tubes, masking=MaskingConfig(mask_ratio=0.5, pattern="blocks"))
    show(browser, replace(film, windows=((shown,),)), tmp_path)
    script = """const { crop, mask } = moment(state, 0);
      const draws = masks.draws(1000, 121);
      return [Array.from(mask.hard), Array.from(crop.predicted.units), draws,
        document.getElementById("counts").textContent]"""
    hard, units, draws, said = browser.execute_script(script)
    scores = Blocks(torch.tensor([draws]), GRID).scores(torch.tensor([units]))[0].numpy()
    flags = np.array(hard) == 1
    assert scores[flags].min() >= scores[~flags & ~np.isnan(scores)].max()
    assert said == f"32 of 64 tubes masked, {flags.sum()} of them by score"
    assert not np.array_equal(flags, hardest_by(tubes, "predicted").reshape(4, 64)[0])


@pytest.mark.browser
def test_as_many_tubes_are_masked_at_any_ratio(browser: Any, tmp_path: Path) -> None:
    """At 0.29 of 100 too, which is 28.999... for a computer."""
    show(browser, film_of(moving_square(tmp_path / "a.mp4", "portrait")), tmp_path)
    ratios, hard_ratios = ([n / 100 for n in range(*ends)] for ends in ((5, 96), (0, 101)))
    for units in (49, 100, 196):
        grid = TokenGrid(1, 1, units)
        found = browser.execute_script(
            "const [units, ratios, hard] = arguments; return ratios.map((ratio) => "
            "hard.map((share) => Object.values(masks.counts(units, ratio, share))))",
            units, ratios, hard_ratios,
        )  # fmt: skip
        for ratio, line in zip(ratios, found, strict=True):
            count = num_masked_units(grid, mask_ratio=ratio, tube_length=1)
            assert line == [
                [count, num_hard_units(grid, mask_ratio=ratio, tube_length=1, hard_ratio=hard)]
                for hard in hard_ratios
            ]


@pytest.mark.browser
def test_controls_change_the_picture(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    film = film_of(moving_square(tmp_path / "a.mp4", "landscape"))
    show(browser, film, tmp_path)
    (tubes,) = film.windows[0]

    def slide(name: str, value: float) -> None:
        browser.execute_script(
            "const input = document.getElementById(arguments[0]); input.value = arguments[1];"
            "input.dispatchEvent(new Event('input'))",
            name, value,
        )  # fmt: skip

    def text(name: str) -> str:
        return browser.execute_script(f"return document.getElementById('{name}').textContent")

    browser.execute_script("look('predicted')")
    before = pixels(browser)
    slide("opacity", 0.1)
    assert np.abs(pixels(browser) - before).mean() > 3
    slide("opacity", 0.9)
    # Every view differs from the others
    views = browser.find_elements(By.CSS_SELECTOR, "[data-view]")
    assert [view.get_attribute("data-view") for view in views] == [
        "predicted", "motion", "codec", "measured", "clip", "hard", "random", "seen", "honest",
        "flattering",
    ]  # fmt: skip
    drawn = {}
    for view in views:
        view.click()
        assert view.get_attribute("aria-pressed") == "true"
        drawn[view.get_attribute("data-view")] = pixels(browser)
        warned = browser.find_element(By.ID, "warning").is_displayed()
        assert warned == (view.get_attribute("data-view") == "flattering")
    names = list(drawn)
    for one in names:
        for other in names[names.index(one) + 1 :]:
            if {one, other} != {"clip", "honest"}:  # here the reconstruction is perfect
                assert np.abs(drawn[one] - drawn[other]).mean() > 1, (one, other)
    # Each source with its own rank correlation, and masks by each
    for source in ("predicted", "motion", "codec"):
        units = (tubes.per_tube(scores) for scores in (tubes.kinds[source], tubes.measured))
        expected = spearmanr(*units).statistic
        shown = browser.find_element(By.CSS_SELECTOR, f"[data-agreement={source}]").text
        assert shown == f"Spearman {expected:.2f}", source
    browser.execute_script("look('hard')")
    masks = {}
    for source in tubes.kinds:
        browser.execute_script(
            "by('scores').value = arguments[0]; by('scores').dispatchEvent(new Event('change'))",
            source,
        )
        assert text("covered") == f"{100 * tubes.covered(hardest_by(tubes, source)):.0f}%", source
        masks[source] = pixels(browser)
    assert np.abs(masks["motion"] - masks["codec"]).mean() > 1
    browser.execute_script(
        "by('scores').value = 'predicted'; by('scores').dispatchEvent(new Event('change'))"
    )
    # Masks follow their sliders, and numbers do
    browser.execute_script("look('hard')")
    half, covered = pixels(browser), text("covered")
    slide("hard-ratio", 1.0)
    assert text("covered") != covered and "32 of 64 tubes masked, 32 of them" in text("counts")
    slide("mask-ratio", 0.9)
    assert "57 of 64 tubes masked" in text("counts")
    assert (pixels(browser) == 128).mean() > (half == 128).mean() + 0.1
    share = tubes.covered(tubes.hardest(mask_ratio=0.9, hard_ratio=1.0))
    assert text("covered") == f"{100 * share:.0f}%"
    # The pointer shows the values of the tube under it
    browser.execute_script("look('predicted'); show(5)")
    step, row, column = 5 // TUBELET, 3, 6
    place = browser.execute_script(
        "const r = document.getElementById('picture').getBoundingClientRect();"
        "return [r.left, r.top, r.width, r.height]"
    )
    top, left, high, wide = tubes.place
    x = place[2] * (left + wide * (column + 0.5) / 8)
    y = place[3] * (top + high * (row + 0.5) / 8)
    canvas = browser.find_element(By.ID, "picture")
    ActionChains(browser).move_to_element_with_offset(
        canvas, round(x - place[2] / 2), round(y - place[3] / 2)
    ).perform()
    assert tubes.predicted is not None
    assert text("tube").startswith("Tube in row 4 of 8, column 7 of 8; predicted score ")
    assert f"predicted score {tubes.predicted[step, row, column]:.3f}" in text("tube")
    assert f"measured loss {tubes.measured[step, row, column]:.3f}" in text("tube")
    # So do keys, and what is said to screen readers follows
    canvas.send_keys(Keys.ARROW_LEFT, Keys.ARROW_DOWN)
    assert text("tube").startswith("Tube in row 5 of 8, column 6 of 8")
    canvas.send_keys(".")
    assert text("when").startswith("frame 9 of 12")
    canvas.send_keys(" ")
    assert text("play") == "Pause"
    playing = text("when")
    for _ in range(100):
        if text("when") != playing:
            break
        browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert text("when") != playing
    canvas.send_keys(" ")
    assert text("play") == "Play"
    browser.execute_async_script("setTimeout(arguments[0], 700)")
    assert text("said").startswith("Tube in row 5")
    # Every control has a name
    assert browser.execute_script(
        "return [...document.querySelectorAll('input, select, button, canvas[role]')].filter("
        "(e) => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map((e) => e.id)"
    ) == []  # fmt: skip
    # Light and dark
    paper = "return getComputedStyle(document.body).backgroundColor"
    browser.execute_script(
        "by('theme').value = 'light'; by('theme').dispatchEvent(new Event('change'))"
    )
    light = browser.execute_script(paper)
    browser.execute_script(
        "by('theme').value = 'dark'; by('theme').dispatchEvent(new Event('change'))"
    )
    assert browser.execute_script(paper) != light
    assert errors(browser) == []


@pytest.mark.browser
def test_it_opens_playing_beside_its_maps_with_a_verdict(browser: Any, tmp_path: Path) -> None:
    film = film_of(moving_square(tmp_path / "a.mp4", "landscape"))
    path = tmp_path / "playing.html"
    path.write_text(video_page(film, ASKED), encoding="utf-8")
    browser.get(path.as_uri())
    script = """const finish = arguments[0], seen = new Set();
      const watch = setInterval(() => {
        seen.add(document.getElementById("when").textContent);
        if (seen.size > 3) { clearInterval(watch); finish(true) } }, 30)"""
    assert browser.execute_async_script(script)
    tops = browser.execute_script(
        "play(false); show(5); state.opacity = 1; redraw();"
        "return [...document.querySelectorAll('.stage canvas')].map("
        "(one) => Math.round(one.getBoundingClientRect().top))"
    )
    assert len(tops) == 3 and len(set(tops)) == 1  # side by side
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"))
        for source in browser.execute_script(
            "return [...document.querySelectorAll('[data-panel]')].map((one) => one.toDataURL())"
        )
    ]
    for view, panel in zip(("predicted", "measured"), shown, strict=True):
        browser.execute_script(f"look('{view}')")
        assert np.array_equal(pixels(browser), panel), view
    said = browser.find_element("css selector", ".verdict").text
    assert said.startswith("Spearman 0.25: the predictor ranks tubes better than chance, but not")
    assert "0.50 or more counts as well, less than 0.20 as no better than chance." in said
    assert errors(browser) == []


@pytest.mark.parametrize(
    ("spearman", "words"),
    [(0.5, "well"), (0.49, "better than"), (0.2, "better"), (0.19, "no better"),
     (-0.19, "no better"), (-0.2, "wrong way round")],
)  # fmt: skip
def test_verdicts(spearman: float, words: str) -> None:
    found = verdict(spearman)
    assert found is not None and words in found.words
    assert verdict(None) is None
    assert mean_of([None, float("nan"), 0.25, 0.75]) == 0.5 and mean_of([None]) is None


@pytest.mark.browser
def test_a_plain_checkpoint_shows_what_is_measured(browser: Any, tmp_path: Path) -> None:
    film = film_of(moving_square(tmp_path / "a.mp4", "landscape"), View(num_crops=3))
    plain = tuple(
        replace(
            t,
            predicted=None,
            others={"motion": t.measured},
            flattering=None,
            spearman=None,
            rank_accuracy=None,
        )
        for t in film.windows[0]
    )
    show(browser, replace(film, windows=(plain,)), tmp_path)
    names = browser.execute_script(
        "return [...document.querySelectorAll('[data-view]')].map((e) => e.dataset.view)"
    )
    assert names == ["motion", "measured", "clip", "hard", "random", "seen", "honest"]
    said = browser.execute_script("return document.body.textContent")
    assert "plain VideoMAE" in said and "lacks motion vectors" in said
    assert errors(browser) == []


@pytest.mark.browser
def test_a_classifier_beside_it_is_shown(browser: Any, tmp_path: Path) -> None:
    film = film_of(moving_square(tmp_path / "a.mp4", "landscape"), View(num_crops=3))
    seen = tuple(
        replace(
            t,
            others={**t.others, "rollout": t.measured, "relevance": t.kinds["motion"]},
            seen_as=(f"class<{n}>", n / 4),
        )
        for n, t in enumerate(film.windows[0])
    )
    asked = replace(ASKED, classifier="outputs/<fine>")
    show(browser, replace(film, windows=(seen,)), tmp_path, asked)
    names = browser.execute_script(
        "return [...document.querySelectorAll('#sources [data-view]')].map((e) => e.textContent)"
    )
    assert names[3:5] == ["Attention rolloutSpearman 1.00", names[4]]
    assert names[4].startswith("Evidence for the classSpearman ")
    said = browser.find_element("id", "seen-as").text
    browser.execute_script("choose(0, 0, 2)")
    assert (said, browser.find_element("id", "seen-as").text) == (
        "class<1>, score 0.250",
        "class<2>, score 0.500",
    )
    text = browser.execute_script("return document.body.textContent")
    assert "Class, according to <fine>" in text and "; evidence for the class " in text
    assert "relevance for" not in text  # one name
    assert errors(browser) == []


@pytest.mark.browser
def test_a_checkpoint_of_features_shows_no_reconstruction(browser: Any, tmp_path: Path) -> None:
    film = film_of(moving_square(tmp_path / "a.mp4", "landscape"), View(num_crops=3))
    features = tuple(replace(t, honest=None, flattering=None) for t in film.windows[0])
    show(browser, replace(film, windows=(features,)), tmp_path)
    names = browser.execute_script(
        "return [...document.querySelectorAll('[data-view]')].map((e) => e.dataset.view)"
    )
    sources = ["predicted", "motion", "codec", "measured"]
    assert names == [*sources, "clip", "hard", "random", "seen"]
    text = browser.execute_script("return document.body.textContent")
    assert "reconstructs features, not pixels" in text
    assert errors(browser) == []
