"""Takes the README's pictures of TensorBoard in a headless browser.

    pip install -r study/requirements.txt   # install Chromium and its driver from your system
    python -m study.screenshots WITHOUT WITH MATRICES

These are the folders of three runs of train.py: without units, with units, and the one
whose matrices are shown; study/README.md names the runs of the pictures here. Writes
network_without.png, network_with.png, scalars.png and matrices.png. It waits until everything that a
picture needs is on the page, not for a fixed time.
"""

import base64
import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

from absl import flags
from selenium import webdriver
from selenium.common import exceptions
from selenium.webdriver.support.wait import WebDriverWait

from harness import files, process
from harness.errors import Failed

FLAGS = flags.FLAGS
flags.DEFINE_string("out", str(files.ROOT / "img"), "Folder for the pictures.")
flags.DEFINE_string("browser", shutil.which("chromium") or "", "Path of Chromium.")
flags.DEFINE_string("driver", shutil.which("chromedriver") or "", "Path of its driver.")

TIMEOUT = 60  # seconds to wait for a page
RUN_NAMES = ("cross_stitch=False", "cross_stitch=True")  # TensorBoard draws them orange, blue
BROWSER_ARGUMENTS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
    --disable-background-networking --disable-component-update --disable-sync
""".split()

# Each script below runs in the page. TensorBoard's elements are in shadow trees, which
# selectors do not reach.
ELEMENTS = """
function elements(root = document) {
  return [...root.querySelectorAll('*')].flatMap(
      (e) => e.shadowRoot ? [e, ...elements(e.shadowRoot)] : [e]);
}
function nodes() {
  return elements().filter((e) => e.matches('g.node') && e.getClientRects().length);
}
function node(name) {
  return nodes().find((e) => e.getAttribute('data-name') == name);
}
function box(found, margin) {
  const boxes = found.map((e) => e.getBoundingClientRect());
  const left = Math.min(...boxes.map((b) => b.left)) - margin;
  const top = Math.min(...boxes.map((b) => b.top)) - margin;
  return {x: left, y: top,
          width: Math.max(...boxes.map((b) => b.right)) + margin - left,
          height: Math.max(...boxes.map((b) => b.bottom)) + margin - top};
}
"""
# The rectangle to take, or null while it still moves.
AT_REST = """
const place = JSON.stringify(box(found, margin));
window.unchanged = window.last == place ? window.unchanged + 1 : 0;
window.last = place;
return window.unchanged < 4 ? null : JSON.parse(place);
"""
NETWORK = "const found = [node('network')].filter((e) => e), margin = 8;"
OPENED = f"""
{NETWORK}
if (!node('network/conv1_1') || !node('network/output_2')) return null;
// Opening a node also selects it, which draws a red frame and a table over it.
if (nodes().some((e) => e.matches('.selected'))) {{
  const scene = elements().find((e) => e.localName == 'svg' && e.contains(node('network')));
  scene.dispatchEvent(new MouseEvent('click', {{bubbles: true, composed: true}}));
  return null;
}}
if (!window.fitted) {{
  window.fitted = elements().find((e) => e.textContent.trim() == 'Fit to screen');
  window.fitted.click();
  return null;
}}
{AT_REST}
"""
OPEN = """
const plus = node('network') && node('network').querySelector('.buttoncontainer > *');
if (plus) plus.dispatchEvent(new MouseEvent('click', {bubbles: true, composed: true}));
return Boolean(plus);
"""
CHARTS = f"""
const lines = elements().filter((e) => e.matches('path.line') || e.localName == 'canvas');
const found = elements().filter((e) => e.localName == 'tf-scalar-card').slice(0, 2);
if (found.length < 2 || !lines.length) return null;
found.push(document.querySelector('app-header'));
found.push(elements().find((e) => e.localName == 'tf-runs-selector'));
const margin = 0;
{AT_REST}
"""
IMAGES = f"""
const images = elements().filter((e) => e.localName == 'img' && e.closest('#main-image-container'));
const found = elements().filter((e) => e.localName == 'tf-image-loader');
if (!images.length || images.some((e) => !e.complete || !e.naturalWidth)) return null;
const margin = 8;
{AT_REST}
"""


@contextlib.contextmanager
def served(**runs):
    """Serves runs with TensorBoard.

    Args:
      runs: name in TensorBoard -> the run's folder.

    Yields:
      TensorBoard's address.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runs.items():
            (pathlib.Path(folder) / "logs" / name).mkdir(parents=True)
            for path in pathlib.Path(run).glob("events.out.tfevents.*"):
                shutil.copy(path, pathlib.Path(folder) / "logs" / name)
        command = [sys.executable, "-m", "tensorboard.main", "--logdir=logs", "--port=0"]
        as_text = {"encoding": "utf-8", "errors": "replace"}
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, **as_text) as process:
            try:
                address = next((line for line in process.stderr if "http://" in line), None)
                if not address:
                    raise Failed("TensorBoard does not start. Start it by hand to see why.")
                address = "http:" + address.partition("http:")[2].split()[0]
                # TensorBoard serves its pages before it has read the runs.
                last, deadline = list(runs)[-1].encode(), time.monotonic() + TIMEOUT
                while last not in urllib.request.urlopen(f"{address}data/runs").read():
                    if time.monotonic() > deadline:
                        raise Failed("TensorBoard does not find the runs")
                    time.sleep(0.2)
                yield address
            finally:
                process.terminate()


