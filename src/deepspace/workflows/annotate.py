"""`annotate`: name the parts of a predicted section by gene sets, clusters and drawn regions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.classification import Labels
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, check_output, refuse_inputs
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.data.clustering import SEED
from deepspace.data.genesets import GeneSet, gene_sets, match_sets, write_gmt
from deepspace.data.markers import MarkerRule, compare_groups
from deepspace.data.modules import ModuleScores, module_scores
from deepspace.io.geojson import Region, read_regions
from deepspace.output.annotation import AnnotationView, annotation_picture, enrichment_picture
from deepspace.output.canvas import Backdrop, laid_points, save
from deepspace.output.write import PROVENANCE, read_provenance, write_json, write_prediction
from deepspace.workflows.annotating import (
    CAVEATS,
    Grouping,
    Subject,
    agreement,
    characterise,
    cluster_labels,
    group_facts,
    groups_of,
    named,
    set_facts,
)
from deepspace.workflows.predicted_slide import read_table, slide_library

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# the file that tells a folder to be an annotation
RESULT = "annotation.json"
MAPS = 6


@dataclass(frozen=True)
class AnnotateSettings:
    """How a prediction is annotated.

    Attributes
    ----------
    builtin
        Use the gene sets that come with deepspace beside those of the files.
    n_clusters
        Of k-means; None takes the clusters that are there, else 6.
    least_genes
        Believed genes that a set must have to be used.
    rule
        Which genes mark a group, and which sets name it.
    """

    builtin: bool = True
    n_clusters: int | None = None
    least_genes: int = 3
    rule: MarkerRule = field(default_factory=MarkerRule)


@dataclass(frozen=True)
class Annotation:
    """A prediction that is annotated.

    Attributes
    ----------
    modules : AnnData
        Points x gene sets: ``X`` the score in sd units, ``layers['sd']`` its uncertainty,
        ``layers['mean']`` the mean log1p CP10k; `cluster`, `cluster_name` and `region` in `obs`.
    markers : DataFrame
        All believed genes in every cluster and region (`grouping`), see `marker_table`.
    enrichment : DataFrame
        All sets in every cluster and region (`grouping`), see `enrichment_table`.
    regions, regions_vs_clusters : DataFrame or None
        Regions that were drawn, and how they and the clusters overlap.
    summary : dict
        What ``annotation.json`` holds.
    """

    modules: AnnData
    markers: pd.DataFrame
    enrichment: pd.DataFrame
    regions: pd.DataFrame | None
    regions_vs_clusters: pd.DataFrame | None
    summary: dict[str, Any]


def annotate(
    prediction: AnnData | Path | str,
    *,
    gmt: Sequence[Path | str] = (),
    regions: Path | str | None = None,
    clusters: AnnData | Path | str | None = None,
    out: Path | str | None = None,
    settings: AnnotateSettings | None = None,
    overwrite: bool = False,
) -> Annotation:
    """Score gene sets at every predicted point, and name clusters and drawn regions by them.

    Only genes that held-out data tell from chance are used, on points on tissue that is like the
    training images.

    Parameters
    ----------
    prediction : AnnData or Path
        Expression that `deepspace.predict` or `deepspace.complete` wrote.
    gmt : sequence of Path
        Files with gene sets, beside those that come with deepspace.
    regions : Path, optional
        GeoJSON with areas in full-resolution pixels, as QuPath exports them.
    clusters : AnnData or Path, optional
        Prediction of clusters at the same points.
    out : Path, optional
        Folder for tables and pictures.
    settings : AnnotateSettings, optional
    overwrite : bool
        Replace `out` if an earlier annotation is there.

    Raises
    ------
    InputError
        If a file is damaged, the prediction is none of expression, no gene set fits its genes, or
        no point lies in any region.
    """
    settings = settings or AnnotateSettings()
    _check_settings(settings, clusters)
    sources = [prediction, clusters, regions, *gmt]
    inputs = [Path(s) for s in sources if isinstance(s, str | Path)]
    if out is not None:
        check_output(Path(out), overwrite=overwrite, marker=RESULT)
        refuse_inputs(Path(out), inputs)
    sets = gene_sets([Path(path) for path in gmt], builtin=settings.builtin)
    drawn = [] if regions is None else read_regions(Path(regions))
    name = "the prediction" if isinstance(prediction, AnnData) else str(prediction)
    table = prediction if isinstance(prediction, AnnData) else read_table(Path(prediction))
    slide_library(table, name)
    subject = Subject.of(table, name)
    if isinstance(clusters, str | Path):
        clusters = read_table(Path(clusters))
    labels, how = cluster_labels(subject, clusters, settings.n_clusters)
    inside = _inside(subject, drawn, str(regions))
    found, parts = _annotated(subject, sets, (labels, how), inside, settings)
    found.summary["provenance"] = provenance(
        "annotate", asdict(settings), input_hashes(inputs, Path.cwd()), SEED
    ) | {"prediction": read_provenance(table)}
    record = {"target": "modules", **found.summary["provenance"]}
    found.modules.uns[keys.UNS] = {PROVENANCE: json.dumps(record, sort_keys=True)}
    if out is not None:
        view = _view(subject, found, parts, drawn, name)
        _write(found, sets, view, settings.rule.fdr, Path(out))
    return found


def _check_settings(settings: AnnotateSettings, clusters: object) -> None:
    if clusters is not None and settings.n_clusters is not None:
        raise InputError("--clusters and --n-clusters: give one of the two")
    if settings.least_genes < 1:
        raise InputError(f"--least-genes {settings.least_genes}: must be 1 or more")
    if not 0 < settings.rule.fdr < 1:
        raise InputError(f"--fdr {settings.rule.fdr:g}: must lie between 0 and 1, as 0.05")


def _inside(subject: Subject, drawn: Sequence[Region], path: str) -> dict[str, BoolArray]:
    """Used points of each region; empty regions are told."""
    coords = subject.coords
    inside = {region.name: region.contains(coords) & subject.used for region in drawn}
    empty = [name for name, points in inside.items() if not points.any()]
    if drawn and len(empty) == len(drawn):
        corners = np.concatenate([r for region in drawn for p in region.polygons for r in p])
        raise InputError(
            f"{path}: no predicted point lies in any region: regions span {_span(corners)}, "
            f"points {_span(coords)}; draw them on the slide of {_section(subject.table)}, in "
            "full-resolution pixels"
        )
    if empty:
        log.info("%s: no predicted point lies in %s", path, ", ".join(empty))
    return inside


def _span(coords: FloatArray) -> str:
    low, high = coords.min(axis=0), coords.max(axis=0)
    return f"x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}"


def _section(table: AnnData) -> str:
    return str(next(iter(table.uns[keys.SPATIAL])))


@dataclass(frozen=True)
class _Parts:
    """What tables and pictures are made of."""

    clusters: Grouping
    regions: Grouping | None
    support: dict[str, float]


def _annotated(
    subject: Subject,
    sets: Sequence[GeneSet],
    clustering: tuple[Labels, str],
    inside: dict[str, BoolArray],
    settings: AnnotateSettings,
) -> tuple[Annotation, _Parts]:
    """All results but the provenance."""
    labels, how = clustering
    matched = match_sets(sets, [str(gene) for gene in subject.table.var_names])
    members, facts = set_facts(subject, matched, settings.least_genes)
    place = {gene: column for column, gene in enumerate(subject.genes)}
    columns = [[place[gene] for gene in genes] for genes in members.values()]
    scores = module_scores(subject.values, subject.sd, columns, subject.used)
    clusters = characterise(subject, groups_of(labels), members, settings.rule)
    drawn = characterise(subject, inside, members, settings.rule) if inside else None
    support = scores.support(subject.used)
    parts = _Parts(clusters, drawn, dict(zip(members, support.tolist(), strict=True)))
    by_set = pd.DataFrame(scores.score, columns=list(members))
    summary: dict[str, Any] = {
        "section": _section(subject.table),
        "points": {k: v for k, v in subject.facts.items() if k.startswith("points")},
        "genes": {k: v for k, v in subject.facts.items() if k.startswith("genes")},
        "sets_used": len(members),
        "gene_sets": [f | {"support": parts.support.get(f["set"])} for f in facts],
        "clusters_from": how,
        "clusters_named": named(clusters),
        "clusters": group_facts(clusters, by_set, settings.rule),
        "regions": [] if drawn is None else group_facts(drawn, by_set, settings.rule),
        "adjusted_rand": agreement(labels, inside, subject.used),
        "caveats": list(CAVEATS),
    }
    kinds = {"cluster": clusters} | ({} if drawn is None else {"region": drawn})
    table = None if drawn is None else _region_table(subject, drawn)
    versus = None
    if drawn is not None:
        pairs = (drawn.groups, clusters.groups, drawn.top, clusters.top)
        versus = compare_groups(*pairs, len(subject.genes))
    found = Annotation(
        modules=_modules(subject, scores, members, facts, (labels, parts)),
        markers=_stacked({kind: grouping.markers for kind, grouping in kinds.items()}),
        enrichment=_stacked({kind: grouping.enrichment for kind, grouping in kinds.items()}),
        regions=table,
        regions_vs_clusters=versus,
        summary=summary,
    )
    return found, parts


def _stacked(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of clusters and regions under each other."""
    parts = []
    for kind, table in tables.items():
        part = table.copy()
        part.insert(0, "grouping", kind)
        parts.append(part)
    return pd.concat([p for p in parts if len(p)] or parts[:1], ignore_index=True)


