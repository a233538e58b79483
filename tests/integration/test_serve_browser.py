"""The page of `bert-snli serve` in a real browser. It sends no request to other servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bert_snli.modeling.labels import D2L_LABELS
from bert_snli.serving.app import EXAMPLES
from tests.support.trained_classifier import KNOWN_PAIRS, PREMISE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium installed: apt-get install chromium", allow_module_level=True)

from playwright.sync_api import Page, expect, sync_playwright  # noqa: E402

# These options switch off requests of the browser itself.
CHROMIUM_OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update""".split()
MARKUP = "<script>window.hit=1</script><img src=x onerror='window.hit=1'> ${window.hit=1} {{1+1}}"
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address: str) -> Iterator[Page]:
    """The loaded page. After the test, checks that no request went to another server and that no script failed."""
    page = browser.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    expect(page.locator("#prediction .bs-label")).to_have_count(1, timeout=20_000)
    yield page
    page.close()
    other_urls = [url for url in requests if not url.startswith((f"{address}/", "data:", f"blob:{address}/"))]
    assert len(requests) > 10
    assert other_urls == []
    assert errors == []


def submit(page: Page, premise: str, hypothesis: str) -> None:
    page.get_by_label("Premise").fill(premise)
    page.get_by_label("Hypothesis").fill(hypothesis)
    page.get_by_role("button", name="Predict").click()


@pytest.mark.parametrize("label", D2L_LABELS)
def test_submitted_pair_shows_its_label_and_probabilities(page: Page, label: str):
    premise, hypothesis = KNOWN_PAIRS[label]
    submit(page, premise, hypothesis)
    expect(page.locator("[data-sentence=hypothesis]")).to_contain_text(hypothesis.split()[-2])
    expect(page.locator(".bs-label")).to_have_text(label)
    rows = page.locator(".bs-bars tr")
    expect(rows.locator("th")).to_have_text(["entailment", "contradiction", "neutral"])
    percentages = [float(text.rstrip("%")) for text in rows.locator("td:last-child").all_inner_texts()]
    widths = [bar.bounding_box()["width"] for bar in rows.locator(".bs-track div").all()]
    assert sum(percentages) == pytest.approx(100, abs=0.2)
    assert max(zip(widths, percentages, rows.locator("th").all_inner_texts(), strict=True))[1:] == (
        max(percentages),
        label,
    )


def test_enter_submits_and_shift_enter_starts_a_new_line(page: Page):
    premise, hypothesis = KNOWN_PAIRS["contradiction"]
    page.get_by_label("Premise").fill(premise)
    page.get_by_label("Hypothesis").fill(hypothesis)
    page.get_by_label("Hypothesis").press("Shift+Enter")
    expect(page.get_by_label("Hypothesis")).to_have_value(f"{hypothesis}\n")
    expect(page.locator(".bs-stale")).to_have_count(1)
    page.get_by_label("Hypothesis").press("Enter")
    expect(page.locator(".bs-label")).to_have_text("contradiction")
    expect(page.get_by_label("Hypothesis")).to_have_value(f"{hypothesis}\n")
    expect(page.locator(".bs-stale")).to_have_count(0)


def test_prediction_is_grey_while_the_text_differs(page: Page):
    expect(page).to_have_title("Natural language inference with trained_classifier")
    expect(page.locator(".bs-prediction")).to_have_count(1)
    expect(page.locator(".bs-stale")).to_have_count(0)
    box = page.get_by_label("Hypothesis")
    box.press("End")
    box.press("x")
    expect(page.locator(".bs-stale")).to_have_css("opacity", "0.4")
    box.press("Backspace")  # the text is the predicted one again
    expect(page.locator(".bs-stale")).to_have_count(0)
    box.press("x")
    expect(page.locator(".bs-stale")).to_have_count(1)
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("[data-sentence=hypothesis]")).to_contain_text("x")
    expect(page.locator(".bs-stale")).to_have_count(0)


def test_click_on_an_example_fills_in_the_pair(page: Page):
    premise, hypothesis = EXAMPLES[1]
    page.get_by_role("button", name=hypothesis).click()
    expect(page.get_by_label("Premise")).to_have_value(premise)
    expect(page.locator("[data-sentence=premise]")).to_contain_text("football")


def test_markup_in_a_pair_is_shown_as_text(page: Page):
    submit(page, MARKUP, MARKUP)
    words = page.locator("[data-sentence=hypothesis]")
    expect(words).to_contain_text("onerror")
    shown = words.evaluate("e => { e.querySelectorAll('small').forEach(s => s.remove()); return e.textContent }")
    assert shown.startswith(MARKUP)
    assert page.evaluate("window.hit") is None
    expect(page.locator("#prediction img, #prediction script")).to_have_count(0)


def test_empty_hypothesis_shows_a_message(page: Page):
    submit(page, "A dog.", " ")
    expect(page.get_by_test_id("toast-body")).to_contain_text("No hypothesis: type a sentence")


def test_predictions_of_an_uploaded_file_can_be_downloaded(page: Page, tmp_path: Path):
    pairs = [*KNOWN_PAIRS.values(), (PREMISE.format(animal="cat", doing="eating", place="house"), MARKUP)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"premise": p, "hypothesis": h}) for p, h in pairs))
    page.get_by_role("tab", name="A file of pairs").click()
    page.locator("input[type=file]").set_input_files(path)
    rows = page.locator("#table tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.locator("b")).to_contain_text([*KNOWN_PAIRS, ""])
    expect(rows.nth(3)).to_contain_text(MARKUP)
    assert page.evaluate("window.hit") is None
    with page.expect_download() as download:
        page.locator("a[download]").last.click()
    lines = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [(line["premise"], line["hypothesis"]) for line in lines] == pairs
    assert [line["label"] for line in lines[:3]] == list(KNOWN_PAIRS)

    page.get_by_label("Clear").click()  # then upload an invalid file
    expect(rows).to_have_count(0)
    path.write_text('{"premise": "\\ud800<img src=x onerror=window.hit=1>", "hypothesis": "A dog."}')
    page.locator("input[type=file]").set_input_files(path)
    expect(page.get_by_test_id("toast-body")).to_contain_text("pairs.jsonl: row 1: ")
    assert page.evaluate("window.hit") is None


def test_page_fits_the_width_of_a_phone(page: Page):
    page.set_viewport_size(PHONE)
    submit(page, "A dog is running in the park. " * 10, "wombat" * 60)
    expect(page.locator(".bs-truncation-notice")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    button, prediction = (page.locator(place).first.bounding_box() for place in ("button.primary", "#prediction"))
    assert prediction["y"] > button["y"]
