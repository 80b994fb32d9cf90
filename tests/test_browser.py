"""The report page and TensorBoard in Debian's chromium, and axe-core's judgement of the page.

Skipped where these are not installed: `apt-get install chromium chromium-driver`, and
`npm install --no-save axe-core` in the project's folder.
"""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from screenshots import emulate, open_browser, serve_tensorboard

from report.__main__ import main
from report.mcnemar import paired_difference

AXE = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def browser():
    try:
        found = open_browser()
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def page(browser, digits_run, tmp_path_factory):
    """The address of a run's page."""
    file = tmp_path_factory.mktemp("page") / "page.html"
    main([str(digits_run), "--output", str(file)])
    return file.as_uri()


def test_on_a_phone_nothing_is_cut_off_and_the_filter_works(browser, page):
    emulate(browser)
    browser.get(page)
    width, visible, pictures = browser.execute_script("""
        const select = document.querySelector("select");
        select.value = "3";
        select.dispatchEvent(new Event("change"));
        const shown = [...document.querySelectorAll("li[data-label]")].filter(x => !x.hidden);
        const sizes = [...document.images].map(x => x.naturalWidth && x.width);
        return [document.documentElement.scrollWidth, shown.map(x => x.dataset.label), sizes];
    """)
    assert width == 360
    assert visible and set(visible) == {"3"}
    assert pictures and min(pictures) > 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize(("width", "columns"), [(1440, 3), (390, 1)])
def test_the_page_begins_with_the_difference_and_its_interval(
    browser, page, digits_run, width, columns
):
    emulate(browser, width=width, height=900, mobile=width < 500)
    browser.get(page)
    text, bottom, used, beside = browser.execute_script("""
        const opening = document.querySelector(".opening"), tables = [];
        for (const it of document.querySelectorAll("[id^=r0-confusion]"))
            tables.push(Math.round(it.getBoundingClientRect().top));
        const cards = document.querySelector(".steps").getBoundingClientRect();
        return [opening.innerText, opening.getBoundingClientRect().bottom,
                cards.width / document.documentElement.clientWidth,
                tables.filter(top => top === tables[0]).length];
    """)
    answers = []
    for stage in ("finetuned", "teacher"):
        with np.load(digits_run / stage / "predictions.npz", allow_pickle=False) as columns_of:
            answers.append(columns_of["test_top1"] == columns_of["test_label"])
    gap, low, high, _ = paired_difference(*answers)
    said = re.search(r"teacher: (\S+) points \[(\S+), (\S+)\]", text)
    assert [float(x) for x in said.groups()] == pytest.approx(
        [100 * gap, 100 * low, 100 * high], abs=0.006
    )
    assert bottom < 900 and used > 0.9 and beside == columns


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser, page, scheme):
    """Contrast, texts of pictures, order of headings, names of fields, and some eighty more."""
    if not AXE.exists():
        pytest.skip(f"no {AXE}: npm install --no-save axe-core")
    emulate(browser, scheme)
    browser.get(page)
    browser.execute_script("document.querySelectorAll('details').forEach(x => x.open = true)")
    browser.execute_script(AXE.read_text(encoding="utf-8"))
    passed, violated = browser.execute_async_script("""
        const done = arguments[0];
        const said = x => [x.id, x.nodes.slice(0, 3).map(node => node.failureSummary + node.html)];
        axe.run().then(found => done([found.passes.map(x => x.id), found.violations.map(said)]));
    """)
    assert {"color-contrast", "image-alt"} <= set(passed)
    assert violated == []


# All text, also that of web components and of the projector's frame.
TEXT = r"""
    const walk = node => [...node.childNodes].map(child =>
        child.nodeType === 3 ? child.data : ["STYLE", "SCRIPT"].includes(child.tagName) ? "" :
        walk(child) + (child.shadowRoot ? walk(child.shadowRoot) : "") +
        (child.contentDocument ? walk(child.contentDocument) : "")).join(" ");
    return walk(document).replace(/\s+/g, " ");
"""


@pytest.fixture(scope="module")
def tensorboard(digits_run):
    return serve_tensorboard(digits_run)


@pytest.mark.parametrize(
    "tab, wanted",
    [
        ("scalars", ("1 accuracy", "1 accuracy/validation top-1", "teacher", "finetuned")),
        ("images", ("selection/best images of each class", "training")),
        ("hparams", ("Trial ID", "stage", "5 final, for HPARAMS/test top-1", "student")),
        ("projector", ("Points: 599", "true class", "right or wrong")),
    ],
)
def test_tensorboard_has_its_tabs(browser, tensorboard, tab, wanted):
    emulate(browser, width=1280, height=900, mobile=False)
    browser.get(f"{tensorboard}#{tab}")
    browser.refresh()
    missing, last = wanted, time.monotonic() + 60
    while missing and time.monotonic() < last:
        time.sleep(0.2)
        text = browser.execute_script(TEXT)
        missing = [words for words in wanted if words not in text]
    assert not missing
