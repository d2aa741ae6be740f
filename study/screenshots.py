"""Takes the README's pictures of TensorBoard in a headless browser.

    pip install -r study/requirements.txt   # install Chromium and its driver from your system
    python -m study.screenshots WITHOUT WITH MATRICES

These are the folders of three runs of train.py: without units, with units, and the one
whose matrices are shown; study/MAKING.md names the runs of the pictures here. Writes
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
import urllib.parse

from absl import flags

try:
    from selenium import webdriver
    from selenium.common import exceptions
    from selenium.webdriver.support.wait import WebDriverWait
except ModuleNotFoundError:
    sys.exit("screenshots.py: Selenium is not installed: pip install -r study/requirements.txt")

from harness import files, process
from harness.errors import Failed

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")  # or None
TIMEOUT = 240  # seconds to wait for a page: on a loaded machine, it may take minutes
RUN_NAMES = ("cross_stitch=False", "cross_stitch=True")
BROWSER_ARGUMENTS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
    --disable-background-networking --disable-component-update --disable-sync
    --disable-dev-shm-usage
""".split()

# These functions precede each script below. A script runs in the page, and is repeated until it
# returns something. TensorBoard's elements are in shadow trees, which selectors do not reach.
FUNCTIONS = """
function elements(root = document) {
  return [...root.querySelectorAll('*')].flatMap(
      (e) => e.shadowRoot ? [e, ...elements(e.shadowRoot)] : [e]);
}
function named(name) {
  return elements().filter((e) => e.localName == name);
}
function nodes() {
  return elements().filter((e) => e.matches('g.node') && e.getClientRects().length);
}
function node(name) {
  return nodes().find((e) => e.getAttribute('data-name') == name);
}
function click(element) {
  element.dispatchEvent(new MouseEvent('click', {bubbles: true, composed: true}));
}
const place = (e) => e.getBoundingClientRect();
function atRest(seen) {  // whether a script saw the same each of the last times
  const now = JSON.stringify(seen);
  window.unchanged = window.last == now ? window.unchanged + 1 : 0;
  window.last = now;
  return window.unchanged >= 4;
}
function box(found, margin) {
  const boxes = found.map(place);
  const left = Math.min(...boxes.map((b) => b.left)) - margin;
  const top = Math.min(...boxes.map((b) => b.top)) - margin;
  return {x: left, y: top,
          width: Math.max(...boxes.map((b) => b.right)) + margin - left,
          height: Math.max(...boxes.map((b) => b.bottom)) + margin - top};
}
"""
# The graph of the run that is the argument, with `network` opened.
NETWORK = """
const [run] = arguments;
const [loader] = named('tf-graph-dashboard-loader');
if (!loader || !loader.progress || loader.progress.value < 100) return null;
if (loader.selection.run != run) {  // TensorBoard ignores the run in the address
  named('paper-item').find((e) => e.textContent.trim() == run)?.click();
  return null;
}
const network = node('network');
if (!network) return null;
if (!node('network/conv1_1') || !node('network/output_2')) {
  const plus = network.querySelector('.buttoncontainer > *');
  if (plus && !network.matches('.expanded')) click(plus);
  return null;
}
// Opening a node also selects it, which draws a red frame and a table over it.
if (nodes().some((e) => e.matches('.selected'))) {
  click(named('svg').find((e) => e.contains(network)));
  return null;
}
if (!atRest(nodes().map(place))) return null;
// TensorBoard may fit what it has not laid out yet: again, until that changes nothing.
const size = Math.round(place(network).width);
if (window.fitted != size) {
  window.fitted = size;
  window.unchanged = 0;
  elements().find((e) => e.textContent.trim() == 'Fit to screen').click();
  return null;
}
return box([network], 8);
"""
CHARTS = """
const cards = named('tf-scalar-card').slice(0, 2);
const lines = cards.map(
    (card) => elements(card.shadowRoot).filter((e) => e.matches('path.line[d]')));
if (lines.length < 2 || lines.some((of_card) => !of_card.length)) return null;
const found = [...cards, ...named('app-header'), ...named('tf-runs-selector')];
return atRest([...found, ...lines.flat()].map(place)) && box(found, 0);
"""
IMAGES = """
const cards = named('tf-image-loader');
const images = named('img').filter((e) => e.closest('#main-image-container'));
if (!images.length || images.length < cards.length) return null;
if (images.some((e) => !e.complete || !e.naturalWidth)) return null;
return atRest(images.map(place)) && box(cards, 8);
"""


