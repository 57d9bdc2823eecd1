"""The page in a real browser: Debian's Chromium, without a window.

The tests are skipped where Chromium is not installed (`apt-get install chromium`).
"""

import contextlib
import io
import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from playwright.sync_api import Browser, Download, Page, expect, sync_playwright

from rwkv_music.generation import fill
from rwkv_music.midi.events import parse_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.play.models import load_models
from rwkv_music.play.pieces import Piece
from rwkv_music.play.server import Site, find_soundfont
from rwkv_music.play.writing import Cancelled, write
from rwkv_music.tokenizers.multitrack_vocabulary import MAX_PARTS
from tests.midi.midi_files import file_of, make_midi, note
from tests.play.conftest import TOKENS_PER_BAR, Client, outside, random_model, running
from tests.play.soundfont import soundfont
from tests.training.conftest import PROJECT

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
AXE = Path(__file__).parent / "axe" / "axe.min.js"
RULER, LANE = 26, 84  # pixels, as in roll.js
TIMEOUT_MS = 60_000  # of a busy computer
expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--autoplay-policy=user-gesture-required", "--disable-background-networking"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    with opened(browser, client) as page:
        yield page


@contextlib.contextmanager
def opened(
    browser: Browser, client: Client, scheme: str = "light", size: tuple[int, int] = (1280, 800), touch: bool = False
) -> Iterator[Page]:
    """Open the page. Fails at the end if a script failed, or if a request went elsewhere than to the server."""
    viewport = {"width": size[0], "height": size[1]}
    context = browser.new_context(color_scheme=scheme, viewport=viewport, has_touch=touch)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    errors, requested = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda one: requested.append(one.url))
    page.add_init_script(path=AXE)
    page.goto(client.address)
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert [text for text in errors if "status of 422" not in text] == []
    assert requested and all(url.startswith((client.address + "/", "blob:")) for url in requested), requested


def open_file(page: Page, path: Path, timeout_ms: int = TIMEOUT_MS) -> None:
    page.set_input_files("#file", path)
    expect(page).to_have_title(f"{path.stem} – RWKV-Music", timeout=timeout_ms)


def place(page: Page, bar: int, part: int) -> tuple[float, float]:
    """Return the middle of a cell of a piece of 16 bars in 4/4; `bar` counts from 1, and part -1 is the ruler."""
    box = page.locator("#roll").bounding_box()
    quarter = max(14, (box["width"] - 24) / 64)  # `fitZoom` of main.js
    return box["x"] + (4 * bar - 2) * quarter, box["y"] + (RULER + (part + 0.5) * LANE if part >= 0 else RULER / 2)


def select(page: Page) -> None:
    """Select bars 5 to 8 of Alto with the mouse."""
    page.mouse.move(*place(page, 5, 1))
    page.mouse.down()
    page.mouse.move(*place(page, 8, 1), steps=4)
    page.mouse.up()
    expect(page.locator("#selected")).to_have_text("Bars 5 to 8 of Alto")


def settle(page: Page) -> None:
    """Wait until the page is not writing and the drawing is done."""
    expect(page.locator("#progress")).to_be_hidden()
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def picture(page: Page) -> np.ndarray:
    """Return the pixels of the piano roll, [height, width, channels]."""
    settle(page)
    return imread(io.BytesIO(page.locator("#roll").screenshot()), format="png")


