"""The page of many runs, in a real browser."""

import shutil

import pytest

from align_jax.report import summary as report
from align_jax.report.found_runs import find_runs

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, f"none of {', '.join(NAMES)} is installed"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=FLAGS)


@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_of_many_runs_is_whole_and_fits(browser, root, tmp_path, width):
    path, _ = report.write_summary(find_runs([str(root)]), str(tmp_path / "out"))
    page = browser.new_page(viewport={"width": width, "height": 800})
    errors = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(request.url))
    page.goto(f"file://{path}")
    picture = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert not errors
    assert len(picture) > 50_000
    drawn = "Array.from(document.images, image => image.naturalWidth)"
    assert page.evaluate(drawn) == [660] * len(page.query_selector_all("img"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("link", name="its own report").first.click()
    assert page.url.endswith("/sweep/baseline-0123abcd/report.html")
    assert not errors
    page.close()
