"""The gallery: what is written, and what headless Chromium then shows, against numpy."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import vdq.tracking
from vdq.data.samples import write_sample
from vdq.reports.gallery import media, write_gallery
from vdq.reports.gallery.markdown import to_html

RESULTS = Path(__file__).parents[2] / "results"
FRAMES, EDGE, FPS = 6, 32, 8
PROMPTS = ["A red <circle>.", "A blue square moves.", "A red star & a moon.", "Nothing."]
# Levels (of 255) that AVIF at the default quality moves these smooth frames, root mean square.
TOLERANCE = 4.0
TABLE = "| method | PSNR |\n|:--|--:|\n| `asq` | **1.0** |\n"


def _frames(prompt: int, run: int) -> np.ndarray:
    """A bright bar whose place tells the frame, on a gradient; runs differ by a slope of a few levels."""
    y, x = np.mgrid[:EDGE, :EDGE]
    frames = np.empty((FRAMES, EDGE, EDGE, 3))
    for frame in range(FRAMES):
        frames[frame] = np.stack([60 + 2 * x, 40 + 2 * y, np.full_like(x, 60 + 20 * prompt)], -1)
        frames[frame, :, 5 * frame : 5 * frame + 5] = 225
        frames[frame, 8:24, :, run % 3] += run * (1 + frame % 3)
    return frames.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reference and three runs of four prompts."""
    root = tmp_path_factory.mktemp("runs")
    made = [("full", "fp16", "full precision"), ("w8a8", "asq", "static"), ("w4a4", "asq", "static")]
    for number, (bits, quant, kind) in enumerate([*made, ("w4a4", "dynamic", "dynamic")]):
        scores = {"clipsim": 0.2} if number == 0 else {"clipsim": 0.2, "psnr": 30.5}
        folder = root / (f"run{number}" if number else "fp16")
        for prompt in range(len(PROMPTS)):
            write_sample(folder, prompt, torch.zeros(1), torch.from_numpy(_frames(prompt, number)), FPS)
        pd.DataFrame({"prompt": PROMPTS, **scores}).rename_axis("index").to_csv(folder / "per_video.csv")
        result = {"signature": folder.name, "reference": "fp16", "quant": quant, "bits": bits, "kind": kind}
        result |= {"model": "shapes", "dataset": "shapes", "changed": "", "metrics": "m", "assets": {"clip": "0" * 64}}
        result |= {"higher_is_better": dict.fromkeys(scores, True), "finished": f"2026-01-01T00:00:0{number}", **scores}
        (folder / "result.json").write_text(json.dumps(result))
    return root


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> pd.DataFrame:
    """A copy of these runs below ``tmp_path``, which a test may spoil."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return vdq.tracking.runs(tmp_path)


def _decode(path: Path) -> np.ndarray:
    """Frames [T,H,W,3] of a sheet of 6: three a row."""
    sheet = np.asarray(Image.open(path).convert("RGB"))
    return sheet.reshape(2, EDGE, 3, EDGE, 3).transpose(0, 2, 1, 3, 4).reshape(FRAMES, EDGE, EDGE, 3)


def _rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def test_sheets_hold_the_frames_and_the_differences(runs: pd.DataFrame, tmp_path: Path) -> None:
    write_gallery(runs, {}, tmp_path / "gallery")
    for number, name in enumerate(["fp16", "run1", "run2", "run3"]):
        shown = _decode(tmp_path / "gallery" / "media" / f"{name}_0002_video.avif")
        assert _rms(shown, _frames(2, number)) < TOLERANCE
    stored = _decode(tmp_path / "gallery" / "media" / "run3_0002_difference.avif").astype(float)
    difference = np.abs(_frames(2, 3).astype(int) - _frames(2, 0))
    assert difference.max() >= 9
    assert _rms(stored**2 / 255, difference) < 0.5


def test_a_small_difference_survives_amplification() -> None:
    reference = np.full((1, 64, 64, 3), 100, np.uint8)
    frames = reference.copy()
    frames[:, :32] += 1
    sheet = media.difference_sheet(frames, reference, 64, 55)
    stored = np.asarray(Image.open(io.BytesIO(sheet.content)).convert("RGB")).astype(float)
    amplified = 16 * stored**2 / 255
    assert _rms(amplified, 16 * (frames[0].astype(float) - reference[0])) < 3


def test_large_frames_are_shrunk_by_areas() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 128, 3), dtype=np.uint8)
    expected = frames.reshape(2, 32, 2, 64, 2, 3).mean((2, 4))
    small = media.shrink(frames, 64)
    assert small.shape == (2, 32, 64, 3)
    assert np.abs(small - expected).max() <= 1
    assert media.shrink(frames, 128) is frames


def test_a_shrunken_gallery_says_so(runs: pd.DataFrame, tmp_path: Path) -> None:
    write_gallery(runs, {}, tmp_path / "gallery", edge=16)
    assert "32×32 pixels, shrunk to 16×16" in (tmp_path / "gallery" / "index.html").read_text()
    sheet = Image.open(tmp_path / "gallery" / "media" / "run1_0000_video.avif")
    assert sheet.size == (48, 32)


def test_page_says_what_made_it_and_has_no_address(runs: pd.DataFrame, tmp_path: Path) -> None:
    write_gallery(runs, {"Scores <1>": TABLE}, tmp_path / "gallery", prompts=2, note="Of the *test*.")
    page = (tmp_path / "gallery" / "index.html").read_text()
    assert "Model <strong>shapes</strong>, prompts <strong>shapes</strong>: 2 of 4" in page
    assert "none is a paper’s" in page and "Of the <em>test</em>." in page
    assert "<summary>Scores &lt;1&gt;</summary>" in page and "<td><code>asq</code></td>" in page
    assert "8 a second" in page
    assert "http" not in page.replace("http-equiv", "")
    assert str(tmp_path) not in page
    assert "<circle>" not in page
    media_files = sorted(file.name for file in (tmp_path / "gallery" / "media").iterdir())
    assert len(media_files) == 2 * (4 + 3)
    assert {name.split("_")[1] for name in media_files} == {"0000", "0003"}


def test_titles_of_table_files(runs: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "first.md").write_text(f"# All of them\n\n{TABLE}")
    (tmp_path / "second.md").write_text(TABLE)
    write_gallery(runs, [tmp_path / "first.md", tmp_path / "second.md"], tmp_path / "gallery", prompts=1)
    page = (tmp_path / "gallery" / "index.html").read_text()
    assert "<summary>All of them</summary>" in page and "<summary>second</summary>" in page
    assert page.count('<details class="table" open>') == 1


def test_the_committed_gallery_is_small() -> None:
    files = [path for path in (RESULTS / "gallery").rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) <= 1.5e6


def test_same_runs_give_the_same_bytes(runs: pd.DataFrame, tmp_path: Path) -> None:
    def content() -> dict[str, bytes]:
        write_gallery(runs, {"t": TABLE}, tmp_path / "gallery", prompts=2)
        files = [file for file in (tmp_path / "gallery").rglob("*") if file.is_file()]
        return {file.name: file.read_bytes() for file in files}

    assert content() == content()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the quality of every sheet that is encoded from now on."""
    done: list[int] = []
    original = media.encode

    def spy(image: np.ndarray, quality: int) -> tuple[bytes, np.ndarray]:
        done.append(quality)
        return original(image, quality)

    monkeypatch.setattr(media, "encode", spy)
    return done


