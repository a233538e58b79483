"""The page in a real browser, headless Chromium: typed into, clicked, read; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from bert_snli.inference import load_classifier, load_tokenizer, predict_pairs
from bert_snli.serving.answering import Answerer
from bert_snli.serving.app import EXAMPLES
from bert_snli.serving.server import start
from tests.conftest import random_pairs, save_random_classifier, spare_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A quiet browser: without these it looks for updates and more, elsewhere.
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
QUIET += "--disable-component-update --disable-sync".split()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_classifier(tmp_path_factory.mktemp("browser") / "model")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    app = start(Answerer(str(folder)), "model", "127.0.0.1", spare_port())
    yield app.local_url
    app.close(verbose=False)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        expect(page.locator(".bs-verdict")).to_be_visible(timeout=30_000)
        yield page
        browser.close()
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked)


def label_of(folder: Path, pair: tuple[str, str]) -> str:
    return next(iter(predict_pairs(load_classifier(str(folder)), load_tokenizer(str(folder)), [pair])[0]))


def test_type_click_and_see_the_label(page: Page, folder: Path):
    labelled = {label_of(folder, pair): pair for pair in random_pairs(30)}
    assert len(labelled) == 3
    for label, (premise, hypothesis) in labelled.items():
        page.get_by_label("Premise").fill(premise)
        page.get_by_label("Hypothesis").fill(hypothesis)
        page.get_by_role("button", name="Does it follow?").click()
        expect(page.locator('[data-side="hypothesis"]')).to_contain_text(hypothesis.split()[0])
        expect(page.locator(".bs-verdict")).to_have_text(label, timeout=10_000)


def test_what_is_typed_is_not_run(page: Page):
    page.get_by_label("Premise").fill("<img src=x onerror='window.run=1'><script>window.run=1</script>")
    page.get_by_label("Hypothesis").fill("${window.run=1} {{window.run=1}} zebra")
    page.get_by_role("button", name="Does it follow?").click()
    expect(page.locator(".bs-unknown", has_text="zebra")).to_be_visible(timeout=10_000)
    assert page.evaluate("window.run") is None


def test_an_example_is_answered_at_a_click(page: Page, folder: Path):
    premise, hypothesis = EXAMPLES[2]
    page.get_by_role("cell", name=premise).or_(page.get_by_text(premise)).first.click()
    expect(page.get_by_label("Premise")).to_have_value(premise, timeout=10_000)
    expect(page.locator(".bs-verdict")).to_have_text(label_of(folder, (premise, hypothesis)), timeout=10_000)
    page.get_by_label("Where <cls> looks").click()
    expect(page.locator(".bs-answer")).to_contain_text("Attention of <cls>", timeout=10_000)


def test_a_file_is_answered(page: Page, folder: Path, tmp_path: Path):
    pairs = random_pairs(3)
    path = tmp_path / "pairs.tsv"
    path.write_text("premise\thypothesis\n" + "".join(f"{p}\t{h}\n" for p, h in pairs))
    page.get_by_role("tab", name="A file of pairs").click()
    page.locator("input[type=file]").first.set_input_files(path)
    expect(page.get_by_text("3 pairs")).to_be_visible(timeout=10_000)
    with page.expect_download() as download:
        page.get_by_role("link", name="KB").or_(page.locator("a[download*=answers]")).last.click()
    assert download.value.suggested_filename == "pairs-answers.jsonl"
    path.write_text("premise\tclaim\na\tb\n")
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    page.locator("input[type=file]").first.set_input_files(path)
    expect(page.get_by_text("pairs.tsv: row 1: no hypothesis")).to_be_visible(timeout=10_000)
