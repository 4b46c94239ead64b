"""Clusters as a target: where labels come from, how they are carried, decoded and scored."""

from __future__ import annotations

import gzip
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, recall_score

from deepspace.core.classification import class_scores, label_order, recall_matrix
from deepspace.core.config import TargetConfig
from deepspace.core.errors import InputError
from deepspace.data.clusters import ClusterTarget, Given, prepare_clusters
from deepspace.data.splits import Fold
from deepspace.data.targets import TARGETS, Target, fit_target
from deepspace.io.clusters import add_cluster_table
from deepspace.io.parts import Parts
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.models.base import Prediction, learnable
from deepspace.workflows.cluster_scoring import (
    POOLED,
    cluster_table,
    empty_clusters,
    fill_clusters,
    recall_table,
)
from make_sections import lattice, make_section

GIVEN = TargetConfig(kind="clusters", clusters="given")
KMEANS = TargetConfig(kind="clusters", clusters="kmeans", n_clusters=3, genes="expressed:30")


def with_labels(section: Section, labels: list[str | None], *, of_run: str = "") -> Section:
    """The section with these labels; `of_run` names the clustering of a Space Ranger run."""
    counts = section.require_counts().copy()
    counts.obs["cluster"] = pd.Categorical(labels)
    sources = {"clusters": Path(of_run)} if of_run else {}
    return replace(section, counts=counts, sources=sources, clusters_of_run=bool(of_run))


@pytest.fixture
def planted(tmp_path: Path) -> list[Section]:
    """Three groups of spots in three sections of different depth; obs['truth'] says which."""
    rng = np.random.default_rng(0)
    rates = rng.uniform(1, 8, (3, 30))
    made = []
    for depth, name in ((1.0, "A"), (3.0, "B"), (2.0, "C")):
        truth = rng.permutation(np.repeat([0, 1, 2], [30, 20, 14]))
        section = make_section(tmp_path, name, rng.poisson(depth * rates[truth]), lattice(8))
        section.require_counts().obs["truth"] = truth
        made.append(section)
    return made


def truth_of(section: Section) -> np.ndarray:
    return section.require_counts().obs["truth"].to_numpy()


@given(st.lists(st.integers(0, 500)))
def test_numbers_sort_as_numbers(numbers: list[int]) -> None:
    assert label_order(map(str, numbers)) == [str(n) for n in sorted(set(numbers))]


@given(
    st.integers(2, 6).flatmap(
        lambda k: st.lists(
            st.lists(st.floats(-2, 3), min_size=k, max_size=k), min_size=1, max_size=8
        )
    )
)
def test_decoded_values_are_probabilities(rows: list[list[float]]) -> None:
    values = np.array(rows)
    target = ClusterTarget(tuple("abcdef"[: values.shape[1]]), Given(), "given")
    p = target.decode(values)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_allclose(target.decode(p), p)
    positive = (values > 0).sum(axis=1) > 0
    assert (p[positive].argmax(axis=1) == values[positive].argmax(axis=1)).all()


def test_given_labels_become_indicators(planted: list[Section]) -> None:
    """Unlabelled spots and those of a cluster that is too small to learn are rows of zeros."""
    labels: list[str | None] = ["10"] * 30 + ["9"] * 28 + ["2"] * 4 + [None] * 2
    target = fit_target([with_labels(planted[0], labels)], GIVEN)
    assert target.names == ("9", "10")
    rows = target.encode(with_labels(planted[0], labels).require_counts())
    assert rows.sum(axis=0).tolist() == [28, 30]
    assert rows[-6:].sum() == 0
    assert rows[:30, 1].all()
    counts = with_labels(planted[0], labels).require_counts()
    assert target.labelled(counts).tolist() == [True] * 58 + [False] * 6
    assert not target.encode(planted[1].require_counts()).any()  # no labels came with it


