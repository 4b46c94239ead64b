"""Typed, strict configuration: an unknown key is an error, every default is the best known choice.

A configuration file is TOML with one table per model below::

    seed = 0
    [qc]
    min_counts = 1000
    [target]
    genes = "variable:500"
    [encoder]
    name = "vgg16"
    fov_um = [150.0]
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, field_validator, model_validator

from deepspace.core.errors import InputError
from deepspace.core.strict import StrictModel, validated

PRESETS = Path(__file__).parent.parent / "presets"
# how genes are chosen: the most expressed, the most variable
GeneRule = Literal["expressed", "variable"]


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


class QCConfig(StrictModel):
    """Which measured spots are good enough to learn from and to be scored on.

    Monjo et al. 2022 keep spots with at least 1000 UMI and 1000 genes (preset
    ``deepspace-2022``); the defaults only drop spots that failed. `drop_white` also leaves out
    spots whose patch is mostly empty glass, by the paper's rule.
    """

    min_counts: Annotated[int, Field(ge=0)] = 500
    min_genes: Annotated[int, Field(ge=0)] = 200
    drop_white: bool = False


class TargetConfig(StrictModel):
    """What is predicted.

    Where fewer than `context` genes are asked for, the most expressed others are learnt along with
    them, up to that number: genes vary together, so that each is learnt better. They are not
    predicted.

    For ``kind = "clusters"`` the labels are those that came with the data (``given``), or are
    computed on the training sections from `genes`: ``kmeans`` with `n_clusters`, or ``leiden`` at
    `resolution`. ``auto`` takes the given ones where every measured section has some that can be
    compared, else k-means.
    """

    kind: Literal["expression", "clusters"] = "expression"
    clusters: Literal["auto", "given", "kmeans", "leiden"] = "auto"
    n_clusters: Annotated[int, Field(ge=2)] = 6
    resolution: Annotated[float, Field(gt=0)] = 1.0
    transform: Literal["log1p_cp10k", "pearson_residuals"] = "log1p_cp10k"
    genes: str = "variable:1000"
    context: Annotated[int, Field(ge=0)] = 300
    exclude: tuple[str, ...] = (r"^MT-", r"^RP[LS]\d+[AXYL]*\d?$", r"^RP(LP\d|SA)$")

    @field_validator("exclude")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_expression(pattern) for pattern in patterns)

    @field_validator("genes")
    @classmethod
    def _counts(cls, genes: str) -> str:
        rule, colon, number = genes.partition(":")
        if rule in get_args(GeneRule) and colon and not (number.isdecimal() and int(number) > 0):
            raise ValueError(f"give a whole number above 0 after {rule}:, as in {rule}:1000")
        return genes


class EncoderConfig(StrictModel):
    """How a patch becomes features.

    `fov_um`, `layers`, `size_px` (side of a patch) and `weights` left empty mean the encoder's own
    defaults. `fov_spots` gives fields of view in spot diameters instead of micrometres.

    With ``sampling = "dense"`` features are pooled from a map of the whole slide instead of from a
    crop around each point, which costs hardly more for many points than for few
    (`deepspace.models.dense`). A model predicts in the way it was trained.
    """

    name: str = "stain"
    fov_um: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    fov_spots: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    layers: tuple[int, ...] | None = None
    size_px: Annotated[int, Field(ge=16, le=1024)] | None = None
    weights: str | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    stain_normalisation: Literal["none", "macenko"] = "none"
    standardise: Literal["section", "none"] = "section"
    sampling: Literal["crop", "dense"] = "crop"

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if self.fov_um is not None and self.fov_spots is not None:
            raise ValueError("give fov_um or fov_spots, not both")
        return self


class ProbeConfig(StrictModel):
    """Ridge on features.

    A penalty is chosen for each principal component of the targets, or for each gene.
    `penalties` are relative to the mean eigenvalue of the features' covariance, so that one
    path suits any encoder. `bridge` is the distance over which the penalty is chosen: the
    grouping left out in turn; ``auto`` is the one that the scores leave out.
    """

    penalties: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = tuple(
        float(f"{10 ** (k / 2):.3g}") for k in range(-4, 9)
    )
    bridge: Literal["auto", "patient", "section", "block"] = "auto"
    penalty_for: Literal["component", "gene"] = "component"


class CNNConfig(StrictModel):
    """Fine-tuning of the encoder's network.

    Defaults are what did best on held-out sections (docs/decisions/008-fine-tuning.md); the preset
    ``deepspace-2022`` has those of Monjo et al. 2022.

    Attributes
    ----------
    head
        ``pooled``: the encoder's layers, pooled and standardised by section, then one linear
        layer. ``own``: the last layers of the architecture itself, after its deepest layer.
    start
        Of the last layer: ``ridge`` takes the solution of `probe` on the network as it is,
        ``random`` torch's own.
    trainable
        How many blocks, counted from the deepest one that is read, are fine-tuned: ``all``, or a
        number; 0 trains the last layer only.
    loss
        ``auto`` is the target's own (smooth L1 for expression, cross-entropy for clusters).
    scale
        Of expression: ``section`` centres every section and divides by each gene's standard
        deviation, ``minmax`` maps the range in the training fold to 0-1.
    validation
        What early stopping holds out inside the training data; ``auto`` is the widest step that
        it allows.
    refit
        Train once more on all training data, for as many epochs as were best.
    augment
        Groups of `deepspace.models.augment.GROUPS`.
    batch_norm
        ``frozen`` keeps the statistics that came with the weights.
    """

    head: Literal["pooled", "own"] = "pooled"
    start: Literal["ridge", "random"] = "ridge"
    trainable: Annotated[int, Field(ge=0)] | Literal["all"] = 1
    loss: Literal["auto", "smooth_l1", "mse", "cross_entropy"] = "auto"
    scale: Literal["section", "minmax"] = "section"
    validation: Literal["auto", "patient", "section", "block", "spot"] = "auto"
    refit: bool = True
    augment: tuple[str, ...] = ("flips", "rotations")
    epochs: Annotated[int, Field(ge=0)] = 10
    patience: Annotated[int, Field(ge=1)] = 2
    batch: Annotated[int, Field(ge=1)] = 32
    accumulate: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    head_learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    batch_norm: Literal["frozen", "trained"] = "frozen"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0


class StudentConfig(StrictModel):
    """How a student of ``probe-student`` or ``cnn-student`` learns from unmeasured tiles.

    Defaults are what did best on held-out sections (docs/decisions/009-noisy-student.md).

    Attributes
    ----------
    rounds
        Times that the student becomes the teacher of the next one.
    tiles
        Most unlabelled tiles, shared evenly among the slides.
    sources
        Where tiles come from: ``gaps`` between the training spots, unmeasured ``sections`` of
        the sheet, or a folder of slides.
    labels
        ``teacher``, or a control: the same labels ``permuted`` over the tiles, or ``random``
        ones of the same spread. Controls have no gate.
    strength
        Weight of the pseudo-labels: for `probe` against the ridge penalty, for `cnn` against
        the measured spots.
    radius_um
        Pseudo-labels are the teacher's predictions on the neighbours within this distance.
    confidence
        Weigh tiles by the teacher's certainty.
    balance
        Weigh tiles evenly over the range of the pseudo-labels.
    augment
        Noise of the students of a `cnn`: groups of `deepspace.models.augment.GROUPS`.
    gate
        Keep the teacher unless the student is better on left-out training data.
    """

    rounds: Annotated[int, Field(ge=1)] = 5
    tiles: Annotated[int, Field(ge=2)] = 4000
    sources: Annotated[tuple[str, ...], Field(min_length=1)] = ("gaps", "sections")
    labels: Literal["teacher", "permuted", "random"] = "teacher"
    strength: Annotated[float, Field(gt=0)] = 1.0
    radius_um: Annotated[float, Field(gt=0)] = 150.0
    confidence: bool = False
    balance: bool = False
    augment: tuple[str, ...] = ("flips", "rotations", "crop", "colour", "blur", "noise")
    gate: bool = True


class KrigingConfig(StrictModel):
    """Image term plus what was measured around (docs/decisions/011-kriging.md).

    Attributes
    ----------
    image
        What tells where nothing was measured around: a model, or ``none``, which is the mean.
    components
        Principal components of the genes that are kriged.
    exact
        Most spots of a block for which every spot counts; past that, the `neighbours` nearest.
    """

    image: Literal["probe", "cnn", "none"] = "probe"
    components: Annotated[int, Field(ge=1)] = 128
    exact: Annotated[int, Field(ge=1)] = 2000
    neighbours: Annotated[int, Field(ge=4)] = 64


class FailedConfig(StrictModel):
    """Which spots of a measured section count as failed, beside those that fail `[qc]`.

    The local test and its defaults are those of SpotSweeper (Totty et al., bioRxiv 2024); besides,
    a spot must have less than half the counts or genes that its neighbours have in the median, or
    5 % of its counts more in mitochondrial genes.

    Attributes
    ----------
    local
        Test every spot against its neighbours.
    neighbours
        Nearest spots that it is compared with.
    cutoff
        Modified z-score beyond which it is an outlier.
    mitochondrial
        Regular expression of mitochondrial genes, in capitals or not.
    """

    local: bool = True
    neighbours: Annotated[int, Field(ge=10)] = 36
    cutoff: Annotated[float, Field(gt=0)] = 3.0
    mitochondrial: str = r"^MT-"

    @field_validator("mitochondrial")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        return _expression(pattern)


class SplitConfig(StrictModel):
    """How held-out data are chosen by `evaluate`.

    ``auto`` leaves out patients where there are several, else sections, else spatial blocks.
    ``blob`` blanks compact regions and ``alternate`` every second spot of one section at a time,
    with all that was measured around them and on other sections known: they score the
    completion of a section, not how a model carries over to a new one.
    `gap_um` left empty means one field of view of the encoder, the least that keeps a training
    patch from overlapping a test patch.
    """

    how: Literal["auto", "section", "patient", "block", "blob", "alternate", "spot"] = "auto"
    folds: Annotated[int, Field(ge=2)] = 5
    gap_um: Annotated[float, Field(ge=0)] | None = None


class EvaluateConfig(StrictModel):
    """What stands beside the scores.

    Attributes
    ----------
    moves
        Times that `probe` learns from labels that were moved over the tissue as a whole, to tell
        what chance can do; verdicts of genes rest on it. 0 leaves it out: p-values then take
        spots as independent.
    leak_gap
        Which model is scored under every split: ``probe``, the ``model`` itself, or ``none``.
    """

    moves: Annotated[int, Field(ge=0)] = 10
    leak_gap: Literal["probe", "model", "none"] = "probe"


class RegistrationConfig(StrictModel):
    """How serial sections are laid over each other (docs/decisions/010-registration.md).

    Attributes
    ----------
    size_px
        Longer side of the larger tissue at the working resolution.
    finest_um
        No finer resolution than this: below it, neighbouring sections share nothing.
    angle_deg
        Step of the rotations tried first, over a full turn and its mirror image.
    freedom
        Last global map: ``rigid``, ``similarity`` or ``affine``.
    key_points
        Also try maps from matched SIFT key points.
    nonrigid
        Add a smooth deformation.
    attachment, tightness, warps
        Of the optical flow (`skimage.registration.optical_flow_tvl1`).
    contrast_px
        Window of the local contrast, pixels of the working resolution.
    smooth_px
        Smoothing of the deformation, pixels of the working resolution.
    least_excess
        Refused below this: standard deviations by which the agreement of the pair exceeds that
        of the same pair in other orientations.
    """

    size_px: Annotated[int, Field(ge=100, le=4000)] = 600
    finest_um: Annotated[float, Field(gt=0)] = 4.0
    angle_deg: Annotated[float, Field(gt=0, le=15)] = 6.0
    freedom: Literal["rigid", "similarity", "affine"] = "affine"
    key_points: bool = True
    nonrigid: bool = True
    attachment: Annotated[float, Field(gt=0)] = 2.5
    tightness: Annotated[float, Field(gt=0)] = 0.4
    warps: Annotated[int, Field(ge=1)] = 5
    contrast_px: Annotated[float, Field(gt=0)] = 10.0
    smooth_px: Annotated[float, Field(gt=0)] = 2.0
    least_excess: Annotated[float, Field(ge=0)] = 3.7


class CompleteConfig(StrictModel):
    """What `complete` makes of a cohort.

    Attributes
    ----------
    model
        Key of the table of models.
    at
        Points on every section: ``spots``, ``between`` (three times the density of the spots) and
        ``grid:UM``. A section without spots gets a grid at the pitch of the others in place of
        ``spots``.
    sum_to_spots
        Scale predictions finer than the spots so that their mean over each spot is the estimate of
        the spot.
    score_within
        Also score by blanking regions of each section (split ``blob``): what `failed` spots and
        points between spots are worth. The model's own scores are of whole sections held out,
        also under ``split.how = "auto"`` if a patient has two measured serial sections.
    all_genes
        Write genes that held-out data do not tell from chance as well.
    volume
        Predict planes between the sections where there are at least two in depth.
    volume_um, volume_z_um
        Distance of voxels in plane and of planes; half the spot pitch and half the smallest
        distance of sections if empty.
    volume_genes
        Most genes of the volume, those with the best held-out scores.
    """

    model: str = "kriging"
    at: Annotated[tuple[str, ...], Field(min_length=1)] = ("spots", "between")
    sum_to_spots: bool = False
    score_within: bool = True
    all_genes: bool = False
    volume: bool = True
    volume_um: Annotated[float, Field(gt=0)] | None = None
    volume_z_um: Annotated[float, Field(gt=0)] | None = None
    volume_genes: Annotated[int, Field(ge=1)] = 100


class Config(StrictModel):
    """Everything that the commands can be told."""

    seed: Annotated[int, Field(ge=0)] = 0
    model: str = "probe"
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    qc: QCConfig = QCConfig()
    target: TargetConfig = TargetConfig()
    encoder: EncoderConfig = EncoderConfig()
    probe: ProbeConfig = ProbeConfig()
    cnn: CNNConfig = CNNConfig()
    student: StudentConfig = StudentConfig()
    kriging: KrigingConfig = KrigingConfig()
    failed: FailedConfig = FailedConfig()
    complete: CompleteConfig = CompleteConfig()
    split: SplitConfig = SplitConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registration: RegistrationConfig = RegistrationConfig()

    def with_values(self, **changes: dict[str, Any] | int | str | None) -> Self:
        """Copy with some values replaced, for example ``encoder={"name": "vgg16"}``.

        Values that are `None` change nothing, so that unset command-line options can be
        passed on as they are.
        """
        merged = self.model_dump()
        for table, values in changes.items():
            if isinstance(values, dict) and isinstance(merged.get(table), dict):
                merged[table].update({k: v for k, v in values.items() if v is not None})
            elif values is not None:
                merged[table] = values
        return validated(type(self), merged, "options")


def load_config(source: Path | str | None) -> Config:
    """Read a TOML file or a named preset; `None` gives the defaults.

    Raises
    ------
    InputError
        If the file or preset does not exist, is not TOML, or holds unknown keys or bad
        values: all of them listed.
    """
    if source is None:
        return Config()
    path = Path(source)
    if not path.is_file():
        preset = PRESETS / f"{source}.toml"
        if not preset.exists():
            names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.toml")))
            what = "is a folder, no" if path.is_dir() else "no such"
            raise InputError(f"{source}: {what} configuration file; presets are: {names}")
        path = preset
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad marks its files
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error
    return _beside(validated(Config, values, str(path)), path.parent)


def saved_config(values: dict[str, Any]) -> Config:
    """Configuration as a model keeps it; options that this version does not have are left out.

    Raises
    ------
    InputError
        If an option that it has holds a bad value.
    """
    return validated(Config, _known(Config, values), "configuration of the model")


def _known(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, about in model.model_fields.items():
        if name in values:
            table, inner = values[name], about.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(table, dict):
                table = _known(inner, table)
            found[name] = table
    return found


def _beside(config: Config, folder: Path) -> Config:
    """Make relative paths relative to the configuration file that names them."""

    def place(name: str) -> str:
        return str((folder / Path(name).expanduser()).absolute())

    weights = config.encoder.weights
    if weights is not None and not weights.startswith("random:"):
        config = config.with_values(encoder={"weights": place(weights)})
    sources = tuple(s if s in ("gaps", "sections") else place(s) for s in config.student.sources)
    return config.with_values(student={"sources": sources})
