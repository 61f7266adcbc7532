"""The page in headless Chromium: nothing is complained of, five thousand rows are usable, and every control does its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness.report.page.html import page_content, write_page
from tests.conftest import CHROMIUM
from tests.harness.report.page_rows import HOSTILE, made_up_rows

pytestmark = pytest.mark.browser

COUNT = 5000
DESK, PHONE = {"width": 1280, "height": 720}, {"width": 390, "height": 844}
LIMIT_S = 2.0
"""Processor seconds of the page's thread until it can be used."""
LIMIT_BYTES = 15_000_000
CLAIMS = {
    "claims": [{"part": HOSTILE, "no.": "1", "claim": HOSTILE, "published": "2 (F)", "here": "3", "verdict": "holds"}],
    "stories": {"1": {"title": HOSTILE, "html": "<p>a story</p>"}},
}
VERSIONS = [
    {"study": HOSTILE, "device": "cpu", "packages": "torch=2", "commits": [HOSTILE], "first": "1", "last": "2", "runs": 1}
]
MAPS = [{"study": HOSTILE, "name": HOSTILE, "image": "", "rows": [[1.0], [0.5, 0.5]], "note": HOSTILE}]


@dataclass
class Opened:
    """A page that was opened once: what it said, what it asked for, and how long it took."""

    page: Any
    size: int
    seconds: float = float("inf")
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def points(self, which: str = "") -> int:
        """Return how many points of rows are drawn: of all lines, or the traces that a condition of their `t` holds for."""
        count = (
            "document.getElementById('front-plot').data.filter((t) => t.customdata && (%s)).reduce((n, t) => n + t.x.length, 0)"
        )
        return int(self.page.evaluate(count % (which or "true")))

    def wait_until(self, condition: str | Callable[[], bool]) -> None:
        """Wait for a condition, of the page or of here. The page's policy lets no text become code, so playwright's own way to
        wait is shut."""
        for _ in range(100):
            if condition() if callable(condition) else self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {condition}")

    def column(self, place: int) -> list[str]:
        """Return the texts of a column of the leaderboard, as far as it is on the page."""
        return list(self.page.locator(f"#board-table tbody tr td:nth-child({place})").all_inner_texts())