def test_one_cluster_is_nothing_to_learn(planted: list[Section]) -> None:
    with pytest.raises(InputError, match=r"1 cluster.*two are needed"):
        fit_target([with_labels(planted[0], ["a"] * 64)], GIVEN)


def test_labels_of_separate_runs_are_refused(
    planted: list[Section], caplog: pytest.LogCaptureFixture
) -> None:
    own = [with_labels(s, ["1", "2"] * 32, of_run=s.section) for s in planted]
    with pytest.raises(InputError, match=r"separate Space Ranger runs.*column clusters.*kmeans"):
        prepare_clusters(own, GIVEN)
    with caplog.at_level(logging.INFO, logger="deepspace"):
        _, config = prepare_clusters(own, TargetConfig(kind="clusters"))
    assert config.clusters == "kmeans"
    assert "separate Space Ranger runs" in caplog.text
    # one of them alone, or all from one aggregated run, can be compared
    assert prepare_clusters(own[:1], GIVEN)[1].clusters == "given"
    aggregated = [with_labels(s, ["1", "2"] * 32, of_run="aggr") for s in planted]
    assert prepare_clusters(aggregated, TargetConfig(kind="clusters"))[1].clusters == "given"
    # labels of one run beside labels from elsewhere are no better
    with pytest.raises(InputError, match="separate"):
        prepare_clusters([own[0], with_labels(planted[1], ["1", "2"] * 32)], GIVEN)


def test_sections_without_labels(planted: list[Section]) -> None:
    some = [with_labels(planted[0], ["a", "b"] * 32), planted[1]]
    assert prepare_clusters(some, TargetConfig(kind="clusters"))[1].clusters == "kmeans"
    kept, config = prepare_clusters(some, GIVEN)
    assert [s.section for s in kept] == ["A"]
    assert config.clusters == "given"
    with pytest.raises(InputError, match="fewer than 10 spots have labels in A, B, C"):
        prepare_clusters(planted, GIVEN)


def test_a_learnt_label_stays_however_a_section_is_cut(planted: list[Section]) -> None:
    target = fit_target(planted[:2], KMEANS)
    section = planted[0]
    truth = section.require_counts().obs["truth"].to_numpy()
    part = truth == 2  # of one group alone: centred on itself it looks like all three
    whole = target.encode(section.require_counts())
    assert (target.encode(section.subset(part).require_counts()) != whole[part]).any()
    (settled, *_), goal = learnable(planted[:2], target)
    assert (goal.encode(settled.require_counts()) == whole).all()
    assert (goal.encode(settled.subset(part).require_counts()) == whole[part]).all()
    assert goal.names == target.names


def test_kmeans_finds_planted_groups_and_carries_them(planted: list[Section]) -> None:
    target = fit_target(planted[:2], KMEANS)
    assert target.names == ("1", "2", "3")
    for section in planted:  # the third was never seen, at another depth
        found = target.encode(section.require_counts()).argmax(axis=1)
        assert adjusted_rand_score(truth_of(section), found) > 0.95
    sizes = target.encode(planted[2].require_counts()).sum(axis=0)
    assert (np.diff(sizes) < 0).all()  # cluster 1 is the largest


def test_training_labels_do_not_depend_on_other_counts(planted: list[Section]) -> None:
    """Reference spots keep the label that the clustering gave them."""
    target = fit_target(planted[:2], KMEANS)
    assert isinstance(target, ClusterTarget)
    stacked = np.concatenate([target.labels(s.require_counts()) for s in planted[:2]])
    np.testing.assert_array_equal(stacked, target.labeller.labels)  # type: ignore[attr-defined]


def test_too_many_clusters_are_refused(planted: list[Section]) -> None:
    with pytest.raises(InputError, match="too few for 20 clusters"):
        fit_target(planted[:1], KMEANS.model_copy(update={"n_clusters": 20}))


