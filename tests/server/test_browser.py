"""The page in a real headless Chromium: it looks right, runs nothing that others wrote, and can be heard and tabbed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.browser import browser
from tests.rigs.pages import Filled, fill, paged, samples_of, work_off
from tests.rigs.serving import KEY
from tests.rigs.waiting import until
from vbatch import pausing
from vbatch.batches import Store
from vbatch.config import Settings
from vbatch.store import COMMAND_PATIENCE, registry
from vbatch.system import processes

WIDTHS, THEMES = (390, 1280), ("light", "dark")
CONTROLS = {"link", "button", "textbox", "checkbox", "progressbar", "image", "region", "table", "navigation"}


@dataclass
class Shown:
    """A filled store, its page, and one browser for all tests."""

    store: Store
    filled: Filled
    url: str
    settings: Settings
    browser: Any

    @property
    def paths(self) -> dict[str, str]:
        """Return the pages that are looked at."""
        ended = f"/batches/{self.filled.ended.id}"
        return {
            "overview": "/",
            "running": f"/batches/{self.filled.running.id}",
            "blocked": f"/batches/{self.filled.blocked.id}",
            "ended": ended,
            "requests": f"{ended}/requests",
        }

    def person(self, **options: Any) -> Any:
        """Open a page as somebody who has logged in."""
        page = self.browser.new_context(**options).new_page()
        page.goto(f"{self.url}/login")
        page.wait_for_selector("#key:focus")
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("h1:has-text('Batches')")
        return page


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("browser")
    store = Store(f"sqlite:///{folder}/vbatch.db", patience=COMMAND_PATIENCE)
    with browser() as found:
        store.prepare()
        filled = fill(store, folder)
        with paged(store, folder, samples=samples_of(filled.running)) as (port, settings):
            yield Shown(store, filled, f"http://127.0.0.1:{port}", settings, found)
    store.close()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_can_be_read(shown: Shown, width: int, theme: str, tmp_path: Path) -> None:
    """No page is wider than its window, and text stands out from what is behind it. Screenshots are kept in tmp_path.

    Mutants: a table that does not fold at 390 pixels; a dark theme with the light theme's faint text.
    """
    page = shown.person(viewport={"width": width, "height": 900}, color_scheme=theme)
    for name, path in shown.paths.items():
        page.goto(shown.url + path)
        picture = page.screenshot(path=tmp_path / f"{name}-{width}-{theme}.png", full_page=True)
        assert len(picture) > 5000
        assert page.evaluate("document.documentElement.scrollWidth") == width, name
        assert page.evaluate(_PALE) == [], name
    page.context.close()


# The elements whose own text has less contrast than WCAG AA asks for: 4.5 to 1.
_PALE = """
() => {
  const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number)
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const pale = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) pale.push(element.outerHTML.slice(0, 120));
  }
  return pale;
}
"""


def test_a_stored_script_does_nothing(shown: Shown) -> None:
    """It is in a name, an answer and an error. Mutant: an answer marked as safe; a policy with unsafe-inline."""
    page = shown.person()
    broken: list[str] = []
    asked: list[str] = []
    page.on("console", lambda line: broken.append(line.text))
    page.on("request", lambda request: asked.append(request.url))
    for path in (*shown.paths.values(), f"{shown.paths['requests']}?show=failed"):
        page.goto(shown.url + path)
        assert page.title().endswith("vbatch")
        assert page.evaluate("document.querySelectorAll('main script, main img').length") == 0
    assert "document.title = 'owned'" in page.inner_text("main")
    assert broken == []
    assert all(url.startswith(shown.url) for url in asked), "nothing comes from elsewhere"
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    page.wait_for_timeout(200)
    assert page.title() != "1", "the policy stops what would slip through"
    page.context.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_accessibility_tree_is_sound(shown: Shown, width: int) -> None:
    """Every control has a name, there is one main, headings are in order, tables are tables with headers.

    Mutants: a progress bar without a name; an h3 below an h1; a table that is none any more once it folds.
    """
    page = shown.person(viewport={"width": width, "height": 900})
    session = page.context.new_cdp_session(page)
    for name, path in {**shown.paths, "login": "/login"}.items():
        if name == "login":
            page.context.clear_cookies()
        page.goto(shown.url + path)
        nodes = [
            node for node in session.send("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")
        ]
        roles = [(_value(node, "role"), _value(node, "name")) for node in nodes]
        assert [role for role, _ in roles].count("main") == 1, name
        assert [role for role, title in roles if role in CONTROLS and not title] == [], name
        levels = [_property(node, "level") for node in nodes if _value(node, "role") == "heading"]
        assert levels[0] == 1
        assert levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), (
            name,
            levels,
        )
        tables = page.evaluate("document.querySelectorAll('table').length")
        assert [role for role, _ in roles].count("table") == tables, name
        if tables:
            headers = {role for role, _ in roles} & {"columnheader", "rowheader"}
            assert headers == {"columnheader", "rowheader"}, name
        assert page.evaluate("document.documentElement.lang") == "en"
    page.context.close()


def _value(node: dict[str, Any], name: str) -> str:
    return str(node.get(name, {}).get("value", ""))


def _property(node: dict[str, Any], name: str) -> int:
    return next(int(each["value"]["value"]) for each in node["properties"] if each["name"] == name)


def test_the_keyboard_is_enough(shown: Shown) -> None:
    """The skip link comes first, each stop can be seen, Enter opens a batch. Mutant: an outline that is removed."""
    page = shown.person()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(40):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if page.evaluate("document.activeElement.textContent") == "translations":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('translations')")
    page.context.close()


def test_it_refreshes_itself_and_works_without_script(shown: Shown) -> None:
    """Focus stays, what has changed is said, and the forms work by hand.

    Mutants: a refresh that takes the focus away; a page that needs its script.
    """
    page = shown.person()
    page.clock.install()
    page.goto(shown.url + shown.paths["running"])
    page.focus("a.button:has-text('Prompts and answers')")
    page.evaluate("document.querySelector('main').old = true")
    worker = registry.register(shown.store, identity=processes.current(), engine="vllm")
    work_off(shown.store, worker, {}, most=100)
    page.clock.run_for(20_000)
    until(lambda: not page.evaluate("document.querySelector('main').old"))
    assert "in progress, " in page.inner_text("#news")
    assert page.evaluate("document.activeElement.textContent") == "Prompts and answers"
    page.uncheck("#refresh")
    page.evaluate("document.querySelector('main').old = true")
    page.clock.run_for(60_000)
    assert page.evaluate("document.querySelector('main').old")
    page.context.close()

    page = shown.person(java_script_enabled=False)
    page.click("button:has-text('Pause')")
    page.wait_for_selector("h2:has-text('The workers are paused')")
    assert pausing.shown(shown.settings) is not None
    page.click("button:has-text('Resume')")
    page.wait_for_selector("button:has-text('Pause')")
    assert pausing.shown(shown.settings) is None
    page.click("button:has-text('Log out')")
    page.wait_for_selector("h1:has-text('Log in')")
    page.context.close()
