"""Odd images: are they told from those of the training slides, and is the reason right.

    python benchmarks/odd_images.py DATA_FOLDER [--tiles 60]

DATA_FOLDER holds her2st.csv, mob.csv and registration_pairs/. Every her2st section is held out in
turn; its tiles are in distribution, against tiles of other slides and of altered copies of it.
Printed for each: AUROC of the distance, share flagged, main reasons of the flagged tiles, and the
verdict on the whole slide; then false alarms on the held-out sections.

The share of variance kept by single directions (0.8 of 0.8, 0.9, 0.95, 0.99) and the choice of
Mahalanobis distance over nearest neighbours were made on these same kinds of images; the limit and
all ranges come from the training sections alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from deepspace.core.config import Config
from deepspace.data.coords import reference_points
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.io.slide import Slide, open_slide
from deepspace.io.source import Image
from deepspace.models.features import FeatureExtractor
from deepspace.models.novelty import evenly
from deepspace.models.registry import Workbench
from deepspace.models.watch import Watch
from deepspace.workflows.cohort import default_cache
from deepspace.workflows.novelty import check_points, fit_novelty, slide_verdict

# of the pairs, which say no pixel size; the same as in benchmarks/registration.py
ASSUMED_MPP = 10.0
MOB = ("01", "04", "06", "09")
PAIRS = {
    "IHC lung proSPC": "Izd2-29-041-w35_proSPC.jpg",
    "IHC kidney PanCK": "Rat-Kidney_PanCytokeratin.jpg",
    "HE lung (mouse)": "Izd2-29-041-w35_HE.jpg",
    "HE kidney (rat)": "Rat-Kidney_HE.jpg",
}
PENS = np.log(np.array([(0.10, 0.62, 0.38), (0.12, 0.22, 0.72), (0.16, 0.16, 0.18)]))

Change = Callable[[Image, int, int], Image]


class Altered:
    """A pixel source that changes every window it reads, as if the file were changed."""

    identity = "altered"

    def __init__(self, base: Any, change: Change, margin: int) -> None:
        self.base, self.change, self.margin = base, change, margin
        self.blocks, self.sizes = base.blocks, base.sizes

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Image:
        """Read with a margin, change, cut the margin off."""
        w, h = self.sizes[level]
        x0, y0 = max(0, x - self.margin), max(0, y - self.margin)
        x1, y1 = min(w, x + width + self.margin), min(h, y + height + self.margin)
        image = self.change(self.base.read(level, x0, y0, x1 - x0, y1 - y0), x0, y0)
        return image[y - y0 : y - y0 + height, x - x0 : x - x0 + width]


def altered(slide: Slide, change: Change, margin: int = 0) -> Slide:
    """A copy of a slide with changed pixels."""
    return replace(slide, _source=Altered(slide._source, change, margin))


def blurred(slide: Slide, sigma_um: float) -> Slide:
    """Out of focus."""
    sigma = sigma_um / slide.require_mpp()

    def change(image: Image, x: int, y: int) -> Image:
        soft = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), truncate=3)
        return np.rint(soft).astype(np.uint8)

    return altered(slide, change, int(3 * sigma) + 1)


def _stripes(image: Image, x: int, y: int, period: float, share: float) -> NDArray[np.float64]:
    """Oblique stripes over the whole slide, 1 inside, soft rims, shape (h, w, 1)."""
    rows, columns = np.mgrid[y : y + image.shape[0], x : x + image.shape[1]]
    away = np.abs(((columns + 0.4 * rows) / period) % 1.0 - 0.5) * period
    return np.clip((share * period / 2 - away) / 8.0 + 0.5, 0.0, 1.0)[..., None]


def penned(slide: Slide, colour: NDArray[np.float64]) -> Slide:
    """Felt pen in stripes 60 um wide, so that every tile has some."""
    period = 150 / slide.require_mpp()
    return altered(
        slide,
        lambda image, x, y: (
            image * np.exp(0.75 * _stripes(image, x, y, period, 0.4) * colour)
        ).astype(np.uint8),
    )


def folded(slide: Slide) -> Slide:
    """Tissue that lies double in stripes 75 um wide: the light passes it and its mirror image."""
    period = 150 / slide.require_mpp()
    return altered(
        slide,
        lambda image, x, y: (
            (image * (image[::-1, ::-1] / 245.0) ** _stripes(image, x, y, period, 0.5))
            .clip(0, 255)
            .astype(np.uint8)
        ),
    )


@dataclass(frozen=True)
class Case:
    """Tiles to be judged; `true` are the reasons that would be right.

    `whole` is the slide whose verdict goes with them: where every tile is under ink, no tissue
    is found, so the untouched slide's.
    """

    name: str
    slide: Slide
    coords: NDArray[np.float64]
    true: tuple[str, ...]
    whole: Slide | None = None


def foreign(folder: Path, tiles: int) -> list[Case]:
    """Other slides."""
    slides = {
        f"mob {s.section}": (s.slide, ("coarse", "other", "stain"))
        for s in read_sheet(folder / "mob.csv", only=list(MOB))
    }
    for name, file in PAIRS.items():
        slide = open_slide(folder / "registration_pairs" / file).with_mpp(ASSUMED_MPP, "assumed")
        right = ("ihc",) if name.startswith("IHC") else ("coarse", "other", "stain")
        slides[name] = (slide, right)
    return [
        Case(name, slide, reference_points(slide, tissue_mask(slide), at_most=tiles), right)
        for name, (slide, right) in slides.items()
    ]


def copies(section: Section, tiles: int) -> list[Case]:
    """Altered copies of one section."""
    slide, mpp = section.slide, section.slide.require_mpp()
    coords = section.coords[evenly(len(section.coords), tiles)]
    cases = [Case(f"blur {um:g} um", blurred(slide, um), coords, ("blur",)) for um in (2.0, 4.0)]
    for factor in (2.0, 0.5):
        wrong = slide.with_mpp(factor * mpp, "wrong")
        cases.append(Case(f"mpp x {factor:g}", wrong, coords, ("mpp",)))
    for name, colour in zip(("green", "blue", "black"), PENS, strict=True):
        cases.append(Case(f"pen {name}", penned(slide, colour), coords, ("ink",), slide))
    return [*cases, Case("fold", folded(slide), coords, ("dark",))]


def judge(watch: Watch, case: Case, usual: NDArray[np.float64]) -> dict[str, Any]:
    """Distance, reason and verdict of a case, against held-out distances."""
    verdict = slide_verdict(watch, case.whole or case.slide)
    found = check_points(watch, case.slide, case.coords, verdict)
    odd = found["ood_distance"].to_numpy()
    truth = np.r_[np.zeros(len(usual)), np.ones(len(odd))]
    named = found.loc[found["ood"], "ood_reason"].astype(str)
    return {
        "case": case.name,
        "auroc": roc_auc_score(truth, np.r_[usual, odd]),
        "flagged": float((odd > 1).mean()),
        "reason right": float(named.isin(case.true).mean()),
        "slide odd": verdict.odd,
        "level": verdict.level,
        "slide reason": verdict.reason,
        "sentence": verdict.sentence,
    }


def main() -> None:
    """Hold out every section in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiles", type=int, default=60)
    parser.add_argument("--hold-out", nargs="+", default=None, help="only these sections")
    args = parser.parse_args()
    bench = Workbench.of(Config(), default_cache())
    sections = read_sheet(args.folder / "her2st.csv")
    others = foreign(args.folder, args.tiles)
    rows, alarms = [], []
    for held in sections:
        if args.hold_out and held.section not in args.hold_out:
            continue
        watch = fit_novelty([s for s in sections if s is not held], bench)
        own = check_points(watch, held.slide, held.coords)
        verdict = slide_verdict(watch, held.slide)
        alarms.append((held.section, own["ood"].mean(), verdict.level, watch.novelty.basis()))
        usual = own["ood_distance"].to_numpy()
        # altered pixels have the file's hash: nothing of them may come from the cache
        plain = FeatureExtractor(watch.extractor.encoder, standardise="none")
        plain.reference_points = args.tiles
        for case in [*others, *copies(held, args.tiles)]:
            rows.append(judge(replace(watch, extractor=plain), case, usual))
            print(held.section, {k: rows[-1][k] for k in rows[-1]}, flush=True)
    table = pd.DataFrame(rows)
    print(table.groupby("case", sort=False)[["auroc", "flagged", "reason right"]].mean().round(3))
    print(table.groupby("case", sort=False)["auroc"].min().round(3).rename("worst AUROC"))
    print("false alarms", *alarms, sep="\n  ")
    print("mean", np.mean([share for _, share, _, _ in alarms]).round(4))


if __name__ == "__main__":
    main()
