"""The demo in a real browser, as a Space runs it: a folder with `app.py` and the sources, no network, no model."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_server import ROOT, Server, running_space
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

SCENE = ROOT / "examples" / "scene-3.png"
CLASSES = ["sky", "water", "gravel", "red triangle", "orange cross", "orange heart", "orange star", "yellow ring"]
ENTRY = re.compile(r"(.+) · (\d+\.\d)% · (\d\.\d\d)")  # of the legend: class, share, probability
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),  # a camera
]
NEEDED = "needs chromium and chromedriver: apt-get install chromium chromium-driver"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason=NEEDED)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_space(folder := tmp_path_factory.mktemp("server")) as server:
        yield server
    assert not list(folder.glob("sed-hf-demo-*")), "the server left its folder behind"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


class Page:
    """The demo's page, and what a visitor does there."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def find(self, selector: str) -> WebElement:
        """The first element that matches, once it is there."""
        return self.wait_for(lambda: self.all(selector))[0]

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        ignored = [StaleElementReferenceException]  # of what the page replaces at that moment
        return WebDriverWait(self.browser, 20, ignored_exceptions=ignored).until(lambda _: condition())

    def upload(self, path: Path) -> None:
        self.find("#image input[type=file]").send_keys(str(path))

    def type_classes(self, names: list[str]) -> None:
        setting = "arguments[0].value = arguments[1]; "
        event = "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.browser.execute_script(setting + event, self.find("#classes textarea"), "\n".join(names))

    def segment(self) -> None:
        self.find("#image img")
        self.find("#segment").click()

    def legend(self) -> list[str]:
        return [entry.text for entry in self.all("#overlay .legend-item")]


@pytest.fixture
def page(browser: webdriver.Chrome, server: Server) -> Page:
    """The page, freshly loaded."""
    browser.get(server.address)
    page = Page(browser)
    page.find("#segment")
    return page


@pytest.fixture
def segmented(page: Page) -> Page:
    """The page with the result of a scene."""
    page.upload(SCENE)
    page.type_classes(CLASSES)
    page.segment()
    page.wait_for(page.legend)
    return page


def test_the_legend_names_classes_shares_and_probabilities_until_a_threshold_takes_them_away(segmented: Page) -> None:
    entries = [ENTRY.fullmatch(entry) for entry in segmented.legend()]
    assert {entry[1] for entry in entries} <= set(CLASSES)
    assert 99 < sum(float(entry[2]) for entry in entries) < 101
    number = segmented.find("#threshold input[type=number]")
    number.send_keys(Keys.CONTROL + "a")
    number.send_keys("1" + Keys.TAB)
    segmented.wait_for(lambda: not segmented.legend())


def test_pointing_at_the_image_shows_the_region_its_class_and_its_probability(segmented: Page) -> None:
    ActionChains(segmented.browser).move_to_element(segmented.find("#overlay .base-image")).perform()
    pointed = segmented.wait_for(lambda: re.fullmatch(r"(.+) \(here (\d\.\d\d)\)", segmented.find("#pointed").text))
    assert pointed[1] in segmented.legend()
    active = ["active" in mask.get_dom_attribute("class").split() for mask in segmented.all("#overlay .mask")]
    assert segmented.legend()[active.index(True)] == pointed[1]


def test_an_example_brings_its_class_names(page: Page) -> None:
    page.type_classes(["nothing"])
    page.all("#examples img")[1].click()
    page.segment()
    page.wait_for(lambda: len(page.legend()) > 1)
    names = page.find("#classes textarea").get_attribute("value").splitlines()
    assert {ENTRY.fullmatch(entry)[1] for entry in page.legend()} <= set(names)


def test_the_camera_of_the_browser_takes_an_image(page: Page) -> None:
    page.find("#image button[aria-label='Capture from camera']").click()
    page.find("#image [title='grant webcam access'] button").click()
    page.find("#image button[aria-label='capture photo']").click()
    page.segment()
    page.wait_for(page.legend)


def test_a_bad_upload_is_answered_by_a_sentence_and_the_demo_goes_on(page: Page, tmp_path: Path) -> None:
    (tmp_path / "sent.png").write_bytes(b"no image")
    page.upload(tmp_path / "sent.png")
    page.segment()
    assert "sent.png: not an image file" in page.wait_for(lambda: page.find(".toast-body.error").text)
    page.browser.refresh()
    page.upload(SCENE)
    page.segment()
    page.wait_for(page.legend)


def test_nothing_comes_from_elsewhere(segmented: Page, server: Server) -> None:
    loaded = segmented.browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(loaded) > 10
    assert {url for url in loaded if not url.startswith((server.address, "blob:", "data:"))} == set()


def test_all_is_on_one_screen_and_nothing_is_wider_than_a_narrow_one(segmented: Page) -> None:
    for selector in ("#image img", "#classes textarea", "#segment", "#overlay .base-image", "#overlay .legend"):
        assert segmented.find(selector).rect["y"] + segmented.find(selector).rect["height"] <= 900
    excess = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    try:
        for width in (1280, 390):
            segmented.browser.set_window_size(width, 900)
            assert segmented.browser.execute_script(excess) <= 0
    finally:
        segmented.browser.set_window_size(1280, 900)
