"""TensorBoard's pages, as a user sees them in a browser."""

import itertools
import os

import PIL.Image
import pytest
from conftest import CHANNEL, NONE, run_script

pytest.importorskip("selenium", reason="selenium is not installed: tests/requirements.txt")
from study import screenshots  # noqa: E402 (it imports selenium)

pytestmark = pytest.mark.slow

# Pairs of scripts that use `screenshots.FUNCTIONS`: the first waits for what the second returns.
CARDS = "[...document.querySelectorAll('metrics-card-groups card-view .tag')]"
TIME_SERIES = (
    f"return {CARDS}.length && atRest({CARDS}.map(place));",
    f"""return {{
        groups: [...document.querySelectorAll('metrics-card-groups .group-title')]
            .map((e) => e.textContent.trim()),
        cards: {CARDS}.map((e) => e.textContent.trim()),
    }};""",
)
NETWORK = (
    screenshots.NETWORK,
    """return elements().filter((e) => e.matches('g.edge') && e.getClientRects().length)
        .map((e) => e.getAttribute('data-edge'));""",
)
ROWS = """
const [grid] = named('vaadin-grid');
const rows = [...(grid ? grid.shadowRoot.querySelectorAll('tr') : [])]
    .filter((row) => row.getClientRects().length)
    .map((row) => [...row.querySelectorAll('slot')].map(
        (slot) => slot.assignedElements().map((e) => e.innerText.trim()).join()));
"""
HPARAMS = (f"{ROWS} return rows.length > 1 && atRest(rows);", f"{ROWS} return rows;")
IMAGES = (
    screenshots.IMAGES,
    """return named('tf-image-loader').map((card) => {
      const image = elements(card.shadowRoot).find((e) => e.localName == 'img');
      const {naturalWidth: width, naturalHeight: height} = image;
      const context = new OffscreenCanvas(width, height).getContext('2d');
      context.drawImage(image, 0, 0);
      const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
      return {run: card.run, tag: card.tag, height, colours: new Set(pixels).size};
    });""",
)


@pytest.fixture(scope="session")
def programs():
    """The paths of Chromium and of its driver."""
    found = screenshots.CHROMIUM, screenshots.CHROMEDRIVER
    if not all(found):
        message = "Chromium or chromedriver is missing: install them from your system"
        # A green CI that never saw the pages would say nothing.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return found


@pytest.fixture(scope="module")
def see(programs, runs):
    """TensorBoard with both runs, in a browser: see(page, scripts, *arguments of the first)."""
    folders = {path.name: path for path in runs[0].iterdir()}
    with screenshots.browser(*programs) as driver, screenshots.served(**folders) as address:

        def look(page, scripts, *arguments):
            ready, what = scripts
            screenshots.look(driver, f"{address}#{page}", (1600, 1200), ready, *arguments)
            return driver.execute_script(screenshots.FUNCTIONS + what)

        yield look


def test_the_first_card_is_the_mean_accuracy(see):
    """TensorBoard sorts groups by name. Those of single classes once came first."""
    shown = see("timeseries", TIME_SERIES)
    assert shown["cards"][0] == "summary/accuracy_test"
    assert shown["groups"] == ["summary", "tasks"]


TOWER = ("conv1", "pool_1", "conv2", "pool_2", "flatten", "fc_3", "dropout", "output")
UNITS = {"pool_1": "cross_stitch_1", "pool_2": "cross_stitch_2", "fc_3": "cross_stitch_3"}


@pytest.mark.parametrize("run, units", [(CHANNEL, UNITS), (NONE, {})], ids=["channel", "none"])
def test_the_graph_shows_two_towers_and_the_units_between_them(run, units, see):
    expected = set()
    for task in (1, 2):
        path = []
        for layer in TOWER:
            path += [f"{layer}_{task}", *([units[layer]] if layer in units else [])]
        expected |= {f"network/{a}--network/{b}" for a, b in itertools.pairwise(path)}
    shown = {edge for edge in see("graphs", NETWORK, run) if edge.count("network/") == 2}
    assert shown == expected


def test_the_hparams_table_compares_both_runs_by_sharing_and_accuracy(see):
    (_, _, *columns), *rows = see("hparams", HPARAMS)
    # What people compare comes first.
    assert set(columns[:4]) == {"sharing", "cross_stitch_init", "seed", "num_epochs"}
    assert {"accuracy_test", "accuracy_test_article", "accuracy_test_group"} <= set(columns)
    shown = {run: dict(zip(columns, cells)) for run, _, *cells in rows}
    assert {run: cells["sharing"] for run, cells in shown.items()} == {
        CHANNEL: "channel",
        NONE: "none",
    }
    for cells in shown.values():
        assert 0 < float(cells["accuracy_test"]) <= 1


def test_the_pictures_of_weights_and_confusion_are_there_and_not_empty(see):
    shown = see("images", IMAGES)
    confusion = [f"summary/confusion_{task}" for task in ("article", "group")]
    mistakes = [f"summary/mistakes_{task}" for task in ("article", "group")]
    assert sorted((image["run"], image["tag"]) for image in shown) == [
        *((CHANNEL, tag) for tag in (*confusion, "summary/mean_weights", *mistakes)),
        *((NONE, tag) for tag in (*confusion, *mistakes)),
    ]
    for image in shown:
        assert image["height"] > 150 and image["colours"] > 20, image


def test_the_studys_screenshots_show_the_pages(programs, runs, tmp_path):
    without, with_units = runs[0] / NONE, runs[0] / CHANNEL
    finished = run_script("study.screenshots", without, with_units, with_units, f"--out={tmp_path}")
    assert finished.returncode == 0, finished.stderr
    names = ["matrices.png", "network_with.png", "network_without.png", "scalars.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        picture = PIL.Image.open(tmp_path / name).convert("RGB")
        width, height = picture.size
        assert 800 < width < 1900 and 300 < height < 1900, name
        colours = picture.getcolors(width * height)
        assert len(colours) > 100 and max(colours)[0] < 0.95 * width * height, name