@contextlib.contextmanager
def served(**runs):
    """Serves runs with TensorBoard.

    Args:
      runs: name in TensorBoard -> the run's folder.

    Yields:
      TensorBoard's address. It has read the runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, run in runs.items():
            (pathlib.Path(folder) / "logs" / name).mkdir(parents=True)
            for path in pathlib.Path(run).glob("events.out.tfevents*"):
                shutil.copy(path, pathlib.Path(folder) / "logs" / name)
        command = [sys.executable, "-m", "tensorboard.main", "--logdir=logs", "--port=0"]
        # Without these, it serves its pages before it has read the runs.
        command += ["--load_fast=false", "--reload_task=blocking", "--reload_interval=0"]
        as_text = {"encoding": "utf-8", "errors": "replace"}
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, **as_text) as server:
            try:
                address = next((line for line in server.stderr if "http://" in line), None)
                if not address:
                    raise Failed("TensorBoard does not start. Start it by hand to see why.")
                yield "http:" + address.partition("http:")[2].split()[0]
            finally:
                server.terminate()


@contextlib.contextmanager
def browser(chromium, chromedriver):
    """Opens a browser. Args: the paths of its program and of its driver's. Yields: its driver."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (*BROWSER_ARGUMENTS, f"--user-data-dir={profile}"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
        try:
            yield driver
        finally:
            driver.quit()


def look(driver, page, size, script, *arguments):
    """Opens a page and runs a script in it until it returns something.

    Args:
      driver: the browser's driver.
      page: the page's address.
      size: width and height of the browser's window in pixels.
      script: JavaScript that may use `FUNCTIONS`.
      arguments: the script's.

    Returns:
      What the script returns.
    """
    driver.set_window_size(*size)
    driver.get("about:blank")  # without it, a change after the # would load nothing
    driver.get(page)
    # A script also times out while the page computes.
    wait = WebDriverWait(driver, TIMEOUT, 0.3, [exceptions.TimeoutException])
    return wait.until(
        lambda _: driver.execute_script(FUNCTIONS + script, *arguments), f"{page}: did not appear"
    )


def take(path, driver, *looked_for):
    """Takes a picture. Args: the file to write; those of `look`, whose script returns a rectangle."""
    clip = {**look(driver, *looked_for), "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
    files.write(path, base64.b64decode(shot["data"]))
    print(path)


def main(argv):
    if len(argv) != 4 or not all(list(pathlib.Path(run).glob("events.*")) for run in argv[1:]):
        raise Failed(
            "name three folders of runs: without units, with units, and the one whose matrices are"
            " shown"
        )
    given = flags.FLAGS
    if not (given.browser and given.driver):
        raise Failed("install Chromium and its driver, or pass --browser and --driver")
    *runs, matrices = argv[1:]
    out = pathlib.Path(given.out)
    tags = urllib.parse.quote("accuracy_test$|loss_total")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with browser(given.browser, given.driver) as driver:
            with served(**dict(zip(RUN_NAMES, runs))) as address:
                for run, file in zip(RUN_NAMES, ("network_without.png", "network_with.png")):
                    take(out / file, driver, f"{address}#graphs", (1900, 1900), NETWORK, run)
                page = f"{address}#scalars&tagFilter={tags}&_smoothingWeight=0.6"
                take(out / "scalars.png", driver, page, (1100, 800), CHARTS)
            with served(run=matrices) as address:
                take(out / "matrices.png", driver, f"{address}#images", (1600, 1200), IMAGES)
    except exceptions.WebDriverException as error:
        raise Failed(error.msg) from None


if __name__ == "__main__":  # a test imports this file, and has no use for its flags
    flags.DEFINE_string("out", str(files.ROOT / "img"), "Folder for the pictures.")
    flags.DEFINE_string("browser", CHROMIUM, "Path of Chromium.")
    flags.DEFINE_string("driver", CHROMEDRIVER, "Path of its driver.")
    process.run(main)
