"""Raters in a real Chromium, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import Running
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lorarar.study.storage import Storage


@pytest.fixture
def server(study) -> Iterator[Running]:
    running = Running(study.folder)
    yield running
    running.kill()


class Page:
    """What a rater does and sees."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        self.wait = WebDriverWait(browser, 60)
        browser.get(url)
        self.wait.until(lambda _: self.shown() != "")

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def shown(self) -> str:
        """Which part of the page is visible."""
        return " ".join(
            main.get_attribute("id") for main in self.browser.find_elements(By.CSS_SELECTOR, "main:not([hidden])")
        )

    def ready(self, number: int) -> None:
        """Wait for a comparison whose images are there."""
        self.wait.until(lambda _: self.find("#place").text == f"{number} of 10")
        self.wait.until(lambda _: self.find("[data-choice=similar]").is_enabled())

    def press(self, key: str) -> None:
        self.find("body").send_keys(key)

    def choose(self, choice: str) -> None:
        self.find(f"[data-choice='{choice}']").click()


def choices(study) -> list[str]:
    storage = Storage(study)
    found = [vote.choice for vote in storage.votes()]
    storage.close()
    return found


@pytest.fixture
def link(study) -> str:
    storage = Storage(study)
    (rater,) = storage.invite(1)
    storage.close()
    return f"/r/{rater.token}"


def test_a_rater_goes_through_a_whole_study(browser, server, study, link) -> None:
    page = Page(browser, server.url + link)
    assert page.shown() == "intro" and len(page.browser.find_elements(By.CSS_SELECTOR, "#intro figure")) == 4
    page.find("#start").click()
    page.ready(1)
    assert not page.find("#back").is_enabled()
    page.choose("1")
    page.ready(2)
    page.press("2")
    page.ready(3)
    page.press("3")
    page.ready(4)
    assert choices(study) == ["1", "similar", "2"]

    browser.refresh()
    page.ready(4)  # where it was, without the instructions
    page.find("#back").click()
    page.ready(3)
    assert page.find("[data-choice='2']").get_attribute("aria-pressed") == "true"
    page.choose("similar")
    page.ready(4)
    assert choices(study) == ["1", "similar", "similar"]

    for number in range(4, 11):
        page.ready(number)
        page.press(Keys.NUMPAD1 if number == 4 else "1")
    page.wait.until(lambda _: page.shown() == "end")
    page.find("#last").click()
    page.ready(10)
    page.choose("2")
    page.wait.until(lambda _: page.shown() == "end")
    page.find("#finish").click()
    page.wait.until(lambda _: page.shown() == "thanks")
    browser.refresh()
    page.wait.until(lambda _: page.shown() == "thanks")
    assert choices(study) == ["1", "similar", "similar", *["1"] * 6, "2"]


def test_images_are_large_zoom_and_have_names(browser, server, link) -> None:
    page = Page(browser, server.url + link)
    page.find("#start").click()
    page.ready(1)
    options = browser.find_elements(By.CSS_SELECTOR, "#task .options .picture")
    left, right = (option.rect for option in options)
    viewport = browser.execute_script("return innerWidth")
    assert left["width"] >= min(0.4 * viewport, 300) and left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"], "side by side"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= viewport
    for button in browser.find_elements(By.CSS_SELECTOR, "#task button"):
        assert button.accessible_name
    names = [image.accessible_name for image in browser.find_elements(By.CSS_SELECTOR, "#task img")]
    assert names[2:] == ["Option 1", "Option 2"] and "Subject reference" in names[0] and "Style reference" in names[1]

    options[1].click()
    zoomed = page.find("#zoom img")
    assert zoomed.rect["width"] > 1.5 * right["width"] and zoomed.accessible_name == "Option 2"
    page.press("1")
    assert page.find("#place").text == "1 of 10", "keys do not vote behind an enlarged image"
    page.find("#close").click()
    page.press("1")
    page.ready(2)


def test_two_tabs_lose_nothing(browser, server, study, link) -> None:
    page = Page(browser, server.url + link)
    page.find("#start").click()
    page.ready(1)
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    other = Page(browser, server.url + link)
    other.find("#start").click()
    other.ready(1)
    other.choose("2")
    other.ready(2)
    browser.switch_to.window(first)
    page.choose("1")
    page.wait.until(lambda _: "another tab" in page.find("#status").text)
    page.ready(2)
    assert choices(study) == ["2"]
    page.choose("similar")
    page.ready(3)
    assert choices(study) == ["2", "similar"] and not page.find("#status").is_displayed()


def test_a_vote_waits_for_a_server_that_died_even_if_the_tab_is_closed(browser, server, study, link) -> None:
    page = Page(browser, server.url + link)
    page.find("#start").click()
    page.ready(1)
    server.kill()
    page.choose("2")
    page.wait.until(lambda _: "not saved yet" in page.find("#status").text)
    browser.switch_to.new_window("tab")
    kept = browser.current_window_handle
    browser.switch_to.window(browser.window_handles[0])
    browser.close()
    browser.switch_to.window(kept)
    server.start()
    assert choices(study) == []
    again = Page(browser, server.url + link)
    again.wait.until(lambda _: again.shown() == "task")
    again.ready(2)
    assert choices(study) == ["2"]


def test_the_page_asks_nobody_else_and_breaks_no_policy(browser, server, link) -> None:
    page = Page(browser, server.url + link)
    page.find("#start").click()
    page.ready(1)
    browser.get(f"{server.url}/admin/{server.admin}")
    assert page.find("table").is_displayed()
    requests = [
        entry["message"] for entry in browser.get_log("performance") if 'requestWillBeSent"' in entry["message"]
    ]
    urls = [part.partition('"')[0] for message in requests for part in message.split('"url":"')[1:]]
    assert urls and all(url.startswith((server.url, "chrome", "about", "data:")) for url in urls)
    assert not browser.get_log("browser"), "no error, no refused resource"
    browser.get(f"{server.url}/r/nonsense")
    assert "not known" in page.find("main").text
