"""Takes the README's pictures of TensorBoard in a headless browser.

    pip install -r img/requirements.txt   # and Chromium with its driver, from the system
    python img/screenshots.py WITHOUT WITH

WITHOUT and WITH are the folders of two runs of train.py, without units and with.
Writes network_without.png, network_with.png, scalars.png and heat_maps.png. It
waits for what is to be seen, never for a time.
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

from absl import app, flags
from selenium import webdriver
from selenium.common import exceptions
from selenium.webdriver.support.wait import WebDriverWait

FLAGS = flags.FLAGS
flags.DEFINE_string("out", str(pathlib.Path(__file__).parent), "Folder for the pictures.")
flags.DEFINE_string("browser", shutil.which("chromium") or "", "Chromium's program.")
flags.DEFINE_string("driver", shutil.which("chromedriver") or "", "Its driver's program.")

SECONDS = 60  # to wait for a page at most
RUNS = ("cross_stitch=False", "cross_stitch=True")  # TensorBoard's colours, too: orange, blue
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
    --disable-background-networking --disable-component-update --disable-sync""".split()

# TensorBoard's elements lie in shadow trees, into which no selector reaches.
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
# Where it is, or nothing as long as it moves or something else is missing.
RESTING = """
const place = JSON.stringify(box(found, margin));
window.resting = window.last == place ? window.resting + 1 : 0;
window.last = place;
return window.resting < 4 ? null : JSON.parse(place);
"""
NETWORK = "const found = [node('network')].filter((e) => e), margin = 8;"
OPENED = f"""
{NETWORK}
if (!node('network/conv1_1') || !node('network/output_2')) return null;
// Opened, it is selected, too, which draws a red frame and a table over it.
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
{RESTING}
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
{RESTING}
"""
IMAGES = f"""
const images = elements().filter((e) => e.localName == 'img' && e.closest('#main-image-container'));
const found = elements().filter((e) => e.localName == 'tf-image-loader');
if (found.length < 3 || images.some((e) => !e.complete || !e.naturalWidth)) return null;
found.push(document.querySelector('app-header'));
const margin = 0;
{RESTING}
"""


@contextlib.contextmanager
def served(**runs):
    """A TensorBoard on some runs, folders by the names they get. Yields: its address."""
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runs.items():
            (pathlib.Path(folder) / "logs" / name).mkdir(parents=True)
            for path in pathlib.Path(run).glob("events.out.tfevents.*"):
                shutil.copy(path, pathlib.Path(folder) / "logs" / name)
        command = [sys.executable, "-m", "tensorboard.main", "--logdir=logs", "--port=0"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=folder, stderr=pipe, text=True) as process:
            try:
                address = next((line for line in process.stderr if "http://" in line), None)
                if not address:
                    sys.exit("screenshots.py: TensorBoard does not start: try it by hand")
                address = "http:" + address.partition("http:")[2].split()[0]
                # Its data come a little later than its pages.
                last, patience = list(runs)[-1].encode(), time.monotonic() + SECONDS
                while last not in urllib.request.urlopen(f"{address}data/runs").read():
                    if time.monotonic() > patience:
                        sys.exit("screenshots.py: TensorBoard does not find the runs")
                    time.sleep(0.2)
                yield address
            finally:
                process.terminate()


@contextlib.contextmanager
def browsing(width, height):
    """A browser with a window of so many pixels. Yields: its driver."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = FLAGS.browser
        for argument in (*QUIET, f"--window-size={width},{height}", f"--user-data-dir={profile}"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options, webdriver.ChromeService(FLAGS.driver))
        try:
            yield driver
        finally:
            driver.quit()


def take(driver, address, page, script, path, first=None):
    """Opens a page, waits until the script returns a rectangle, and takes what is in it."""

    def until(code):
        return WebDriverWait(driver, SECONDS, 0.5).until(
            lambda _: driver.execute_script(ELEMENTS + code), f"{page}: not to be seen"
        )

    driver.get("about:blank")  # else a change of what follows # would not load anything
    driver.get(address + page)
    if first:
        until(first)
    clip = {**until(script), "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))
    print(path)


def main(argv):
    if len(argv) != 3 or not all(list(pathlib.Path(run).glob("events.*")) for run in argv[1:]):
        sys.exit("screenshots.py: say two folders of runs: without units, with units")
    if not (FLAGS.browser and FLAGS.driver):
        sys.exit("screenshots.py: install Chromium and its driver, or name --browser and --driver")
    out = pathlib.Path(FLAGS.out)
    try:
        for name, run in zip(("without", "with"), argv[1:]):
            with served(run=run) as address, browsing(1900, 1900) as driver:
                take(driver, address, "#graphs", OPENED, out / f"network_{name}.png", OPEN)
        with served(**dict(zip(RUNS, argv[1:]))) as address:
            tags = urllib.parse.quote("accuracy_test$|loss_total")
            page = f"#scalars&tagFilter={tags}&_smoothingWeight=0.6"
            with browsing(1100, 800) as driver:
                take(driver, address, page, CHARTS, out / "scalars.png")
            with browsing(1560, 900) as driver:
                take(driver, address, "#images", IMAGES, out / "heat_maps.png")
    except exceptions.WebDriverException as error:
        sys.exit(f"screenshots.py: {error.msg}")


if __name__ == "__main__":
    app.run(main)