@contextlib.contextmanager
def browser(width, height):
    """Opens a browser with a window of this size in pixels. Yields: its driver."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = FLAGS.browser
        for argument in (
            *BROWSER_ARGUMENTS,
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        driver = webdriver.Chrome(options, webdriver.ChromeService(FLAGS.driver))
        try:
            yield driver
        finally:
            driver.quit()


def take(driver, address, page, script, path, first=None):
    """Takes a picture of a part of a page.

    Args:
      driver: the browser's driver.
      address: TensorBoard's address.
      page: the part of the address that follows it.
      script: JavaScript that returns the rectangle to take, or null until it is there.
      path: the file to write.
      first: JavaScript to repeat before that until it returns true.
    """

    def wait_for(code):
        return WebDriverWait(driver, TIMEOUT, 0.5).until(
            lambda _: driver.execute_script(ELEMENTS + code), f"{page}: did not appear"
        )

    driver.get("about:blank")  # without it, a change after the # would load nothing
    driver.get(address + page)
    if first:
        wait_for(first)
    clip = {**wait_for(script), "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    files.write(path, base64.b64decode(shot["data"]))
    print(path)


def main(argv):
    if len(argv) != 4 or not all(list(pathlib.Path(run).glob("events.*")) for run in argv[1:]):
        raise Failed(
            "name three folders of runs: without units, with units, and the one whose matrices are"
            " shown"
        )
    if not (FLAGS.browser and FLAGS.driver):
        raise Failed("install Chromium and its driver, or pass --browser and --driver")
    *runs, matrices = argv[1:]
    out = pathlib.Path(FLAGS.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, run in zip(("without", "with"), runs):
            with served(run=run) as address, browser(1900, 1900) as driver:
                take(driver, address, "#graphs", OPENED, out / f"network_{name}.png", OPEN)
        with served(run=matrices) as address, browser(1600, 1200) as driver:
            take(driver, address, "#images", IMAGES, out / "matrices.png")
        with served(**dict(zip(RUN_NAMES, runs))) as address:
            tags = urllib.parse.quote("accuracy_test$|loss_total")
            page = f"#scalars&tagFilter={tags}&_smoothingWeight=0.6"
            with browser(1100, 800) as driver:
                take(driver, address, page, CHARTS, out / "scalars.png")
    except exceptions.WebDriverException as error:
        raise Failed(error.msg) from None


if __name__ == "__main__":
    process.run(main)