def test_sheets_of_the_same_frames_are_not_encoded_again(runs: pd.DataFrame, tmp_path: Path, encoded: list) -> None:
    folder = tmp_path / "gallery"
    write_gallery(runs, {}, folder)
    assert len(encoded) == len(PROMPTS) * (4 + 3)
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    encoded.clear()
    write_gallery(runs, {}, folder)
    assert encoded == []
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_sheets_of_other_frames_or_settings_are_encoded_again(
    runs: pd.DataFrame, tmp_path: Path, encoded: list, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "gallery"
    write_gallery(runs, {}, folder)
    encoded.clear()
    write_sample(tmp_path / "run2", 1, torch.zeros(1), torch.from_numpy(_frames(1, 3)), FPS)
    write_gallery(runs, {}, folder)
    assert sorted(encoded) == [55, 70]  # its difference and its video
    assert _rms(_decode(folder / "media" / "run2_0001_video.avif"), _frames(1, 3)) < TOLERANCE
    encoded.clear()
    write_sample(tmp_path / "fp16", 1, torch.zeros(1), torch.from_numpy(_frames(1, 3)), FPS)
    write_gallery(runs, {}, folder)
    assert sorted(encoded) == [55, 55, 55, 70]  # the reference, and what differs from it
    encoded.clear()
    write_gallery(runs, {}, folder, difference_quality=60)
    assert encoded == [60] * len(PROMPTS) * 3
    encoded.clear()
    (folder / "media" / "run1_0000_video.avif").write_bytes(b"damaged")
    (folder / "media" / "run3_0002_video.avif").unlink()
    write_gallery(runs, {}, folder, difference_quality=60)
    assert encoded == [70, 70]
    (folder / "sheets.json").write_text("damaged")
    write_gallery(runs, {}, folder, difference_quality=60)
    assert "sheets.json cannot be read" in caplog.text and len(encoded) == 2 + len(PROMPTS) * (4 + 3)


def test_an_error_leaves_the_older_gallery(runs: pd.DataFrame, tmp_path: Path) -> None:
    write_gallery(runs, {}, tmp_path / "out" / "gallery", prompts=2)
    before = (tmp_path / "out" / "gallery" / "index.html").read_bytes()
    (tmp_path / "run3" / "samples" / "0003.safetensors").unlink()
    with pytest.raises(ValueError, match="run3 without the frames of prompt 3"):
        write_gallery(runs, {"new": TABLE}, tmp_path / "out" / "gallery", prompts=2)
    assert (tmp_path / "out" / "gallery" / "index.html").read_bytes() == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gallery"]


def test_a_new_gallery_leaves_nothing_of_the_older(runs: pd.DataFrame, tmp_path: Path) -> None:
    write_gallery(runs, {}, tmp_path / "out" / "gallery", prompts=4)
    write_gallery(runs[:2], {}, tmp_path / "out" / "gallery", prompts=1)
    names = {file.name for file in (tmp_path / "out" / "gallery" / "media").iterdir()}
    assert names == {"fp16_0000_video.avif", "run1_0000_video.avif", "run1_0000_difference.avif"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gallery"]


def test_a_folder_with_something_else_is_not_replaced(runs: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="something else; an older gallery or no folder is allowed"):
        write_gallery(runs, {}, tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"prompts": 0}, "prompts is 0; at least 1 is allowed"),
        ({"quality": 101}, "quality is 101; 0 to 100 is allowed"),
        ({"difference_quality": -1}, "difference_quality is -1; 0 to 100 is allowed"),
        ({"edge": 8}, "edge is 8; at least 16 is allowed"),
    ],
)
def test_refused_numbers(runs: pd.DataFrame, tmp_path: Path, argument: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_gallery(runs, {}, tmp_path / "gallery", **argument)


def test_refused_runs(runs: pd.DataFrame, tmp_path: Path) -> None:
    def refused(table: pd.DataFrame, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            write_gallery(table, {}, tmp_path / "gallery")

    refused(runs[1:], "runs holds 0 reference rows")
    refused(runs.drop(columns="kind"), r"runs lacks the columns \['kind'\]")
    refused(runs.assign(model=["shapes", "shapes", "shapes", "other"]), "model values")
    refused(pd.concat([runs, runs[1:2]]), "one row a run")
    (tmp_path / "run1" / "per_video.csv").unlink()
    refused(runs, "run1, which has no per_video.csv")


def test_runs_of_other_prompts_are_refused(runs: pd.DataFrame, tmp_path: Path) -> None:
    table = pd.DataFrame({"prompt": ["Other."] * 4, "clipsim": 0.1}).rename_axis("index")
    table.to_csv(tmp_path / "run2" / "per_video.csv")
    with pytest.raises(ValueError, match="no prompt in common"):
        write_gallery(runs, {}, tmp_path / "gallery")


def test_runs_of_another_size_are_refused(runs: pd.DataFrame, tmp_path: Path) -> None:
    frames = torch.from_numpy(_frames(0, 1)[:4])
    write_sample(tmp_path / "run1", 0, torch.zeros(1), frames, FPS)
    with pytest.raises(ValueError, match=r"run1 with frames \(4, 32, 32, 3\); only \(6, 32, 32, 3\)"):
        write_gallery(runs, {}, tmp_path / "gallery")


def test_missing_table_files_are_refused(runs: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none.md, which does not exist"):
        write_gallery(runs, [tmp_path / "none.md"], tmp_path / "gallery")


def test_markdown_emphasizes_words_and_leaves_names_alone() -> None:
    assert to_html("_0.8541_ [-0.1]") == "<p><em>0.8541</em> [-0.1]</p>"
    assert to_html("*Speed-up* is **bold**") == "<p><em>Speed-up</em> is <strong>bold</strong></p>"
    for plain in ("tsq_tsw and asq_tsw", "4 * 4 * 4", "a_b_c"):
        assert to_html(plain) == f"<p>{plain}</p>"


def test_markdown_escapes_and_marks() -> None:
    html = to_html("# A & B\nText with `x < y`.\n\n| a | b |\n|---|:-:|\n| 1 \\| 2 | <script> |")
    assert html.splitlines()[:2] == ["<h3>A &amp; B</h3>", "<p>Text with <code>x &lt; y</code>.</p>"]
    assert '<th scope="col">b</th>' in html and "style" not in html
    assert "<td>1 | 2</td>\n<td>&lt;script&gt;</td>" in html


# ---- In a browser.


def _chromium() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    return None


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """Headless Chromium: Playwright's own if it is installed, else the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path).exists()
        if not own and not _chromium():
            pytest.skip("no Chromium: `playwright install chromium` or a chromium on PATH")
        # Chromium refuses its sandbox to root, as which containers run.
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        launched = playwright.chromium.launch(executable_path=None if own else _chromium(), args=arguments)
        yield launched
        launched.close()


def _inside(frame: np.ndarray) -> np.ndarray:
    """Without the border, where the page rounds corners."""
    return frame[2:-2, 2:-2]


class Page:
    """The opened gallery, with what went wrong in it and what it asked for."""

    def __init__(self, browser: object, folder: Path, fragment: str, **options: object) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1000, "height": 900}} | options))
        self.context.set_default_timeout(60_000)  # a busy machine is no error
        self.page = self.context.new_page()
        self.problems, self.requests = [], []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto((folder / "index.html").as_uri() + fragment, wait_until="domcontentloaded")

    def cell(self, column: int, row: int) -> object:
        return self.page.locator("#grid tbody").nth(row).locator(".open").nth(column)

    def shown(self, column: int, row: int, kind: str = "video") -> np.ndarray:
        """The frame on the screen, as `_inside` leaves it."""
        view = self.cell(column, row).locator(f".{kind}")
        self.load(view.locator("img"))
        return self.pixels(view)

    def load(self, image: object) -> None:
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")

    def pixels(self, view: object) -> np.ndarray:
        """A view is 128 pixels wide, four for each of the frame's; one from inside each square is taken."""
        box = {name: round(value) for name, value in view.bounding_box().items()}
        assert box["width"] == box["height"] == 4 * EDGE
        picture = np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=box))).convert("RGB"))
        return _inside(picture[1::4, 1::4])

    def visible_columns(self) -> list[str]:
        """Signatures of the columns that are not filtered out."""
        return self.page.locator("#grid thead th:visible .head code").all_inner_texts()

    def frame(self) -> str:
        return self.page.locator("#position").inner_text()

    def fragment(self) -> str:
        self.page.wait_for_timeout(300)  # the address follows at rest
        return self.page.evaluate("location.hash")


