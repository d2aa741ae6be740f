"""A record belongs to a program and to a network: no table mixes two of either."""

import dataclasses
import json
import shutil

import pytest
from conftest import ROOT, run_script

import model
from harness.errors import Failed
from harness.names import NUMERICS, numerics_of
from study import numerics, records, runs

RECORDS = ROOT / "study" / "records"
TASKS = [("article", 10), ("group", 3)]


def config_of_flags(flags):
    """The network that train.py builds with these flags."""
    fields = {field.name for field in dataclasses.fields(model.Config)}
    config = model.Config(**{n: value for n, value in flags.items() if n in fields and value})
    if flags["hard_sharing"]:
        return dataclasses.replace(config, share_until=model.PLACES[-1], cross_stitch=False)
    return dataclasses.replace(config, cross_stitch=flags["cross_stitch"])


def test_all_records_are_of_the_network_that_model_py_builds():
    """A change of the network needs new records: without this test, the old ones would count."""
    networks = {}  # what they share -> a record's flags, and the networks of all such records
    for study in runs.STUDIES:
        for record in records.records_in(study, RECORDS).values():
            words = numerics.sharing_in_words(record["flags"])
            networks.setdefault(words, (record["flags"], set()))[1].add(numerics.network_of(record))
    assert {"none", "channel", "layer at fc_3", "none until pool_2"} < networks.keys()
    for words, (flags, found) in networks.items():
        net = model.build(TASKS, config_of_flags(flags), fast=False)
        assert found == {net.checksum()}, words


def test_the_checksum_of_a_network_follows_its_variables_and_nothing_else():
    def checksum(**options):
        return model.build(TASKS, model.Config(**options), fast=False).checksum()

    channel = checksum()
    assert checksum(seed=1, learning_rate=0.1, cross_stitch_own_only=True) == channel
    others = {channel, checksum(cross_stitch=False), checksum(cross_stitch_unit="layer")}
    others |= {checksum(cross_stitch_at="fc_3"), checksum(cross_stitch=False, share_until="pool_1")}
    assert len(others) == 5


@pytest.fixture
def fast_units(tmp_path):
    """A copy of a study's records. Returns: the folder, the path of one of them, its content."""
    folder = tmp_path / "fast_units"
    shutil.copytree(RECORDS / "fast_units", folder)
    path = sorted(folder.glob("*.json"))[0]
    return folder, path, json.loads(path.read_text())


@pytest.mark.parametrize("change, words", [
    (lambda record: record | {"numerics": 1000}, " and 1000 do not go into one table"),
    (lambda record: record | {"network": "of four layers"}, "with two networks"),
])  # fmt: skip
def test_records_of_two_kinds_make_no_table(change, words, fast_units):
    folder, path, record = fast_units
    assert records.read("fast_units", folder.parent)
    path.write_text(json.dumps(change(record)))
    with pytest.raises(Failed, match=words):
        records.read("fast_units", folder.parent)


@pytest.fixture
def where(tmp_path):
    """Copies of a study's records and of those that its table borrows. Returns: their folder."""
    for study in ("full", "where"):
        shutil.copytree(RECORDS / study, tmp_path / study)
    return tmp_path


def test_a_table_borrows_no_records_of_other_numerics(where):
    assert records.read_all(where)
    for path in (where / "where").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"numerics": 1000}))
    with pytest.raises(Failed, match="where and full: records of numerics 1 and 1000"):
        records.read_all(where)


def test_no_run_is_added_beside_borrowed_records_of_other_numerics(where):
    shutil.rmtree(where / "where")
    with pytest.raises(Failed, match=f"numerics {NUMERICS}, and adds no run .* full"):
        records.check_numerics(runs.runs_of("where")[:1], where)


def test_no_run_is_added_to_what_a_table_of_other_numerics_borrows(where):
    shutil.rmtree(where / "full")
    with pytest.raises(Failed, match=f"numerics {NUMERICS}, and adds no run .* where"):
        records.check_numerics(runs.runs_of("full")[:1], where)


def test_a_record_of_a_network_that_is_no_more_is_refused_by_its_setting(fast_units):
    folder, path, record = fast_units
    flags = record["flags"] | {"cross_stitch": True, "cross_stitch_unit": "dense"}
    dense = {n: v for n, v in record.items() if n != "network"} | {"setting": "1000 dense"}
    path.write_text(json.dumps(dense | {"flags": flags}))
    with pytest.raises(Failed, match="runs.py has no setting '1000 dense'"):
        records.read("fast_units", folder.parent)


def test_a_record_without_numerics_is_of_the_first_ones():
    assert numerics_of({}) == 1 and numerics_of({"numerics": 7}) == 7


def test_no_run_is_added_to_records_of_other_numerics(fast_units, tmp_path):
    folder, path, record = fast_units
    for other in folder.glob("*.json"):
        content = json.loads(other.read_text())
        other.write_text(json.dumps(content | {"numerics": NUMERICS + 1}))
    path.unlink()
    given = ("--only=fast_units", f"--records={tmp_path}", f"--logdir={tmp_path / 'logs'}")
    refused = run_script("study.reproduce", *given)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"fast_units (numerics {NUMERICS + 1})" in refused.stderr
    assert not list((tmp_path / "logs").glob("*/*")) and not path.exists()


def test_old_records_lack_what_the_page_says():
    found = [r for study in runs.STUDIES for r in records.records_in(study, RECORDS).values()]
    assert 2 * sum("network" not in record for record in found) > len(found)  # most
    for record in found:
        assert ("numerics" in record) == ("recall" in record) == ("confusion" in record)