def seconds_to_open(page: Any, address: str) -> float:
    """Open a page, and return the processor seconds of its thread until it can be used."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds() -> float:
        return float({m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}["TaskDuration"])

    before = seconds()
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    after = seconds()
    return after - before if after > before else after


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    from playwright.sync_api import sync_playwright

    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(path, page_content(made_up_rows(COUNT), VERSIONS, CLAIMS, MAPS, HOSTILE))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=DESK)
        opened = Opened(page, path.stat().st_size)
        page.on("console", lambda message: opened.said.append(message.text))
        page.on("pageerror", lambda error: opened.said.append(str(error)))
        page.on("request", lambda request: opened.asked.append(request.url))
        page.set_default_timeout(20_000)
        for _ in range(3):  # beside other work a processor is slower
            opened.seconds = min(opened.seconds, seconds_to_open(page, path.as_uri()))
            if opened.seconds < LIMIT_S:
                break
        page.wait_for_selector("#board-table tbody tr td:nth-child(3)")
        yield opened
        browser.close()


@pytest.fixture
def shown(opened: Opened) -> Opened:
    """The page on a desk, in its light theme, all choices as they were at first."""
    opened.page.set_viewport_size(DESK)
    opened.page.evaluate("scrollTo(0, 0)")
    opened.page.emulate_media(color_scheme="light")
    choices = {"theme": "", "model": "large", "cost": "density", "value": "accuracy", "lines": "few", "scope": "selection"}
    for name, value in choices.items():
        if opened.page.input_value(f"#{name}") != value:
            opened.page.select_option(f"#{name}", value)
    opened.page.set_checked("#off", False)
    opened.page.set_checked("#bounds", True)
    return opened


def test_it_opens_at_once_and_asks_nothing_of_a_network(opened: Opened) -> None:
    assert opened.size < LIMIT_BYTES
    assert opened.seconds < LIMIT_S
    assert opened.page.inner_text("#summary").startswith("5,000 rows of 1 study, 13 methods, 2 models")
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_what_was_recorded_is_text(shown: Opened) -> None:
    """A method, a study, a claim or a map may be called anything."""
    page = shown.page
    page.select_option("#lines", "all")
    page.locator("#board-table tbody tr", has_text="window.hacked").first.click()
    assert page.inner_text("#details strong") == HOSTILE
    assert f"method={HOSTILE}" in page.inner_text("#details pre")
    assert any(HOSTILE.split(" ")[0] in text for text in page.locator("#front-plot .legendtext").all_text_contents())
    assert page.locator("#claims-list td", has_text="window.hacked").count() == 1
    assert HOSTILE in page.inner_text("#versions-list") and HOSTILE in page.inner_text("h1")
    page.locator("#maps").scroll_into_view_if_needed()
    shown.wait_until("document.getElementById('map-plot').data !== undefined")
    assert HOSTILE in page.inner_text("#map-note")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img:not(#map-image), main b").count() == 0
    assert shown.said == []


def test_a_point_says_its_row_and_its_command(shown: Opened) -> None:
    box = shown.page.locator("#front-plot .scatterlayer .trace .point").nth(8).bounding_box()
    shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = shown.page.locator("#front-plot .hoverlayer .hovertext")
    hover.wait_for()
    text = hover.text_content()
    assert "accuracy %: " in text and "n = 50" in text and "python -m harness method=" in text
    shown.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "python -m harness method=" in shown.page.inner_text("#details pre")
    shown.page.mouse.move(1, 1)


def test_selections_and_switches_choose_the_points(shown: Opened) -> None:
    """At first rows off their density are hidden and the best lines shown, the bound dotted, with intervals and the front."""
    page = shown.page
    hollow = "String(t.marker.symbol).includes('-open')"
    few, was = shown.points(), page.input_value("#length")
    assert shown.points(hollow) == 0 and few > 0
    assert shown.points("t.line.dash === 'dot' && t.name.endsWith('a bound') && t.error_y.array[0] > 0") > 0
    assert page.evaluate("document.getElementById('front-plot').data[0].name") == "front"
    page.select_option("#lines", "all")
    everything = shown.points()
    assert everything > few
    page.check("#off")
    assert shown.points() > everything
    assert shown.points(hollow) > 0
    page.uncheck("#bounds")
    assert shown.points("t.line.dash === 'dot'") == 0
    page.select_option("#cost", "total_ms")
    assert shown.points("t.error_x.array[0] > 0") > 0
    page.select_option("#cost", "peak_mib")
    assert shown.points() == 0 and "not measured" in page.locator("#front-plot .annotation").text_content()
    other = "4096" if was != "4096" else "8192"
    page.select_option("#length", other)
    assert shown.points() > 0 == shown.points(f"t.customdata.some((i) => T.length[i] !== {other} || T.model[i] !== 'large')")
    page.select_option("#length", was)


def test_the_leaderboard_sorts_and_filters(shown: Opened) -> None:
    page = shown.page
    accuracies = [float(text) for text in shown.column(3)]
    assert accuracies == sorted(accuracies, reverse=True) and len(accuracies) == 25
    page.locator("#board-table thead th").nth(2).locator(".dtcc-button_order").click()

    def rises() -> bool:
        values = [float(text) for text in shown.column(3)]
        return values == sorted(values) and values != accuracies

    shown.wait_until(rises)
    page.fill("#board .dt-search input", "gauze")
    shown.wait_until(lambda: {text.strip() for text in shown.column(1)} == {"gauze"})
    page.fill("#board .dt-search input", "")
    page.select_option("#scope", "all")
    assert "4," in page.inner_text("#board .dt-info") or "5,000" in page.inner_text("#board .dt-info")
    page.locator("#board-table thead th").nth(1).locator(".dtcc-button_dropdown").click()
    menu = page.locator(".dtcc-dropdown")
    menu.locator("select").select_option("less")
    menu.locator("input").fill("0.07")
    shown.wait_until("document.querySelector('#board .dt-info').textContent.includes('(of ')")
    shown.wait_until(lambda: {float(text.split()[0]) for text in shown.column(2)} == {0.05})
    menu.locator("input").fill("")
    page.keyboard.press("Escape")


def test_the_heat_map_has_tasks_or_lengths(shown: Opened) -> None:
    page = shown.page
    look = "(() => { const t = document.getElementById('tasks-plot').data[0]; return [t.x.length, t.y.length]; })()"
    page.locator("#tasks").scroll_into_view_if_needed()
    shown.wait_until("document.getElementById('tasks-plot').data !== undefined")
    page.select_option("#across", "tasks")
    assert page.evaluate(look)[0] == 13
    page.select_option("#across", "task:task_3")
    columns, lines = page.evaluate(look)
    assert columns == 4 and lines > 5
    page.select_option("#colour", "difference")
    assert "±50" in page.inner_text("#tasks-note")
    page.select_option("#colour", "accuracy")


def test_themes_and_a_phone(shown: Opened) -> None:
    page = shown.page

    background = "document.getElementById('front-plot').layout.paper_bgcolor === '%s'"
    shown.wait_until(background % "#ffffff")
    page.emulate_media(color_scheme="dark")
    shown.wait_until(background % "#111111")
    page.select_option("#theme", "light")
    shown.wait_until(background % "#ffffff")
    page.select_option("#theme", "dark")
    shown.wait_until(background % "#111111")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 17, 17)"
    page.set_viewport_size(PHONE)
    shown.wait_until("document.getElementById('front-plot').layout.width < 390")
    assert page.evaluate("document.scrollingElement.scrollWidth") == PHONE["width"]
    legend, plot = (page.locator(f"#front-plot {part}").first.bounding_box() for part in (".legend", ".main-svg"))
    assert legend["y"] + legend["height"] <= plot["y"] + plot["height"] + 1
    assert page.locator("#board-title").bounding_box()["y"] > plot["y"] + plot["height"]
    assert shown.said == []