def faults(page: Page) -> list[str]:
    """Return the serious faults that axe finds."""
    found = page.evaluate("() => axe.run()")["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def drawn_notes(page: Page) -> list[tuple[float, ...]]:
    """Draw the piano roll again, and return x, y, width and height of each note that is not very short."""
    settle(page)
    drawn = page.evaluate(
        """async () => {
          const { roundRect } = CanvasRenderingContext2D.prototype;  // draws the notes, and nothing else
          const drawn = [];
          CanvasRenderingContext2D.prototype.roundRect = function (...rectangle) {
            drawn.push(rectangle.slice(0, 4));
            roundRect.apply(this, rectangle);
          };
          document.getElementById("scroller").dispatchEvent(new Event("scroll"));
          await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          CanvasRenderingContext2D.prototype.roundRect = roundRect;
          return drawn;
        }"""
    )
    assert drawn
    return [tuple(one) for one in drawn]


def saved(download: Download) -> bytes:
    return Path(download.path()).read_bytes()


def download_by_click(page: Page) -> bytes:
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "chorale.mid"
    return saved(download.value)


def notes(data: bytes) -> list[tuple[int, ...]]:
    played = played_notes(parse_midi(data))
    return sorted(zip(*(a.tolist() for a in (played.track, played.start, played.end, played.pitch)), strict=True))


def wait_for_sound(page: Page) -> None:
    """Fails unless the audio clock moves and the analyser sees samples that are not silent."""
    expect(page.locator("#play")).to_have_text("Stop")  # after the sounds are loaded
    clock = page.locator("#clock")
    before = float(clock.get_attribute("data-seconds"))
    loudest = 0.0
    for _ in range(100):
        page.wait_for_timeout(50)
        loudest = max(loudest, page.locator("#level").evaluate("(meter) => meter.value"))
        if loudest > 0.01 and float(clock.get_attribute("data-seconds")) > before + 0.3:
            return
    raise AssertionError(f"level {loudest}, from {before} to {clock.get_attribute('data-seconds')} seconds")


def test_a_hole_is_filled_with_the_mouse(page, chorale):
    original = chorale.read_bytes()
    open_file(page, chorale)
    assert page.locator("#parts label").all_inner_texts() == ["Soprano", "Alto", "Tenor", "Bass"]
    assert page.locator("#parts .instrument").all_inner_texts() == ["Violin", "Violin", "Viola", "Cello"]
    in_original = drawn_notes(page)
    select(page)
    assert (page.input_value("#from-bar"), page.input_value("#to-bar")) == ("5", "8")
    page.mouse.click(*place(page, 5, 4))  # below the last lane
    expect(page.locator("#selected")).to_have_text("Nothing is selected.")
    select(page)
    page.click("#fill")
    expect(page.get_by_role("radio")).to_have_count(2)
    first = picture(page)
    of_first = download_by_click(page)
    in_first = drawn_notes(page)

    page.click("#play")
    wait_for_sound(page)
    page.get_by_role("radio", name="Candidate 2").click()
    expect(page.locator("#play")).to_have_text("Stop")  # it plays on
    page.click("#play")
    second = picture(page)
    of_second = download_by_click(page)
    # The candidates differ in the hole and are the same elsewhere, on the page and in the file. With random weights, a
    # note of the hole may last beyond it.
    changed = (first != second).any(axis=-1)
    half = (place(page, 2, 1)[0] - place(page, 1, 1)[0]) / 2
    left = place(page, 5, 1)[0] - half - page.locator("#roll").bounding_box()["x"]

    def outside_hole(drawn: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        in_alto = [RULER + LANE <= y < RULER + 2 * LANE for _, y, *_ in drawn]
        kept = [one for one, alto in zip(drawn, in_alto, strict=True) if not alto]
        # The range of the alto's pitches, and thus the scale of its lane, depends on the new notes. The last ones may
        # start half a pixel before the end of the hole.
        return kept + [(x, width) for (x, _, width, _), alto in zip(drawn, in_alto, strict=True)
                       if alto and not left - 0.25 <= x < left + 8 * half - 0.25]  # fmt: skip

    assert in_first != in_original
    assert outside_hole(in_first) == outside_hole(in_original)
    assert changed[RULER + LANE : RULER + 2 * LANE, int(left) : int(left + 8 * half)].any()
    changed[RULER + LANE : RULER + 2 * LANE, int(left) - 1 :] = False
    assert not changed.any(), np.argwhere(changed)[[0, -1]]
    assert notes(of_first) != notes(of_second)
    for data in (of_first, of_second):
        assert outside(data, "Alto", range(4, 8)) == outside(original, "Alto", range(4, 8))

    page.click("#undo")
    assert download_by_click(page) == original
    page.click("#redo")
    assert download_by_click(page) == of_second
    duration = page.evaluate("() => performance.getEntriesByName('first note')[0].duration")
    print(f"first note after {duration:.0f} ms")


def test_a_hole_is_filled_with_the_keyboard_alone(page, chorale):
    original = chorale.read_bytes()
    press = page.keyboard.press
    with page.expect_file_chooser() as chooser:
        press("Tab")
        # The page answers this, so before the next key it knows that it is not to show the file chooser.
        expect(page.locator("#open")).to_be_focused()
        press("Enter")
    chooser.value.set_files(chorale)
    expect(page.locator("#roll")).to_be_focused()
    for key in ["ArrowRight"] * 5 + ["ArrowDown"] + ["Shift+ArrowRight"] * 3:
        press(key)
    expect(page.locator("#roll")).to_have_accessible_name(re.compile("Selected: Bars 5 to 8 of Alto"))
    press("Enter")
    expect(page.get_by_role("radio")).to_have_count(2)
    settle(page)
    press("Space")
    wait_for_sound(page)
    press("Space")
    expect(page.locator("#play")).to_have_text("Play")
    press("2")
    expect(page.get_by_role("radio", name="Candidate 2")).to_be_checked()

    def download() -> bytes:
        while not page.locator("#download").evaluate("(link) => link === document.activeElement"):
            press("Shift+Tab")
        with page.expect_download() as started:
            press("Enter")
        return saved(started.value)

    filled = download()
    assert notes(filled) != notes(original)
    assert outside(filled, "Alto", range(4, 8)) == outside(original, "Alto", range(4, 8))
    press("Control+z")
    assert download() == original
    press("Control+Shift+Z")
    assert download() == filled


class Finger:
    """A finger on the page, in the browser's own input: it can also scroll."""

    def __init__(self, page: Page):
        self._page, self._session = page, page.context.new_cdp_session(page)

    def _send(self, kind: str, *points: tuple[float, float]) -> None:
        points = [{"x": x, "y": y} for x, y in points]
        self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def drag(self, begin: tuple[float, float], end: tuple[float, float], held_ms: int) -> None:
        self._send("touchStart", begin)
        self._page.wait_for_timeout(held_ms)
        for i in range(1, 11):
            self._send("touchMove", tuple(a + (b - a) * i / 10 for a, b in zip(begin, end, strict=True)))
            self._page.wait_for_timeout(20)
        self._page.wait_for_timeout(300)  # otherwise the page scrolls on, and the next tap only stops it
        self._send("touchEnd")


@pytest.mark.parametrize("size", [(1024, 768), (768, 1024)])
def test_a_finger_selects_and_scrolls(size, browser, client, chorale):
    with opened(browser, client, size=size, touch=True) as page:
        finger, selected, scroller = Finger(page), page.locator("#selected"), page.locator("#scroller")
        expect(page.locator("#roll-help")).to_contain_text("Hold and drag to select more.")
        open_file(page, chorale)
        page.touchscreen.tap(*place(page, 3, 2))
        expect(selected).to_have_text("Bar 3 of Tenor")
        finger.drag(place(page, 5, 1), place(page, 8, 2), held_ms=700)
        expect(selected).to_have_text("Bars 5 to 8 of Alto, Tenor")
        assert scroller.evaluate("(one) => one.scrollLeft") == 0
        finger.drag(place(page, 7, 0), place(page, 4, 0), held_ms=0)
        page.wait_for_function("() => document.getElementById('scroller').scrollLeft > 50")
        expect(selected).to_have_text("Bars 5 to 8 of Alto, Tenor")
        page.tap("#fill")
        expect(page.get_by_role("radio")).to_have_count(2, timeout=3 * TIMEOUT_MS)  # eight cells, two candidates


def test_a_drag_beyond_the_edge_scrolls(page, tmp_path):
    notes = [message for bar in range(40) for message in note(1920 * bar, 1920 * bar + 960, 60)]
    path = tmp_path / "long.mid"
    path.write_bytes(file_of(make_midi(notes)))
    open_file(page, path)
    page.mouse.move(*place(page, 5, 0))
    page.mouse.down()
    x, y = place(page, 5, 0)
    page.mouse.move(x + 1000, y)
    expect(page.locator("#selected")).to_have_text(re.compile("Bars 5 to 40"))
    page.mouse.up()


def test_playback_begins_at_the_selection_and_after_a_fill_at_the_new_notes(page, chorale):
    """The clock and the status line agree with the cursor and with what happened last."""
    open_file(page, chorale)
    select(page)
    expect(page.locator("#clock")).to_have_text(re.compile("^Bar 5 "))
    page.keyboard.press("Home")
    expect(page.locator("#clock")).to_have_text(re.compile("^Bar 1 "))
    # A screen reader does not read it aloud, unlike other outputs: it changes every second.
    expect(page.locator("#clock")).to_have_attribute("aria-live", "off")
    page.click("#fill")
    expect(page.locator("#status")).to_have_text("Filled in: 4 bars, 2 candidates.")
    expect(page.locator("#clock")).to_have_text(re.compile("^Bar 5 "))


def test_two_models_are_compared_by_ear(browser, chorale):
    with running(Site([random_model("runs/a"), random_model("runs/b")])) as client, opened(browser, client) as page:
        open_file(page, chorale)
        select(page)
        page.click("#fill")
        expect(page.get_by_role("radio")).to_have_count(2)
        settle(page)
        assert "runs/" not in page.locator("body").inner_text()
        page.get_by_role("radio", name="Candidate 2").click()
        page.click("#prefer")
        names = page.locator("#candidate-list small")
        expect(names.nth(1)).to_have_text(re.compile("^runs/[ab]$"))
        chosen, other = names.nth(1).inner_text(), names.nth(0).inner_text()
        assert {chosen, other} == {"runs/a", "runs/b"}
        expect(page.locator("#tally")).to_contain_text(f"{chosen} 1")
        expect(page.locator("#tally")).to_contain_text(f"{other} 0")
        expect(page.locator("#prefer")).to_be_hidden()
        assert faults(page) == []


def test_a_blank_piece_is_written_continued_and_accompanied(page):
    page.click("#welcome-blank")
    expect(page.locator("#status")).to_have_text("Untitled: 1 part, 8 bars.")
    expect(page.locator("#selected")).to_have_text("Bars 1 to 8 of Piano")
    page.click("#fill")
    expect(page.locator("#status")).to_have_text("Filled in: 8 bars, 2 candidates.")
    assert int(page.locator("#roll").get_attribute("data-drawn")) > 0
    page.fill("#new-bars", "1")
    page.select_option("#count", "1")
    page.click("#continue")
    expect(page.locator("#status")).to_have_text("Continued: 1 bar, 1 candidate.")
    expect(page.locator("#roll")).to_have_accessible_name(re.compile("1 part, 9 bars. Selected: Bar 9 of Piano"))
    page.select_option("#density", "high")
    page.select_option("#program", label="Flute")
    page.select_option("#register", "low")
    page.locator("#temperature").fill("0.7")
    with page.expect_request("**/api/write") as sent:
        page.click("#add")
    asked = sent.value.post_data_json
    assert {name: asked.get(name) for name in ("action", "program", "density", "register", "temperature")} == {
        "action": "add", "program": 73, "density": "high", "register": "low", "temperature": 0.7,
    }  # fmt: skip
    expect(page.locator("#status")).to_have_text("Added a part: 9 bars, 1 candidate.")
    assert page.locator("#parts label").all_inner_texts() == ["Piano", "Flute"]
    expect(page.locator("#selected")).to_have_text("Bars 1 to 9 of Flute")


def test_notes_appear_as_they_are_written(browser, client, monkeypatch):
    """The page shows the first notes and the progress while the model writes, and axe finds no serious fault then."""
    has_notes, may_go_on = threading.Event(), threading.Event()
    sent: list[tuple[int, int, bool]] = []  # of each report: candidate, number of notes, whether the cell is complete

    def write_slowly(*arguments: Any) -> list[Piece]:
        *given, on_notes, is_cancelled = arguments

        def on_notes_then_wait(candidate: int, bar: int, part: int, notes: list[int], is_complete: bool) -> None:
            on_notes(candidate, bar, part, notes, is_complete)
            sent.append((candidate, len(notes) // 4, is_complete))
            if candidate == 0 and notes and not has_notes.is_set():
                has_notes.set()
                may_go_on.wait(TIMEOUT_MS / 1000)

        return write(*given, on_notes_then_wait, is_cancelled)

    def completed() -> int:
        return sum(is_complete for *_, is_complete in sent)

    monkeypatch.setattr("rwkv_music.play.server.write", write_slowly)
    with opened(browser, client, size=(768, 1024)) as page:
        page.evaluate("() => { Math.random = () => 0.5; }")  # the seed
        page.click("#welcome-blank")
        page.select_option("#count", "3")
        roll, progress = page.locator("#roll"), page.locator("#progress")
        expect(roll).to_have_attribute("data-drawn", "0")
        expect(progress).to_be_hidden()
        try:
            page.click("#fill")
            assert has_notes.wait(TIMEOUT_MS / 1000)
            expect(page.locator("#progress-text")).to_have_text(f"{completed()} of 24")
            assert completed() < 24
            expect(progress).to_be_visible()
            expect(roll).to_have_attribute("data-drawn", str(sum(n for candidate, n, _ in sent if candidate == 0)))
            assert page.locator("#bar").evaluate("(bar) => bar.value") == pytest.approx(completed() / 24)
            assert faults(page) == []
        finally:
            may_go_on.set()
        expect(page.locator("#status")).to_have_text("Filled in: 8 bars, 3 candidates.")
        expect(progress).to_be_hidden()
        assert completed() == 24
        expect(page.get_by_role("radio")).to_have_count(3)
        page.locator("#roll").focus()
        page.keyboard.press("3")
        expect(page.get_by_role("radio", name="Candidate 3")).to_be_checked()
        assert faults(page) == []


def test_the_selected_bars_are_repeated(page, chorale):
    open_file(page, chorale)
    page.mouse.click(*place(page, 2, 0))
    expect(page.locator("#selected")).to_have_text("Bar 2 of Soprano")
    page.click("#loop")
    page.click("#play")
    expect(page.locator("#play")).to_have_text("Stop")
    seen, duration = page.evaluate(
        """async () => {
          const begun = performance.now();
          const seen = [];
          while (performance.now() < begun + 6000) {
            await new Promise((done) => setTimeout(done, 50));
            seen.push(Number(document.getElementById("clock").dataset.seconds));
          }
          return [seen, (performance.now() - begun) / 1000];
        }"""
    )
    bar = 4 * 60 / 104  # seconds
    assert bar - 0.01 <= min(seen) < max(seen) <= 2 * bar + 0.01
    assert 1 <= sum(b < a for a, b in itertools.pairwise(seen)) <= duration / bar + 1


def test_a_file_is_dropped_on_the_page(page, chorale):
    page.evaluate(
        """async (bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "dropped.mid"));
          const send = (kind) => document.body.dispatchEvent(
            new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
          send("dragenter");
          window.hint = !document.getElementById("drop").hidden;
          send("drop");
        }""",
        list(chorale.read_bytes()),
    )
    expect(page.locator("#status")).to_have_text("dropped: 4 parts, 16 bars.")
    assert page.evaluate("() => window.hint")
    expect(page.locator("#drop")).to_be_hidden()


def wait_for_silence(page: Page) -> None:
    """Fails unless it becomes silent during playback. Notes that have begun sound to their ends."""
    limit = time.monotonic() + 20
    while page.locator("#level").evaluate("(meter) => meter.value") > 0.002:
        assert time.monotonic() < limit
        page.wait_for_timeout(50)
    expect(page.locator("#play")).to_have_text("Stop")


def test_mute_and_solo(page, chorale):
    def click(*names: str) -> None:
        for name in names:
            page.get_by_role("button", name=name).click()

    open_file(page, chorale)
    click("Loop")
    page.click("#play")
    wait_for_sound(page)
    click("Mute Soprano", "Mute Alto", "Mute Tenor", "Mute Bass")
    wait_for_silence(page)
    click("Mute Bass")
    wait_for_sound(page)
    click("Mute Soprano", "Mute Alto", "Mute Tenor")
    click("Solo Alto", "Mute Alto")  # Solo silences the other parts, which are no longer muted
    wait_for_silence(page)
    click("Mute Alto")
    wait_for_sound(page)


def test_playback_that_cannot_start_is_reported_and_can_be_tried_again(page, chorale):
    page.evaluate(
        "() => { [window.Sound, window.AudioContext] = [AudioContext, function () { throw Error('none') }]; }"
    )
    open_file(page, chorale)
    page.click("#play")
    expect(page.locator("#status")).to_contain_text("The sound cannot start (none)")
    expect(page.locator("#play")).to_have_text("Play")
    page.evaluate("() => { window.AudioContext = window.Sound; }")
    page.click("#play")
    wait_for_sound(page)


@pytest.mark.parametrize("font", ["sine", "silent", "broken"])
def test_a_soundfont_plays_if_the_computer_has_one(font, browser, tmp_path):
    path = tmp_path / "Small.sf2"
    path.write_bytes({"sine": soundfont(0.5), "silent": soundfont(0), "broken": soundfont(0.5)[:2000]}[font])
    # Only the last of 25 parts can be heard, so parts beyond MIDI's 16 channels play too.
    tracks = [
        [event for beat in range(20) for event in note(480 * beat, 480 * beat + 400, 60, loudness, part % 8)]
        for part in range(25)
        for loudness in [127 if part == 24 else 1]
    ]
    (tmp_path / "parts.mid").write_bytes(file_of(make_midi(*tracks)))
    with running(Site([random_model("runs/a")], soundfont=path)) as client, opened(browser, client) as page:
        expect(page.locator("#about")).to_contain_text("Sound: the SoundFont Small.")
        open_file(page, tmp_path / "parts.mid")
        page.click("#play")
        if font == "silent":  # the oscillators do not play beside it
            expect(page.locator("#clock")).to_have_attribute("data-seconds", re.compile(r"^[1-9]"))
            assert page.locator("#level").evaluate("(meter) => meter.value") == 0
        else:
            wait_for_sound(page)
        expect(page.locator("#about")).to_contain_text("plain oscillators" if font == "broken" else "SoundFont Small.")
        if font == "broken":
            expect(page.locator("#status")).to_contain_text("The SoundFont Small cannot be used")


# Renders what the player plays of the open piece, faster than in real time. The audio clock is stopped every 40 ms, so
# that the player gives its notes to the instrument, as it does with a timer otherwise.
RENDER = """async ([id, seconds, muted]) => {
  const [{ Player }, { Piece }] = await Promise.all([import("/player.js"), import("/piece.js")]);
  const state = await (await fetch("/api/state")).json();
  const rate = 44100;
  const audio = new OfflineAudioContext(2, rate * seconds, rate);
  const resume = audio.resume.bind(audio);
  audio.resume = async () => {};
  window.AudioContext = function () { return audio; };
  const player = new Player((part) => muted.includes(part));
  if (state.soundfont) player.fontUrl = "/soundfont";
  player.onFontFailed = (error) => { throw error; };
  player.show(new Piece(await (await fetch(`/api/pieces/${id}`)).json()));
  await player.start();
  for (let at = 0.04; at < seconds; at += 0.04) {
    audio.suspend(at).then(async () => {
      if (player.isPlaying) player.schedule();
      await new Promise((done) => setTimeout(done, 1)); // until the audio thread has received the notes
      resume();
    });
  }
  return [...(await audio.startRendering()).getChannelData(0)];
}"""


@pytest.mark.parametrize("instrument", ["oscillators", "soundfont"])
def test_the_page_plays_the_notes_of_the_piece(instrument, browser, tmp_path):
    """The sound has the pitches of the piece, is loud enough, is not clipped, and ends with the piece."""
    pitches = [60, 64, 67, 72, 69, 65, 62, 57]  # a quarter note each, at 120 quarter notes per minute
    tune = [message for i, pitch in enumerate(pitches) for message in note(480 * i, 480 * i + 460, pitch, 90)]
    bass = [message for i in range(8) for message in note(480 * i, 480 * i + 460, 36, 127, channel=1)]
    path = tmp_path / "tune.mid"
    path.write_bytes(file_of(make_midi(tune, bass)))
    (tmp_path / "Small.sf2").write_bytes(soundfont(0.5))
    font = tmp_path / "Small.sf2" if instrument == "soundfont" else None
    with running(Site([random_model("runs/a")], soundfont=font)) as client, opened(browser, client) as page:
        open_file(page, path)
        number = page.locator("#download").get_attribute("href").split("/")[3]
        alone, silence, both = (np.array(page.evaluate(RENDER, [number, 6, muted])) for muted in ([1], [0, 1], []))
    rate = 44_100
    assert not silence.any()
    for sound in (alone, both):
        assert np.abs(sound).max() < 1
        loudness = np.sqrt((sound[: 6 * rate].reshape(60, -1) ** 2).mean(axis=1))  # of each tenth of a second
        assert loudness[1:40].min() > 0.01 and loudness[46:].max() < 1e-3, loudness
    for i, pitch in enumerate(pitches):
        part = alone[round((0.06 + 0.5 * i + 0.1) * rate) :][: round(0.3 * rate)]
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 8 * rate))
        heard = 69 + 12 * np.log2(spectrum.argmax() / 8 / 440)
        assert abs(heard - pitch) < 0.2, (i, heard, pitch)


def test_a_request_is_cancelled(page, client, chorale, monkeypatch):
    def write_nothing(*arguments) -> None:
        while not arguments[-1]():
            time.sleep(0.01)
        raise Cancelled

    monkeypatch.setattr("rwkv_music.play.server.write", write_nothing)
    open_file(page, chorale)
    page.locator("#roll").focus()
    page.keyboard.press("Control+a")
    page.click("#fill")
    page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#fill")).to_be_enabled()
    limit = time.monotonic() + 20
    while client.site.worker.n_jobs:
        assert time.monotonic() < limit
        page.wait_for_timeout(20)


def test_a_file_that_cannot_be_read_is_reported(page, tmp_path):
    path = tmp_path / "broken.mid"
    path.write_bytes(b"MThd")
    page.set_input_files("#file", path)
    expect(page.locator("#status")).to_have_text(re.compile(r"This file cannot be read \(truncated\)"))
    expect(page.locator("#welcome")).to_be_visible()


SCROLL = """async () => {
  const { Roll } = await import("/roll.js");
  const { draw } = Roll.prototype;
  const scroller = document.getElementById("scroller");
  const [drawings, frames] = [[], []];
  Roll.prototype.draw = function () {
    const begun = performance.now();
    draw.call(this);
    drawings.push(performance.now() - begun);
  };
  let last = performance.now();
  for (let i = 0; i < 60; i++) {
    scroller.scrollBy(i < 40 ? 700 : -900, i % 20 < 10 ? 400 : -400);
    await new Promise(requestAnimationFrame);
    frames.push(performance.now() - last);
    last = performance.now();
  }
  Roll.prototype.draw = draw;
  return { drawings, frames };
}"""


def dense_piece(n_parts: int, n_bars: int, dense: Container[int] = range(1000)) -> bytes:
    """Return a file without pauses: four notes in each bar of the parts `dense`, and in the first bar of the others."""
    pitches = (60, 64, 67, 72)
    tracks = []
    for part in range(n_parts):
        on, off = 0x90 | part % 16, 0x80 | part % 16
        bar = b"".join(bytes([0, on, pitch, 80, 96, off, pitch, 0]) for pitch in pitches)
        track = bar * (n_bars if part in dense else 1) + bytes([0, 0xFF, 0x2F, 0])
        tracks.append(b"MTrk" + len(track).to_bytes(4, "big") + track)
    header = [number.to_bytes(2, "big") for number in (1, n_parts, 96)]
    return b"".join([b"MThd", (6).to_bytes(4, "big"), *header, *tracks])


def test_a_large_piece_scrolls_without_a_stutter(page, tmp_path):
    """100 parts and 2,000 bars, with four notes in each cell that comes into view: a drawing has the notes of the
    visible part of the piece, and takes less than 100 ms, both at first and with as many bars as possible. A busy
    computer may delay single drawings.
    """
    path = tmp_path / "large.mid"
    path.write_bytes(dense_piece(100, 2000, dense=range(4000 // LANE - 10, 4000 // LANE + 20)))
    open_file(page, path, timeout_ms=5 * TIMEOUT_MS)
    expect(page.locator("#status")).to_contain_text("large: 100 parts, 2,000 bars.")
    roll = page.locator("#roll")
    box = roll.bounding_box()
    lanes = box["height"] / LANE + 2
    for quarter, zoom in ((14, 0), (1.5, 10)):  # pixels
        for _ in range(zoom):
            page.click("#zoom-out")
        page.evaluate("() => document.getElementById('scroller').scrollTo(8000, 4000)")
        settle(page)
        most = lanes * (box["width"] / quarter + 2)
        assert most / 2 < int(roll.get_attribute("data-drawn")) < most
        times = page.evaluate(SCROLL)
        assert len(times["drawings"]) >= 50
        print(f"drawing: {max(times['drawings']):.1f} ms at most; frames: {max(times['frames']):.1f} ms at most")
        assert np.quantile(times["drawings"], 0.9) < 100 and np.median(times["frames"]) < 100


def test_a_piece_with_too_many_parts_can_be_played_only(page, tmp_path):
    """The models cannot write it, and the page says so when the file is opened."""
    buttons = {name: page.locator(f"#{name}") for name in ("fill", "continue", "add")}
    for n_parts in (MAX_PARTS, MAX_PARTS + 1):
        path = tmp_path / f"{n_parts}.mid"
        path.write_bytes(dense_piece(n_parts, 1))
        open_file(page, path)
        page.locator("#roll").focus()
        text = f"{n_parts}: {n_parts} parts, 1 bar."
        if n_parts > MAX_PARTS:
            text += f" Models write pieces of at most {MAX_PARTS} parts: to write, open a file with fewer."
        expect(page.locator("#status")).to_have_text(text)
        page.keyboard.press("Control+a")
        expect(page.locator("#selected")).to_have_text("Bar 1 of all parts")
        enabled = [name for name, button in buttons.items() if button.is_enabled()]
        assert enabled == ([] if n_parts > MAX_PARTS else ["fill", "continue"])
    page.keyboard.press("Enter")  # on the roll: fills the selection
    expect(page.locator("#progress")).to_be_hidden()
    page.click("#play")
    wait_for_sound(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_fill_with_the_model_of_the_package(scheme, browser, monkeypatch):
    """axe finds no serious fault before and after it. With SCREENSHOTS=1 in the environment, writes docs/play-*.png."""

    monkeypatch.setattr(fill, "TOKENS_PER_BAR", TOKENS_PER_BAR)
    writes = bool(os.environ.get("SCREENSHOTS"))
    site = Site(load_models([]), soundfont=find_soundfont() if writes else None)
    with running(site) as client, opened(browser, client, scheme) as page:
        assert faults(page) == []
        page.click("#welcome-example")
        expect(page.locator("#selected")).to_have_text("Bars 5 to 8 of Alto")
        page.click("#fill")
        expect(page.get_by_role("radio")).to_have_count(2)
        settle(page)
        assert faults(page) == []
        picture = page.screenshot()
    path = PROJECT / "docs" / f"play-{scheme}.png"
    if writes:
        path.write_bytes(picture)
    assert max(len(picture), path.stat().st_size) < 200_000
