"""The demo in a real browser, as a Space runs it: a folder with `app.py` and the sources, no network, no model."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
pytest.importorskip("selenium")

from demo_server import make_space, running_space
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[1]
SCENE = ROOT / "examples" / "scene-3.png"
CLASSES = ["sky", "water", "gravel", "red triangle", "orange cross", "orange heart", "orange star", "yellow ring"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1400",
    "--use-fake-device-for-media-stream",  # a camera
    "--use-fake-ui-for-media-stream",
]
SECONDS_TO_ANSWER = 20

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_space(tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="module")
def address(space: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with running_space(space, folder) as (address, _):
        yield address
    assert not list(folder.glob("sed-hf-demo-*")), "the server left its folder behind"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in [*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


class Page:
    """The demo's page, and what a visitor does there."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def find(self, selector: str) -> WebElement:
        """The first element that matches, once it is there."""
        return self.wait_for(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector))[0]

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, SECONDS_TO_ANSWER).until(lambda _: condition())

    def upload(self, path: Path) -> None:
        self.find("#image input[type=file]").send_keys(str(path))

    def type_classes(self, names: list[str]) -> None:
        # As if pasted: ten thousand names would take minutes to type.
        self.browser.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
            self.find("#classes textarea"),
            "\n".join(names),
        )

    def segment(self) -> None:
        self.find("#segment").click()

    def overlay(self) -> str:
        """The address of the overlay, empty before there is one."""
        images = self.browser.find_elements(By.CSS_SELECTOR, "#overlay img")
        return (images[0].get_attribute("src") or "") if images else ""

    def wait_for_another_overlay(self, last: str) -> None:
        self.wait_for(lambda: self.overlay() not in ("", last))

    def legend(self) -> list[str]:
        return [label.text for label in self.browser.find_elements(By.CSS_SELECTOR, "#shown label") if label.text]

    def message(self) -> str:
        """The error that the page shows, once it does."""
        return self.wait_for(lambda: self.find(".toast-body.error").text)


@pytest.fixture
def page(browser: webdriver.Chrome, address: str) -> Page:
    """The page, freshly loaded."""
    browser.get(address)
    page = Page(browser)
    page.find("#segment")
    return page


@pytest.fixture
def segmented(page: Page) -> Page:
    """The page with the result of a scene."""
    page.upload(SCENE)
    page.find("#image img")
    page.type_classes(CLASSES)
    page.segment()
    page.wait_for_another_overlay("")
    page.wait_for(page.legend)
    return page


def test_uploading_and_naming_classes_shows_overlay_and_legend(segmented: Page) -> None:
    names = {line.split("  ")[-1].split(" · ")[0].lstrip("0123456789 ") for line in segmented.legend()}
    assert {"sky", "water"} & names
    assert names <= set(CLASSES)


def test_a_threshold_redraws_the_overlay(segmented: Page) -> None:
    before = segmented.overlay()
    number = segmented.find("#threshold input[type=number]")
    number.send_keys(Keys.CONTROL + "a")
    number.send_keys("1" + Keys.TAB)
    segmented.wait_for_another_overlay(before)
    segmented.wait_for(lambda: all(line.endswith("0%") for line in segmented.legend()))


def test_unticking_a_class_hides_it(segmented: Page) -> None:
    before = segmented.overlay()
    box = segmented.find("#shown label input[name]")
    box.click()
    segmented.wait_for_another_overlay(before)
    assert not segmented.find("#shown label input[name]").is_selected()


def test_a_click_reads_the_class_and_its_probability(segmented: Page) -> None:
    segmented.find("#overlay img").click()
    segmented.wait_for(
        lambda: "probability" in segmented.find("#region").text and "%" in segmented.find("#region").text
    )
    assert segmented.find("#region b").text in CLASSES


def test_label_map_and_summary_can_be_downloaded(segmented: Page, downloads: Path) -> None:
    segmented.find("#labels").click()
    segmented.find("#summary").click()
    segmented.wait_for(lambda: {"scene-3_labels.png", "scene-3.json"} <= {path.name for path in downloads.iterdir()})
    with Image.open(downloads / "scene-3_labels.png") as labels:
        assert (labels.size, labels.mode) == ((192, 192), "L")
        indices = set(np.unique(labels).tolist())
    summary = json.loads((downloads / "scene-3.json").read_text())
    assert {entry["index"] for entry in summary["classes"]} == indices


def test_an_example_brings_its_class_names(page: Page) -> None:
    page.find("#examples button img").click()
    page.find("#image img")
    page.segment()
    page.wait_for_another_overlay("")


def test_the_camera_of_the_browser_takes_an_image(page: Page) -> None:
    page.find("#image button[aria-label='Capture from camera']").click()
    page.find("#image [title='grant webcam access'] button").click()
    page.find("#image button[aria-label='capture photo']").click()
    page.find("#image img")
    page.segment()
    page.wait_for_another_overlay("")


def large_image(folder: Path) -> Path:
    Image.new("RGB", (6000, 5000)).save(folder / "large.png")
    return folder / "large.png"


def text_file(folder: Path) -> Path:
    (folder / "notes.png").write_text("no image")
    return folder / "notes.png"


def large_file(folder: Path) -> Path:
    (folder / "large.jpg").write_bytes(bytes(20 * 2**20 + 1))
    return folder / "large.jpg"


@pytest.mark.parametrize(
    ("make_file", "message"),
    [
        (large_image, "more than the 25 megapixels that are taken here"),
        (text_file, "notes.png is not an image that can be read here"),
        (large_file, "exceed the maximum allowed size of 20"),
    ],
)
def test_a_bad_upload_is_answered_by_a_sentence_and_the_demo_goes_on(
    page: Page, tmp_path: Path, make_file: Callable[[Path], Path], message: str
) -> None:
    page.upload(make_file(tmp_path))
    assert message in page.message()
    page.browser.refresh()
    page.upload(SCENE)
    page.find("#image img")
    page.segment()
    page.wait_for_another_overlay("")


def test_ten_thousand_class_names_are_answered_by_a_sentence(segmented: Page) -> None:
    segmented.type_classes([f"class {index}" for index in range(10_000)])
    segmented.segment()
    assert "There are 10,000 class names, counting synonyms. At most 1,000 are taken here" in segmented.message()


def test_nothing_comes_from_elsewhere(segmented: Page, address: str) -> None:
    loaded = segmented.browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(loaded) > 10
    assert {url for url in loaded if not url.startswith((address, "blob:", "data:"))} == set()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(segmented: Page, width: int) -> None:
    segmented.browser.set_window_size(width, 1400)
    wide = segmented.browser.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    segmented.browser.set_window_size(1280, 1400)
    assert wide <= 0