def test_leiden(planted: list[Section]) -> None:
    pytest.importorskip("igraph")
    config = KMEANS.model_copy(update={"clusters": "leiden", "resolution": 0.5})
    target = fit_target(planted[:2], config)
    found = target.encode(planted[2].require_counts()).argmax(axis=1)
    assert adjusted_rand_score(truth_of(planted[2]), found) > 0.9
    assert fit_target(planted[:2], config).names == target.names


def test_leiden_without_its_extra(planted: list[Section], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "igraph", None)
    with pytest.raises(InputError, match=r"pip install 'deepspace\[leiden\]'"):
        fit_target(planted[:1], KMEANS.model_copy(update={"clusters": "leiden"}))


def test_folds_share_names_of_clusters(planted: list[Section]) -> None:
    """Names follow the spots that two clusterings share, whatever their order."""
    target = fit_target(planted[:2], KMEANS)
    assert isinstance(target, ClusterTarget)
    assert target.labeller is not None
    turned = {"1": "3", "2": "1", "3": "2"}
    other = replace(target, labeller=target.labeller.renamed(turned))  # type: ignore[attr-defined]
    counts = planted[2].require_counts()
    assert (other.labels(counts) != target.labels(counts)).all()
    again = other.named_like(target, planted[:2])
    np.testing.assert_array_equal(again.labels(counts), target.labels(counts))
    assert again.names == target.names


@pytest.mark.parametrize("config", [KMEANS, GIVEN])
def test_targets_are_restored(planted: list[Section], config: TargetConfig) -> None:
    sections = [with_labels(s, ["a", "b"] * 32) for s in planted]
    target = fit_target(sections[:2], config)
    again: Target = TARGETS["clusters"].restore(target.names, *target.state())
    for section in sections:
        counts = section.require_counts()
        np.testing.assert_array_equal(again.encode(counts), target.encode(counts))


def test_recall_matrix_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, called = rng.choice(list("abcd"), 200), rng.choice(list("abc"), 200)
    recall, spots = recall_matrix(truth, called, list("abcde"))
    np.testing.assert_allclose(
        recall.diagonal()[:4], recall_score(truth, called, labels=list("abcd"), average=None)
    )
    np.testing.assert_allclose(recall[:4].sum(axis=1), 1.0)
    assert np.isnan(recall[4]).all()
    assert spots.tolist() == [int((truth == name).sum()) for name in "abcde"]


def test_a_cluster_that_was_not_learnt_counts_as_wrong() -> None:
    p = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = class_scores(np.array(["a", "a", "b", "z"]), p, ["a", "b"])
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((0.8 + 1.0 + 0.0) / 3)
    assert found["log_loss"] == pytest.approx(
        (3 * np.log(1.002) + np.log(1.002 / 0.001)) / 4, rel=1e-6
    )


