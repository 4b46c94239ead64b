"""What ``--json`` prints, as JSON Schema that pipelines can check against.

One class a document; a later version may add keys, and takes none away without a word in the
changelog.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from deepspace.core.errors import InputError

DRAFT = "https://json-schema.org/draft/2020-12/schema"


class Document(BaseModel):
    """Base of all: keys that are not named here may come later."""

    model_config = ConfigDict(extra="allow")


class InspectedSection(Document):
    """One section as it was read; null is what is not known."""

    section: str
    patient: str
    platform: str
    image: str
    image_size: tuple[int, int] = Field(description="width, height, pixels")
    mpp: float | None = Field(description="micrometres per pixel")
    mpp_source: str | None
    z_um: float | None
    spots: int | None
    spots_in_tissue: int | None
    spots_measured: int | None
    spot_diameter_um: float | None
    spot_diameter_px: float | None
    spot_pitch_um: float | None
    genes: int | None
    median_umis: float | None
    median_genes: float | None
    clusters: int | None
    notes: list[str]
    problems: list[str]
    overview: str | None = Field(description="picture")


class Inspected(Document):
    """`deepspace inspect --json`."""

    path: str
    sections: list[InspectedSection]
    problems: list[str] = Field(description="everything wrong; empty if nothing is")


class ModelScores(Document):
    """Held-out scores of one model or baseline, means over genes (or clusters) and sections."""

    mean_pearson: float | None = None
    best50_pearson: float | None = None
    mean_spearman: float | None = None
    mean_rmse: float | None = None
    mean_r2: float | None = None
    coverage_90: float | None = Field(None, description="measurements inside their 90 % intervals")
    genes: int | None = None
    accuracy: float | None = Field(None, description="clusters: spots named right")
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    log_loss: float | None = None
    sections: dict[str, Any] = Field(default={}, description="what each section scored")


class Comparison(Document):
    """A model against a baseline: paired difference with its 95 % interval."""

    model: str
    against: str
    difference: float | None
    low: float | None
    high: float | None
    over: str = Field(description="what the interval is over: patients, sections or regions")
    number: int = Field(description="how many of them")
    beats: bool


class Gain(Document):
    """A student against its teacher or its control, over sections."""

    student: str
    teacher: str
    score: str
    gain: float
    low: float | None
    high: float | None
    better: int
    sections: int


class Chance(Document):
    """What moved labels score: mean over genes and moves, spread between moves."""

    number: int = Field(description="moves")
    mean_pearson: float
    sd_of_means: float | None


class Leak(ModelScores):
    """A model's scores under one way to split, and what they mean."""

    model: str
    split: str
    meaning: str
    folds: int | None
    note: str | None


class EncoderUsed(Document):
    """An encoder as it was really used."""

    config: dict[str, Any]
    key: str = Field(description="what its cached features are kept under")


class Scores(Document):
    """`deepspace evaluate --json`, `deepspace train --json`."""

    target: str = Field(description="expression or clusters")
    split: str
    folds: int
    genes: str | None = Field(None, description="the choice that was asked for")
    transform: str | None = None
    labels: str | None = Field(None, description="clusters: where their labels come from")
    clusters: int | None = None
    spots: int | None = Field(None, description="clusters: spots with a label")
    models: dict[str, ModelScores] = Field(description="models and baselines by name")
    not_applicable: list[str] = Field(description="baselines that this split rules out")
    verdict: list[str] = Field(description="plain sentences, the first line of the report")
    verdicts: dict[str, int] = Field(description="genes of each verdict")
    comparisons: list[Comparison] = []
    ceiling: dict[str, float | None] | None = None
    chance: Chance | None = None
    gains: list[Gain] | None = Field(None, description="students against their teachers")
    controls: list[str] | None = Field(None, description="students that were shown nothing new")
    leak_gap: list[Leak] | None = None
    encoders: list[EncoderUsed] | None = None
    quality_control: list[str] | None = None
    provenance: dict[str, Any] | None = None
    warning: str | None = None