def _region_table(subject: Subject, drawn: Grouping) -> pd.DataFrame:
    """One row a region."""
    rows = [
        {
            "region": region,
            "name": drawn.names[region],
            "points": int(inside.sum()),
            "share_of_points": float(inside.sum() / subject.used.sum()),
            "markers": len(drawn.top.get(region, [])),
            "first_markers": ";".join(drawn.top.get(region, [])[:20]),
        }
        for region, inside in drawn.groups.items()
    ]
    return pd.DataFrame(rows)


def _modules(
    subject: Subject,
    scores: ModuleScores,
    members: dict[str, list[str]],
    facts: list[dict[str, Any]],
    groups: tuple[Labels, _Parts],
) -> AnnData:
    """Scores as AnnData that scanpy draws over the slide."""
    labels, parts = groups
    table = subject.table
    obs = table.obs.copy()
    obs["used"] = subject.used
    names = parts.clusters.names | {"": ""}
    obs[keys.CLUSTER] = pd.Categorical(labels)
    obs["cluster_name"] = pd.Categorical([names[label] for label in labels])
    if parts.regions is not None:
        inside = parts.regions.groups
        of = [";".join(n for n, points in inside.items() if points[i]) for i in range(len(obs))]
        obs["region"] = pd.Categorical(of)
    held_out = table.var[keys.SCORE] if keys.SCORE in table.var else pd.Series(dtype=np.float64)
    var = pd.DataFrame(
        {
            "description": [f["description"] for f in facts if f["used"]],
            "file": [f["file"] for f in facts if f["used"]],
            "genes": [";".join(genes) for genes in members.values()],
            "genes_used": [len(genes) for genes in members.values()],
            "genes_in_set": [f["genes"] for f in facts if f["used"]],
            "support": list(parts.support.values()),
            keys.SCORE: [held_out.reindex(genes).mean() for genes in members.values()],
        },
        index=list(members),
    )
    layers = {keys.SD: scores.sd, "sd_independent": scores.sd_independent, "mean": scores.mean}
    return AnnData(
        X=scores.score.astype(np.float32),
        obs=obs,
        var=var,
        layers={name: values.astype(np.float32) for name, values in layers.items()},
        obsm={keys.SPATIAL: subject.coords},
        uns={keys.SPATIAL: table.uns[keys.SPATIAL]},
    )


