"""The search page in a real browser, on the quickstart's model and held-out drawings.

SCREENSHOTS=docs replaces the pictures of docs/search.md by new screenshots.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from align_jax.input.evaluation_records import evaluation_records
from tests.report.browser_test import browser  # noqa: F401, a fixture

pytestmark = pytest.mark.browser
ROOT = pathlib.Path(__file__).parents[2]
RUN, DRAWINGS = ROOT / "runs" / "quickstart", ROOT / "runs/quickstart_data/evaluation"
SPLITS = "unseen_drawing+unseen_concept"


@pytest.fixture(scope="module")
def drawings():
    """The picture files of held-out drawings, by name."""
    assert all(path.exists() for path in (RUN, DRAWINGS)), "run `make quickstart` first"
    records = evaluation_records(str(DRAWINGS), SPLITS)
    return {record["texts"][0].decode(): record["image"] for record in records}


@pytest.fixture(scope="module")
def address(drawings, tmp_path_factory):
    """The address of a server with an index of the drawings."""
    folder = tmp_path_factory.mktemp("search")
    index = folder / "index"
    labels = folder / "labels.txt"
    labels.write_text("heart\nface\ncircle\nclock\nbutton\n")
    captions = folder / "captions.txt"
    captions.write_text("".join(f"{name}\n" for name in drawings))
    command = [sys.executable, "-m", "align_jax.search"]
    images = f"--images={DRAWINGS}:{SPLITS}"
    build = ["build", f"--checkpoint={RUN}", images, f"--out={index}"]
    subprocess.run([*command, *build], check=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    texts = [f"--labels={labels}", f"--captions={captions}"]
    server = subprocess.Popen([*command, "serve", str(index), f"--port={port}", *texts])
    for _ in range(1800):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}/"
    server.send_signal(signal.SIGINT)
    server.wait(30)


def playwright_expect():
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)
    return expect


@pytest.fixture
def page(browser, address):  # noqa: F811
    page = browser.new_page(viewport={"width": 1100, "height": 760})
    page.errors, page.expect = [], playwright_expect()
    page.on("console", lambda message: page.errors.append(message.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    yield page
    assert not page.errors
    page.close()


def shoot(page, name, tmp_path):
    folder = pathlib.Path(os.environ.get("SCREENSHOTS", tmp_path))
    page.wait_for_load_state("networkidle")
    assert len(page.screenshot(path=folder / f"search_{name}.png")) > 10_000


def upload(page, content):
    file = {"name": "a.png", "mimeType": "image/png", "buffer": content}
    page.set_input_files("#file", file)


def names(page, count, terms=1):
    """Returns the names of the first pictures, once the page has this many terms."""
    expect = page.expect
    expect(page.locator(".term")).to_have_count(terms)
    expect(page.locator("#status")).to_contain_text("by cosine similarity")
    found = page.locator("#hits li img").evaluate_all("all => all.map(x => x.alt)")
    return found[:count]


def test_words_find_their_drawings(page, tmp_path):
    page.keyboard.type("red heart")  # the box has the focus
    page.keyboard.press("Enter")
    assert sum("heart" in name for name in names(page, 4)) >= 2
    shoot(page, "text", tmp_path)


def test_a_picture_finds_its_likes_and_is_labelled(page, drawings, tmp_path):
    upload(page, drawings["growing heart"])
    assert names(page, 1) == ["growing heart"]
    page.wait_for_selector("#about li")
    assert page.locator("#about li").first.inner_text().startswith("heart")
    shoot(page, "image", tmp_path)


def test_a_picture_changes_by_words_that_are_added_and_taken_away(
    page, drawings, tmp_path
):
    upload(page, drawings["red circle"])
    before = names(page, 5)
    assert before[0] == "red circle"
    page.fill("#text", "red")
    page.get_by_role("button", name="Take away").click()
    page.fill("#text", "blue")
    page.get_by_role("button", name="Search").click()
    after = names(page, 5, terms=3)
    assert "blue circle" in after
    assert after[0] != "red circle"
    shoot(page, "image_and_text", tmp_path)


def test_more_like_this_weights_and_an_empty_result_work_by_keyboard(page):
    page.keyboard.type("clock")
    page.keyboard.press("Enter")
    name = names(page, 1)[0]
    page.get_by_role("button", name=f"more like {name}").first.focus()
    page.keyboard.press("Enter")
    page.expect(page.locator(".term img")).to_have_count(1)
    assert names(page, 1) == [name]
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(10):  # from 1 to 0
        page.keyboard.press("ArrowLeft")
    page.expect(page.locator("#status")).to_contain_text("Every weight is 0")
    assert page.locator("#hits li").count() == 0
    page.get_by_role("button", name="remove").press("Enter")
    assert page.locator(".term").count() == 0


def test_a_query_that_finds_nothing_is_told(page):
    page.route("**/api/search", lambda route: route.fulfill(json={"hits": []}))
    page.fill("#text", "heart")
    page.get_by_role("button", name="Search").click()
    page.expect(page.locator("#status")).to_have_text("Nothing was found.")
    assert page.locator("#hits li").count() == 0


def test_a_file_that_is_no_picture_is_told(page):
    upload(page, b"no picture")
    page.wait_for_selector("#status.bad")
    assert "no picture that can be read" in page.locator("#status").inner_text()
    page.errors[:] = [
        e for e in page.errors if "422" not in e
    ]  # the line that the browser logs itself


def test_a_dropped_picture_is_searched(page, drawings):
    page.evaluate(
        """bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "a.png"));
          document.dispatchEvent(new DragEvent("drop", {dataTransfer: data}));
        }""",
        list(drawings["growing heart"]),
    )
    assert names(page, 1) == ["growing heart"]


def test_the_page_fits_a_phone(browser, address):  # noqa: F811
    page = browser.new_page(viewport={"width": 360, "height": 700})
    page.expect = playwright_expect()
    page.goto(address)
    page.fill("#text", "smiling face")
    page.get_by_role("button", name="Search").click()
    names(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
