"""Visitors in a real Chromium, on a desk and on a phone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import lorarar
from lorarar.app import server as app_server
from lorarar.app.drawing import Artist
from lorarar.app.server import create_app
from lorarar.app.sessions import Sessions
from lorarar.lora.adapter import Adapter
from lorarar.web import listen

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[str]:
    """The app in a thread, with the tiny base: its address."""
    sessions = Sessions(tmp_path_factory.mktemp("visitors"), keep=3600)
    listener = listen("127.0.0.1", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        app = create_app(sessions, artist=Artist(tiny_folder), hypernet=ROOT / "examples/pocket/hypernet.safetensors")
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        running.should_exit = True
        thread.join(60)


@pytest.fixture
def pair(adapters, tmp_path: Path) -> tuple[Path, Path]:
    files = tmp_path / "cat.safetensors", tmp_path / "oil.safetensors"
    for adapter, file in zip(adapters, files, strict=True):
        adapter.save(file)
    return files


class Page:
    """A visitor's hands and eyes."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        # A page that is loads again takes its elements away.
        self.wait = WebDriverWait(browser, 120, ignored_exceptions=[StaleElementReferenceException])
        browser.get(url)
        self.until(lambda: self.find("#method").get_attribute("value"))

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, true) -> None:
        self.wait.until(lambda _: true())

    def choose(self, side: str, file: Path) -> None:
        self.find(f"[data-side={side}] input[type=file]").send_keys(str(file))

    def shows(self, selector: str, words: str) -> None:
        self.until(lambda: words in self.find(selector).text)

    def write(self, selector: str, text: str) -> None:
        """Replace the text of a field, and leave it."""
        self.find(selector).send_keys(Keys.CONTROL, "a")
        self.find(selector).send_keys(text, Keys.TAB)

    def drawn(self) -> str:
        return self.find("#now .merge").find_element(By.CSS_SELECTOR, "img").get_attribute("src")


def test_a_visitor_merges_and_downloads(browser, server, pair, adapters, tmp_path) -> None:
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page = Page(browser, server)
    assert not page.find("#merge").is_enabled() and not page.find("#fit").is_displayed()
    page.choose("content", pair[0])
    page.shows("[data-side=content] .facts", "cat.safetensors")
    page.choose("style", pair[1])
    page.shows("#fit", "layers in both")
    facts = page.find("[data-side=content] .facts").text
    assert "rank 4" in facts and "diffusers, float32" in facts

    page.write("#weight-content", "0.7")
    page.write("#weight-style", "-0.2")
    page.find("#merge").click()
    page.shows("#merged", "Download cat+oil.direct.safetensors")
    assert "diffusers format" in page.find("#merged").text
    page.find("#merged a").click()
    file = tmp_path / "cat+oil.direct.safetensors"
    page.until(file.exists)
    merged, wanted = Adapter.load(file), lorarar.merge(*adapters, method="direct", weights=(0.7, -0.2))
    assert isinstance(wanted, Adapter) and merged.layers.keys() == wanted.layers.keys()
    assert all((merged.layers[path].delta - wanted.layers[path].delta).abs().max() < 1e-5 for path in wanted.layers)

    browser.refresh()  # nothing is lost
    page.shows("[data-side=style] .facts", "oil.safetensors")
    page.find("#leave").click()
    page.until(lambda: page.find("[data-side=style] .drop").is_displayed())


def test_pictures_follow_the_weights_and_lead_back(browser, server, pair) -> None:
    page = Page(browser, server)
    page.choose("content", pair[0])
    page.choose("style", pair[1])
    page.until(lambda: page.find("#draw").is_enabled())
    page.write("#steps", "2")
    page.write("#prompt", "a sks dog in oil style")
    page.until(lambda: len(page.all("#now img")) == 4)
    first = page.drawn()
    assert {image.accessible_name for image in page.all("#now img")} >= {"content alone", "style alone"}
    page.write("#weight-style", "1.8")
    page.until(lambda: page.drawn() != first)
    page.shows("#now .merge", "1 : 1.8")
    page.until(lambda: len(page.all("#past button")) == 1)
    page.find("#past button").click()
    page.shows("#now .merge", "Direct merge")
    page.until(lambda: page.find("#weight-style").get_attribute("value") == "1")
    widths = browser.execute_script("return [...document.querySelectorAll('#now img')].map(i => i.naturalWidth)")
    assert widths == [16] * 4