@pytest.fixture(scope="module")
def folder(finished: Path) -> Path:
    """A gallery of all runs and prompts."""
    write_gallery(vdq.tracking.runs(finished), {"Scores": TABLE}, finished / "gallery")
    return finished / "gallery"


@pytest.fixture
def gallery(folder: Path, browser: object) -> Iterator[Callable[..., Page]]:
    """Opens the gallery; at the end no page has complained or asked for anything but files beside it."""
    pages = []

    def opened(fragment: str = "", **options: object) -> Page:
        pages.append(Page(browser, folder, fragment, **options))
        return pages[-1]

    yield opened
    for page in pages:
        page.context.close()
        assert page.problems == []
        assert all(url.startswith(folder.as_uri()) for url in page.requests)


@pytest.mark.slow
def test_cells_show_the_frames(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=4")
    for column in range(4):
        for row in (0, 3):
            assert _rms(page.shown(column, row), _inside(_frames(row, column)[4])) < TOLERANCE


def _frame_on(picture: np.ndarray, prompt: int, run: int) -> int:
    return int(np.argmin([_rms(picture, frame) for frame in _frames(prompt, run)]))


@pytest.mark.slow
def test_all_videos_stand_at_the_same_frame_while_they_play(gallery: Callable[..., Page]) -> None:
    page = gallery()
    cells = [(column, row) for column in range(4) for row in range(2)]
    for column, row in cells:
        page.load(page.cell(column, row).locator(".video img"))
    boxes = {cell: page.cell(*cell).locator(".video").bounding_box() for cell in cells}
    seen = set()
    for _ in range(8):
        # One picture of the screen, so that everything in it is of one moment.
        screen = np.asarray(Image.open(io.BytesIO(page.page.screenshot())).convert("RGB"))
        found = {_frame_on(screen, boxes[column, row], row, column) for column, row in cells}
        assert len(found) == 1
        seen |= found
    assert len(seen) > 2


def _frame_on(screen: np.ndarray, box: dict[str, float], prompt: int, run: int) -> int:
    """The number of the frame that a part of the screen shows."""
    left, top = round(box["x"]), round(box["y"])
    picture = screen[top + 1 : top + 4 * EDGE : 4, left + 1 : left + 4 * EDGE : 4]
    return int(np.argmin([_rms(picture, frame) for frame in _frames(prompt, run)]))


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1, 4, 16])
def test_difference_mode_shows_the_amplified_difference(gallery: Callable[..., Page], gain: int) -> None:
    page = gallery(f"#frame=2&show=difference&gain={gain}")
    for column in (1, 3):
        difference = np.abs(_frames(1, column)[2].astype(int) - _frames(1, 0)[2])
        shown = page.shown(column, 1, "difference")
        assert _rms(shown, _inside(gain * difference).clip(0, 255)) < 1 + 0.5 * gain
        assert not page.cell(0, 1).locator(".difference").count()
    if gain == 16:
        assert shown.max() > 120