class Says:
    """A predictor that gives these rows, whatever the place."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def predict(self, slide: object, coords: np.ndarray) -> Prediction:
        rows = self.rows[: len(coords)]
        return Prediction(rows, rows, rows)


def test_scores_of_folds_with_different_clusters(planted: list[Section]) -> None:
    """Unlabelled spots are not scored; columns that only one fold knows are zero in the other."""
    labels: list[str | None] = ["a"] * 20 + ["b"] * 20 + ["c"] * 20 + [None] * 4
    section = with_labels(planted[0], labels)
    first, second = (ClusterTarget(names, Given(), "given") for names in (("a", "b"), ("b", "c")))
    slot = empty_clusters(section, first, None, None)  # type: ignore[arg-type]
    say_first = np.tile([1.0, 0.0], (64, 1))
    for number, (target, rows) in enumerate(
        ((first, np.arange(0, 30)), (second, np.arange(30, 64))), start=1
    ):
        fold = Fold(str(number), train={}, test={"A": rows})
        fill_clusters(slot, "model", Says(say_first), fold, target)  # type: ignore[arg-type]
    scores = cluster_table({"A": slot}, "block").set_index("section")
    assert scores.loc["A", "spots"] == 60
    assert scores.loc["A", "accuracy"] == pytest.approx((20 + 10) / 60)
    assert scores.loc[POOLED, "macro_f1"] == scores.loc["A", "macro_f1"]
    recall = recall_table({"A": slot}, "model")
    assert recall.loc["a"].tolist() == [20, 1.0, 0.0, 0.0]
    assert recall.loc["b"].tolist() == [20, 0.5, 0.5, 0.0]
    assert recall.loc["c"].tolist() == [20, 0.0, 1.0, 0.0]


def parts_of(section: Section) -> Parts:
    return Parts("st", counts=section.require_counts(), spots=section.spots)


def read_labels(path: Path, text: str, section: Section) -> tuple[list[str], list[str]]:
    """Labels of the first spots (empty where none) and the notes."""
    path.write_text(text)
    parts = parts_of(section)
    add_cluster_table(path, parts)
    assert parts.counts is not None
    return list(Given()(parts.counts)[:4]), parts.notes


def test_tables_of_labels(planted: list[Section], tmp_path: Path) -> None:
    section = planted[0]
    by_barcode = "Barcode,Cluster\nA-1,10\nA-0,9\nnowhere,1\nA-2,\n"
    found, notes = read_labels(tmp_path / "c.csv", by_barcode, section)
    assert found == ["9", "10", "", ""]
    assert "62 of 64 spots have no cluster" in notes[0]
    assert "1 of 3 labelled spots have no counts" in notes[1]
    found, _ = read_labels(tmp_path / "i.tsv", "\tlabel\nA-3\ttumour\n", section)
    assert found == ["", "", "", "tumour"]
    counts = section.require_counts()
    counts.obs["array_col"], counts.obs["array_row"] = np.arange(64) % 8, np.arange(64) // 8
    by_place = "\tlabel\tx\ty\n93.1x2.2\tx1\t1\t0\n93.1x2.3\ty1\t0\t1\n"
    found, _ = read_labels(tmp_path / "p.tsv", by_place, section)
    assert found == ["", "x1", "", ""]
    assert Given()(counts)[8] == "y1"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("barcode,group\nA-0,1\n", "no column cluster or label"),
        ("barcode,cluster\nZ-0,1\n", "none of its 1 labelled spots.*Z-0.*A-0"),
        ("barcode,cluster\nA-0,1\nA-0,2\n", "twice.*A-0"),
    ],
)
def test_wrong_tables_of_labels(
    planted: list[Section], tmp_path: Path, text: str, part: str
) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InputError, match=part):
        add_cluster_table(tmp_path / "c.csv", parts_of(planted[0]))


def test_labels_need_counts(tmp_path: Path) -> None:
    for name in ("i.png", "c.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "s.csv").write_text("section,patient,image,clusters\nA,P,i.png,c.csv\n")
    with pytest.raises(InputError, match="clusters without counts"):
        read_sheet(tmp_path / "s.csv")


def test_her2st_labels_match_by_array_position(shared: Path, tmp_path: Path) -> None:
    """Spots of the ST array are called XxY; the labels have columns x and y."""
    data = shared / "data"
    sheet = pd.read_csv(data / "her2st.csv").iloc[:1]
    for column in ("image", "counts", "spots"):
        sheet[column] = [str(data / value) for value in sheet[column]]
    path = data / "her2st/clusters/C2-cluster-annotation.tsv.gz"
    sheet["clusters"] = str(path)
    sheet.to_csv(tmp_path / "s.csv", index=False)
    (section,) = read_sheet(tmp_path / "s.csv")
    labels = section.require_counts().obs["cluster"]
    with gzip.open(path) as file:
        table = pd.read_csv(file, sep="\t", dtype={"label": str})
    expected = table.set_index(table["x"].astype(str) + "x" + table["y"].astype(str))["label"]
    known = labels.dropna()
    assert len(known) == 185
    assert (known.astype(str) == expected.reindex(known.index)).all()
    assert any("2 of 187 spots have no cluster" in note for note in section.notes)