def test_mistakes_are_shown_where_they_are_made(browser, server, pair, tmp_path) -> None:
    bad = tmp_path / "page.safetensors"
    bad.write_text("<!doctype html>")
    page = Page(browser, server)
    page.choose("content", bad)
    page.shows("[data-side=content] .problem", "page.safetensors: a web page, not a LoRA")
    page.choose("content", pair[0])
    page.shows("[data-side=content] .facts", "cat.safetensors")
    assert not page.find("[data-side=content] .problem").is_displayed()
    Select(page.find("[data-side=style] select")).select_by_visible_text("glowing")
    page.shows("#fit .problem", "merge adapters of one base model")
    Select(page.find("#method")).select_by_value("ties")
    page.write("#option-density", "7")
    page.find("#merge").click()
    page.until(lambda: page.find("#result .problem").is_displayed())
    assert page.find("#result .problem").text and page.find("#merge").is_enabled()


def test_a_long_merge_shows_that_it_goes_on(browser, server, pair, monkeypatch) -> None:
    gate, real = threading.Event(), app_server.merge_recipe
    monkeypatch.setattr(app_server, "merge_recipe", lambda *given: gate.wait(120) and real(*given))
    page = Page(browser, server)
    page.choose("content", pair[0])
    page.choose("style", pair[1])
    page.until(lambda: page.find("#merge").is_enabled())
    page.shows("#fit", "layers in both")
    page.find("#merge").click()
    page.shows("#merging", "Merging")
    first = page.find("#merging").text
    page.until(lambda: page.find("#merging").text != first)
    assert page.find("#merging progress").is_displayed() and not page.find("#merge").is_enabled()
    gate.set()
    page.shows("#merged", "Download cat+oil")
    assert not page.find("#merging").is_displayed() and page.find("#merge").is_enabled()


def test_it_works_by_keyboard(browser, server) -> None:
    page = Page(browser, server)
    seen = []
    for _ in range(40):
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        seen.append(browser.switch_to.active_element)
        if seen[-1].get_attribute("id") == "live":
            break
    assert all(element.accessible_name for element in seen if element.tag_name != "body")
    assert [e for e in seen if e.get_attribute("type") == "file"] and [
        e for e in seen if e.get_attribute("type") == "range"
    ]
    for side, name in (("content", "dog8"), ("style", "glowing")):
        select = page.find(f"[data-side={side}] select")
        select.send_keys(name)
        page.shows(f"[data-side={side}] .facts", f"{name}.safetensors")
    page.until(lambda: "dog in glowing style" in page.find("#prompt").get_attribute("value"))
    page.until(lambda: page.find("#merge").is_enabled())
    page.find("#merge").send_keys(Keys.ENTER)
    page.shows("#merged", "Download dog8+glowing")
    assert browser.switch_to.active_element.get_attribute("download") == "dog8+glowing.direct.safetensors"


def test_a_file_is_dropped(browser, server, pair) -> None:
    page = Page(browser, server)
    content = list(pair[0].read_bytes())
    browser.execute_script(
        """
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(arguments[0])], "dropped.safetensors"));
        const target = document.querySelector("[data-side=style] .drop");
        target.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        """,
        content,
    )
    page.shows("[data-side=style] .facts", "dropped.safetensors")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_can_be_read_and_asks_nobody_else(browser, server, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    if browser.execute_script("return innerWidth") < 700:
        metrics = {"width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page = Page(browser, server)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert all(contrast >= 4.5 for contrast in browser.execute_script(CONTRASTS))
    time.sleep(0.5)
    requests = [
        entry["message"] for entry in browser.get_log("performance") if 'requestWillBeSent"' in entry["message"]
    ]
    urls = [part.partition('"')[0] for message in requests for part in message.split('"url":"')[1:]]
    assert urls and all(url.startswith((server, "chrome", "about", "data:")) for url in urls)
    assert not browser.get_log("browser"), "no error, no refused resource"
    assert page.find("h1").is_displayed()


CONTRASTS = """
const light = text => {
  const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
};
return ["h1", "header p", "h2", ".step", ".drop b", ".drop span", "#about", "label", "button"].map(selector => {
  const element = document.querySelector(selector);
  const [dark, bright] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
  return (bright + 0.05) / (dark + 0.05);
});
"""