class PredictedFile(Document):
    """`deepspace predict --json` of one section."""

    out: str
    section: str
    points: int
    genes: int | None = None
    clusters: int | None = None
    predictable: int
    ood: int = Field(description="points unlike the training images")


class PredictedRow(Document):
    """One section of many."""

    section: str
    status: str = Field(pattern="^(succeeded|failed|skipped)$")
    reason: str
    seconds: float
    points: int
    out: str
    points_per_second: float | None


class PredictedFolder(Document):
    """`deepspace predict --json` of several sections; also ``run-report.json``."""

    out: str
    succeeded: int
    failed: int
    skipped: int
    shard: str | None
    sections: list[PredictedRow]


class FailedSpots(Document):
    """Spots of a measured section."""

    spots: int
    failed: int
    reasons: dict[str, int]


class Completed(Document):
    """`deepspace complete --json`; also ``summary.json``."""

    sections: dict[str, FailedSpots] = Field(description="measured sections by name")
    points: dict[str, int] = Field(description="points of every file in sections/")
    volume: dict[str, Any] | None
    predictable: int
    columns: int = Field(description="genes or clusters of the model")
    target: str
    scores: Scores | None
    within: Scores | None
    sheet: str | None = Field(None, description="the cohort sheet, seen from the folder")


class Tile(Document):
    """One tile that was explained."""

    gene: str
    tile: str
    point: str
    x: float
    y: float
    predicted: float
    contributions: dict[str, float] | None = None


class Explained(Document):
    """`deepspace explain --json`."""

    out: str
    section: str
    methods: list[str]
    notes: Any
    tiles: list[Tile]


class Compared(Document):
    """`deepspace ihc --json`."""

    gene: str
    verdict: Any
    points: int
    used: int
    pearson: dict[str, Any]
    spearman: dict[str, Any]
    positive: dict[str, Any]
    rank: dict[str, int]
    null: dict[str, Any]
    stain: dict[str, Any]
    registration: dict[str, Any]


class Annotated(Document):
    """`deepspace annotate --json`."""

    section: str | None
    points: dict[str, int]
    genes: dict[str, int]
    sets_used: int
    gene_sets: list[dict[str, Any]]
    clusters_from: str
    clusters: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    adjusted_rand: float | None
    caveats: list[str]


class Exported(Document):
    """`deepspace export --json`; what the format adds is null elsewhere."""

    path: str
    section: str
    to: str
    out: str
    values: str = Field(description="mean, sd or measured")
    points: int
    genes: int
    width: int | None = Field(None, description="ome-tiff: pixels")
    height: int | None = Field(None, description="ome-tiff: pixels")
    pixel_um: float | None = Field(None, description="ome-tiff: side of a pixel")
    areas: list[str] | None = Field(None, description="geojson: names of the areas drawn")
    elements: list[str] | None = Field(None, description="spatialdata: elements written")
    kept: list[str] | None = Field(None, description="spatialdata: elements that were there")
    tables: list[str] | None = Field(None, description="parquet: files in the folder")


# what the commands print; where a command prints one of two, either
SCHEMAS: dict[str, Any] = {
    "inspect": Inspected,
    "train": Scores,
    "evaluate": Scores,
    "predict": PredictedFile | PredictedFolder,
    "complete": Completed,
    "explain": Explained,
    "ihc": Compared,
    "annotate": Annotated,
    "export": Exported,
}


def schema(command: str | None = None) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what a command prints with ``--json``.

    Parameters
    ----------
    command : str, optional
        One of `SCHEMAS`; without, an object with all of them by name.

    Raises
    ------
    InputError
        If the command prints no JSON.

    Examples
    --------
    >>> schema("inspect")["required"]
    ['path', 'sections', 'problems']
    """
    if command is None:
        return {name: schema(name) for name in SCHEMAS}
    if command not in SCHEMAS:
        raise InputError(
            f"{command!r} has no --json that could be described; choose one of {', '.join(SCHEMAS)}"
        )
    found = TypeAdapter(SCHEMAS[command]).json_schema()
    return {"$schema": DRAFT, **found, "title": f"deepspace {command} --json"}
