"""Pictures of the report page and of TensorBoard: `make screenshots`, after `make demo`.

    python tests/screenshots.py runs/demo docs/pictures

Needs chromium and its driver, as tests/test_browser.py does.
Reads    a finished run
Writes   FOLDER/{report,tensorboard}.png
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file from anywhere

from report.__main__ import main as write_report

PAGE = {"width": 1440, "height": 1150, "mobile": False}
BOARD = {"width": 1280, "height": 800, "mobile": False}  # narrower, its tabs overlap


def open_browser():
    """A headless chromium; RuntimeError where there is no driver, ImportError without selenium."""
    from selenium import webdriver

    driver = shutil.which("chromedriver")
    if driver is None:
        raise RuntimeError("no chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    browser.set_script_timeout(60)
    return browser


def emulate(browser, scheme="light", **size):
    """A phone, 360 pixels wide, unless told; scheme: light or dark"""
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True} | size
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def serve_tensorboard(run):
    """The address of TensorBoard of a run, in a thread of this process."""
    from tensorboard import program

    server = program.TensorBoard()
    # load_fast would start a process that may outlive this one.
    server.configure(["tensorboard", "--logdir", str(run), "--port", "0", "--load_fast", "false"])
    return server.launch()


def main(argv=None):
    run, folder = map(Path, sys.argv[1:] if argv is None else argv)
    folder.mkdir(parents=True, exist_ok=True)
    browser = open_browser()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            page = Path(scratch, "report.html")
            write_report([str(run), "--output", str(page)])
            emulate(browser, **PAGE)
            browser.get(page.as_uri())
            browser.save_screenshot(str(folder / "report.png"))
        emulate(browser, **BOARD)
        browser.get(f"{serve_tensorboard(run)}#scalars")
        time.sleep(10)  # it draws when its data have come, and says nothing then
        browser.save_screenshot(str(folder / "tensorboard.png"))
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
