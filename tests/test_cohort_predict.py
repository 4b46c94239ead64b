"""Many sections at once: each by itself, once, whatever happens to the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calls import TINY_SETTINGS, call
from deepspace.core.errors import InputError
from deepspace.core.rows import RowStore
from deepspace.models.allocator import _glibc
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows import cohort_predict, pointwise
from deepspace.workflows.cohort_predict import CohortOptions, predict_cohort, predict_one, shard_of
from deepspace.workflows.executors import Executor, run_all
from deepspace.workflows.predict import PredictOptions

ALL = PredictOptions(all_genes=True)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=1, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="module")
def model(block: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.toml").write_text(TINY_SETTINGS)
    options = ["--genes", "expressed:10", "--config", folder / "tiny.toml", "--quiet"]
    assert call("train", block, "--out", folder / "m", *options)[0] == 0
    return folder / "m"


@pytest.fixture
def sheet(block: Path, tmp_path: Path) -> Path:
    """Six sections, which are three slides twice; the fourth has no image."""
    table = pd.read_csv(block, dtype=str)
    for name in ("image", "counts", "spots", "spaceranger", "h5ad", "clusters"):
        if name in table:
            table[name] = [
                str((block.parent / v).resolve()) if isinstance(v, str) else v for v in table[name]
            ]
    other = table.assign(section="T" + table["section"].str[1:], patient="other")
    rows = pd.concat([table, other], ignore_index=True)
    rows.loc[3, "spaceranger"] = str(tmp_path / "nothing")
    rows.loc[3, "clusters"] = None
    path = tmp_path / "cohort.csv"
    rows.to_csv(path, index=False)
    return path


@given(st.lists(st.integers(), max_size=30, unique=True), st.integers(1, 9))
def test_shards_are_all_of_it_once(names: list[int], number: int) -> None:
    parts = [shard_of(list(map(str, names)), f"{k}/{number}") for k in range(1, number + 1)]
    assert sorted(n for part in parts for n in part) == sorted(map(str, names))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2"])
def test_wrong_shards_are_refused(shard: str) -> None:
    with pytest.raises(InputError, match="give i/n"):
        shard_of(["a"], shard)


def test_one_failure_stops_nobody(
    model: Path, sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, text, _ = call("predict", model, sheet, "--out", out, "--all-genes", capsys=capsys)
    assert code == 4
    assert text.startswith("5 succeeded, 1 failed, 0 skipped")
    report = json.loads((out / "run-report.json").read_text())
    table = pd.read_csv(out / "run-report.csv")
    assert list(table["section"]) == [row["section"] for row in report["sections"]]
    (failed,) = [row for row in report["sections"] if row["status"] == "failed"]
    assert "nothing" in failed["reason"]
    assert failed["reason"] in text
    name = failed["section"]
    assert "nothing" in (out / "logs" / f"{name}-spots.log").read_text()
    assert len(list(out.glob("*-spots.h5ad"))) == 5
    assert "predicting" in (out / "logs" / "S1-spots.log").read_text()


def test_what_is_done_is_skipped_and_what_changed_is_told(
    model: Path, sheet: Path, tmp_path: Path
) -> None:
    out, some = tmp_path / "out", CohortOptions(sections=("S1", "S2"))
    predict_cohort(model, sheet, out, cohort=some, options=ALL)
    before = (out / "S1-spots.h5ad").stat().st_mtime_ns
    again = predict_cohort(model, sheet, out, cohort=some, options=ALL)
    assert again["skipped"] == 2
    other = PredictOptions(all_genes=True, image_only=True)
    changed = predict_cohort(model, sheet, out, cohort=some, options=other)
    assert changed["failed"] == 2
    assert "other options; add --overwrite" in changed["sections"][0]["reason"]
    assert (out / "S1-spots.h5ad").stat().st_mtime_ns == before
    anew = predict_cohort(model, sheet, out, cohort=some, options=other, overwrite=True)
    assert anew["succeeded"] == 2
    assert (out / "S1-spots.h5ad").stat().st_mtime_ns > before


def test_killed_after_the_last_write_it_goes_on(model: Path, sheet: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "out", CohortOptions(sections=("S2",))
    predict_cohort(model, sheet, out, cohort=one, options=ALL)
    whole = (out / "S2-spots.h5ad").read_bytes()
    marker = out / "S2-spots.h5ad.done.json"
    begun = json.loads(marker.read_text())["request"]
    marker.unlink()
    (out / "logs" / "S2-spots.h5ad.begun.json").write_text(json.dumps({"request": begun}))
    assert predict_cohort(model, sheet, out, cohort=one, options=ALL)["succeeded"] == 1
    assert (out / "S2-spots.h5ad").read_bytes() == whole
    marker.unlink()  # then it could be the user's own
    for taken in ("S2-spots.h5ad", "S2-spots-maps.png"):
        (out / taken).write_text("mine")
        for _ in range(2):  # the refused run must not make it its own
            refused = predict_cohort(model, sheet, out, cohort=one, options=ALL)
            assert "already exists" in refused["sections"][0]["reason"]
        assert (out / taken).read_text() == "mine"
        (out / "S2-spots.h5ad").unlink(missing_ok=True)
    assert not list(out.glob("*.done.json"))


def test_an_unfinished_run_of_another_request_is_kept(
    model: Path, sheet: Path, tmp_path: Path
) -> None:
    """However often the second request is repeated, as a scheduler does."""
    out, one = tmp_path / "out", CohortOptions(sections=("S2",))
    predict_cohort(model, sheet, out, cohort=one, options=ALL)
    (out / "S2-spots.h5ad").unlink()
    (out / "S2-spots.h5ad.done.json").unlink()
    (out / "S2-spots-maps.png").unlink()
    left = out / ".S2-spots.h5ad-partial"
    left.mkdir()
    (left / "run.json").write_text("{}")
    for _ in range(2):
        refused = predict_cohort(model, sheet, out, cohort=one, options=ALL)
        assert "an unfinished run of other" in refused["sections"][0]["reason"]
    assert left.exists()


def test_a_second_format_does_not_undo_the_first(model: Path, sheet: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "out", CohortOptions(sections=("S2",))
    predict_cohort(model, sheet, out, cohort=one, options=ALL)
    other = replace(one, format="zarr")
    for _ in range(2):
        refused = predict_cohort(model, sheet, out, cohort=other, options=ALL)
        assert "maps.png: already exists" in refused["sections"][0]["reason"]
    assert predict_cohort(model, sheet, out, cohort=one, options=ALL)["skipped"] == 1


def test_a_damaged_model_is_told_before_anything_is_written(
    model: Path, sheet: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "broken")
    (tmp_path / "broken" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        predict_cohort(tmp_path / "broken", sheet, tmp_path / "out", options=ALL)
    assert not (tmp_path / "out").exists()


def test_another_patient_or_mpp_is_another_request(
    model: Path, sheet: Path, tmp_path: Path
) -> None:
    out, one = tmp_path / "out", CohortOptions(sections=("S2",))
    predict_cohort(model, sheet, out, cohort=one, options=ALL)
    table = pd.read_csv(sheet, dtype=str)
    table.loc[table["section"] == "S2", "z_um"] = "77"
    table.to_csv(sheet, index=False)
    changed = predict_cohort(model, sheet, out, cohort=one, options=ALL)
    assert "other section; add --overwrite" in changed["sections"][0]["reason"]


def test_the_report_is_there_while_sections_are_still_to_do(
    model: Path, sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(task: cohort_predict.Task) -> cohort_predict.Outcome:
        if task.section == "S2":
            raise KeyboardInterrupt
        return cohort_predict.Outcome(task.section, "succeeded")

    monkeypatch.setattr(cohort_predict, "predict_one", stops)
    with pytest.raises(KeyboardInterrupt):
        predict_cohort(model, sheet, tmp_path / "out", options=ALL)
    report = json.loads((tmp_path / "out" / "run-report.json").read_text())
    assert [row["section"] for row in report["sections"]] == ["S1"]


def test_a_shard_that_comes_while_another_makes_the_folder_is_let_in(
    model: Path, sheet: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "logs").mkdir(parents=True)
    (out / ".cohort-x1.json").touch()
    assert predict_cohort(model, sheet, out, cohort=CohortOptions(shard="7/7"))["failed"] == 0


def test_shards_share_a_folder(model: Path, sheet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for shard in ("1/3", "2/3", "3/3"):
        predict_cohort(model, sheet, out, cohort=CohortOptions(shard=shard), options=ALL)
        assert (out / f"run-report-{shard.replace('/', 'of')}.json").exists()
    assert len(list(out.glob("*.h5ad"))) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--section", "X9"], "no section 'X9'"),
        (["--shard", "5/4"], "give i/n"),
        (["--executor", "cloud"], "take local or dask"),
        (["--workers", "2"], "belongs to --executor dask"),
        (["--format", "csv"], "take h5ad or zarr"),
        (["--at", "nowhere"], "nowhere"),
        (["--executor", "dask", "--workers", "0"], "from 1"),
        (["--executor", "dask", "--workers", "2", "--address", "tcp://h:1"], "leave one out"),
    ],
)
def test_a_wrong_request_is_refused_as_a_whole(
    model: Path,
    sheet: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    code, _, error = call("predict", model, sheet, "--out", out, *options, capsys=capsys)
    assert code == 2
    assert message in error
    assert not out.exists()


def test_a_folder_of_the_users_is_not_written_into(
    model: Path, sheet: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="did not write, such as thesis"):
        predict_cohort(model, sheet, tmp_path / "mine")


def test_one_file_takes_no_options_of_many(
    model: Path, sheet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--section", "S1", "--shard", "1/2", "--out", tmp_path / "a.h5ad"]
    code, _, error = call("predict", model, sheet, *arguments, capsys=capsys)
    assert code == 2
    assert "give a folder for --shard" in error


def keeps_memory(_: int) -> bool:
    """Whether the allocator is set while features are computed; it is asked once a process."""
    return _glibc() is not None


@pytest.mark.slow
@pytest.mark.parametrize("own", [None, "1000000"])
def test_workers_keep_freed_memory_unless_the_user_says_otherwise(
    own: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    able = keeps_memory(0)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if own is not None:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", own)
    one = Executor("dask", workers=1)
    assert list(run_all(keeps_memory, [0], one)) == [(0, able and own is None)]


def dies_once(task: cohort_predict.Task) -> cohort_predict.Outcome:
    """Predict a section; of the first try of S2 the process is killed after two groups."""
    pointwise.GROUP = 10
    flag, put, done = task.out.parent / "died", RowStore.put, []

    def kills(store: RowStore, group: int, values: dict[str, np.ndarray]) -> None:
        if len(done) == 2 and task.section == "S2" and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        put(store, group, values)
        done.append(group)

    RowStore.put = kills
    try:
        return predict_one(task)
    finally:
        RowStore.put = put


@pytest.mark.slow
def test_a_killed_dask_worker_costs_its_section_only(
    model: Path, sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(pointwise, "GROUP", 10)
    local = predict_cohort(model, sheet, tmp_path / "local", options=ALL)
    monkeypatch.setattr(cohort_predict, "predict_one", dies_once)
    two = CohortOptions(executor=Executor("dask", workers=2))
    found = predict_cohort(model, sheet, tmp_path / "dask", cohort=two, options=ALL)
    assert (tmp_path / "dask" / "died").exists()
    status = [(row["section"], row["status"]) for row in found["sections"]]
    assert status == [(row["section"], row["status"]) for row in local["sections"]]
    assert found["succeeded"] == 5
    for path in sorted((tmp_path / "local").glob("*.h5ad")):
        assert path.read_bytes() == (tmp_path / "dask" / path.name).read_bytes(), path.name