@pytest.mark.slow
def test_pointing_at_a_video_shows_its_difference(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=0&gain=16")
    difference = page.cell(3, 0).locator(".difference")
    assert not difference.is_visible()
    page.cell(3, 0).hover()
    assert difference.is_visible()
    assert not page.cell(2, 0).locator(".difference").is_visible()


@pytest.mark.slow
def test_filters_hide_columns_and_rows_and_stay_in_the_address(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=0")
    assert page.visible_columns() == ["fp16", "run1", "run2", "run3"]
    page.page.locator("#bits .chip", has_text="w8a8").click()
    assert page.visible_columns() == ["fp16", "run2", "run3"]
    page.page.locator("#methods .chip", has_text="dynamic").click()
    assert page.visible_columns() == ["fp16", "run2"]
    page.page.locator("#query").fill("RED star")
    assert page.page.locator("#grid tbody:visible .prompt").all_inner_texts() == ["A red star & a moon."]
    assert "1 of 3 runs, 1 of 4 prompts" in page.page.locator("#count").inner_text()
    fragment = page.fragment()
    again = gallery(fragment)
    assert again.visible_columns() == ["fp16", "run2"]
    assert again.page.locator("#grid tbody:visible").count() == 1
    again.page.get_by_role("button", name="all methods").click()
    again.page.get_by_role("button", name="none bits").click()
    assert again.visible_columns() == ["fp16"]
    again.page.locator("#query").fill("zebra")
    assert again.page.locator("#empty").is_visible()


@pytest.mark.slow
def test_keyboard(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=0")
    keyboard = page.page.keyboard
    keyboard.press("ArrowRight")
    assert page.frame() == "2 / 6"
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowLeft")
    assert page.frame() == "6 / 6"
    keyboard.press("d")
    assert page.cell(1, 0).locator(".difference").is_visible()
    keyboard.press("+")
    assert page.page.locator("#gains input:checked").get_attribute("value") == "16"
    assert page.fragment() == "#show=difference&gain=16&frame=5"
    keyboard.press(" ")
    assert page.page.locator("#play").inner_text() == "❚❚ Pause"
    page.page.wait_for_function("before => document.getElementById('position').value !== before", arg=page.frame())
    keyboard.press(" ")
    assert page.page.locator("#play").inner_text() == "▶ Play"
    keyboard.press("/")
    keyboard.type("red d")
    assert page.page.locator("#query").input_value() == "red d"
    assert page.page.locator("#difference").get_attribute("aria-pressed") == "true"


@pytest.mark.slow
def test_keyboard_moves_between_videos_and_opens_the_large_view(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=3&bits=w4a4")
    keyboard = page.page.keyboard
    page.page.locator(".skip").focus()
    keyboard.press("Enter")
    for key in ("n", "ArrowDown"):
        keyboard.press(key)
    # run1 is filtered out, so the next method is run2.
    assert page.cell(2, 1).evaluate("cell => cell === document.activeElement")
    keyboard.press("Enter")
    assert page.page.locator("#large").is_visible()
    assert page.page.locator("#large-title").inner_text().split() == ["asq", "w4a4", "static,", "run", "run2"]
    captions = page.page.locator(".panels figcaption").all_inner_texts()
    assert captions == ["Full precision (reference)", "asq w4a4", "Difference ×4"]
    keyboard.press("n")
    keyboard.press("ArrowUp")
    keyboard.press("ArrowRight")
    assert page.page.locator("#large-title").inner_text().startswith("dynamic")
    assert page.page.locator("#large-prompt").inner_text() == PROMPTS[0]
    assert page.page.locator("#large-position").inner_text() == "5 / 6"
    assert "open=run3.0" in page.fragment()
    keyboard.press("Escape")
    assert not page.page.locator("#large").is_visible()
    assert page.cell(3, 0).evaluate("cell => cell === document.activeElement")
    assert "open" not in page.fragment()


@pytest.mark.slow
def test_large_view_shows_both_videos_and_the_difference(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=1&gain=16&open=run3.2")
    difference = (16 * np.abs(_frames(2, 3)[1].astype(int) - _frames(2, 0)[1])).clip(0, 255)
    expected = [(_frames(2, 0)[1], TOLERANCE), (_frames(2, 3)[1], TOLERANCE), (difference, 9)]
    # As wide as the cells, to read it the same way.
    page.page.evaluate("document.querySelectorAll('.panels .view').forEach(v => v.style.setProperty('width', '128px'))")
    for place, (frame, tolerance) in enumerate(expected):
        view = page.page.locator(".panels .view").nth(place)
        page.load(view.locator("img"))
        assert _rms(page.pixels(view), _inside(frame)) < tolerance
    values = page.page.locator("#large-values tr").all_inner_texts()
    assert [line.split("\t") for line in values][1][-2:] == ["0.2000", "30.50"]


@pytest.mark.slow
def test_headings_and_cells_carry_values_and_signature(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=0")
    assert page.page.locator("#grid thead th").nth(2).inner_text().split() == (
        ["asq", "w4a4", "CLIPSIM", "0.2000", "PSNR", "dB", "30.50", "run2"]
    )
    cell = page.page.locator("#grid tbody").nth(0).locator("td").nth(0)
    assert cell.inner_text().split() == ["CLIPSIM", "0.2000", "PSNR", "dB", "–"]
    assert page.page.locator("details.table td code").inner_text() == "asq"


@pytest.mark.slow
@pytest.mark.parametrize("fragment", ["#frame=0", "#frame=0&open=run1.0"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(gallery: Callable[..., Page], fragment: str, scheme: str) -> None:
    page = gallery(fragment, viewport={"width": 375, "height": 700}, color_scheme=scheme, has_touch=True)
    page.page.locator("#filters").evaluate("filters => filters.open = true")
    assert page.page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.page.locator("#grid").evaluate("grid => grid.scrollWidth > grid.clientWidth")


@pytest.mark.slow
def test_reduced_motion_starts_paused(gallery: Callable[..., Page]) -> None:
    assert gallery(reduced_motion="reduce").page.locator("#play").inner_text() == "▶ Play"
    assert gallery(reduced_motion="no-preference").page.locator("#play").inner_text() == "❚❚ Pause"


@pytest.mark.slow
def test_only_what_is_shown_is_loaded(gallery: Callable[..., Page]) -> None:
    page = gallery("#frame=0")
    page.cell(0, 0).locator("img").evaluate("image => image.decode()")
    assert not any("difference" in url for url in page.requests)
    page.page.keyboard.press("d")
    page.cell(1, 0).locator(".difference img").evaluate("image => image.decode()")
    assert any("run1_0000_difference" in url for url in page.requests)