def _view(
    subject: Subject, found: Annotation, parts: _Parts, drawn: Sequence[Region], name: str
) -> AnnotationView:
    """What the picture shows: the maps of the best-supported sets."""
    library = slide_library(subject.table, name)
    scales, mpp = library["scalefactors"], library["metadata"].get("mpp")
    if mpp is None:
        raise InputError(f"{name}: does not say the mpp of its slide; predict again with one")
    hires, scale = np.asarray(library["images"]["hires"]), float(scales["tissue_hires_scalef"])
    size_um = float(scales["spot_diameter_fullres"]) * float(mpp)
    best = sorted(parts.support, key=lambda s: (-parts.support[s], s))[:MAPS]
    return AnnotationView(
        section=_section(subject.table),
        backdrop=Backdrop(hires, 1.0 / scale, float(mpp)),
        points=laid_points(subject.coords, size_um, float(mpp)),
        used=subject.used,
        labels=found.modules.obs[keys.CLUSTER].to_numpy(dtype=np.str_),
        names=parts.clusters.names,
        modules={s: np.asarray(found.modules[:, s].X, np.float64).ravel() for s in best},
        support=parts.support,
        regions={region.name: [ring for p in region.polygons for ring in p] for region in drawn},
    )


def _write(
    found: Annotation, sets: Sequence[GeneSet], view: AnnotationView, fdr: float, out: Path
) -> None:
    tables = {
        "markers": found.markers,
        "enrichment": found.enrichment,
        "regions": found.regions,
        "regions_vs_clusters": found.regions_vs_clusters,
    }
    with atomic_folder(out) as folder:
        write_prediction(found.modules, folder / "modules.h5ad")
        for name, table in tables.items():
            if table is not None:
                table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        write_gmt(sets, folder / "genesets.gmt")
        save(annotation_picture(view), folder / "annotation.png")
        save(enrichment_picture(found.summary, found.enrichment, fdr), folder / "enrichment.png")
        write_json(found.summary, folder / RESULT)
