"""Registration on real pairs: landmark error, acceptance and refusal, time.

    python benchmarks/registration.py ../shared/data --out registration.csv

Landmarks (BIRL, Borovec et al., IEEE Transactions on Medical Imaging 39:3042, 2020) are used for
scoring alone. `floor_px` is what the best affine map of the landmarks themselves leaves.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from deepspace.io.slide import Slide, open_slide
from deepspace.output.canvas import save
from deepspace.output.checkerboard import registered_pair
from deepspace.registration.register import landmark_errors, register

# the scale of the landmark pairs is not known: any that a slide of tissue can have
ASSUMED_MPP = 10.0

SLIDES = {
    "kidney HE": ("registration_pairs/Rat-Kidney_HE.jpg", ASSUMED_MPP),
    "kidney PanCK": ("registration_pairs/Rat-Kidney_PanCytokeratin.jpg", ASSUMED_MPP),
    "lung HE": ("registration_pairs/Izd2-29-041-w35_HE.jpg", ASSUMED_MPP),
    "lung proSPC": ("registration_pairs/Izd2-29-041-w35_proSPC.jpg", ASSUMED_MPP),
    **{f"her2st {s}": (f"her2st/images/{s}.jpg", 0.687) for s in ("C2", "C3", "C5", "C6")},
    **{f"her2st {s}": (f"her2st_lowres/images/{s}.png", 3.19) for s in ("A1", "A2")},
    **{f"mob {s}": (f"mob/images/{s}.jpg", 2.75) for s in ("01", "04", "09")},
}
RELATED = [
    ("kidney HE", "kidney PanCK"),
    ("lung HE", "lung proSPC"),
    ("her2st C3", "her2st C2"),
    ("her2st C5", "her2st C3"),
    ("her2st C6", "her2st C5"),
    ("her2st C5", "her2st C2"),
    ("her2st C6", "her2st C3"),
    ("her2st A2", "her2st A1"),
]
UNRELATED = [
    ("her2st C2", "mob 04"),
    ("kidney HE", "lung HE"),
    ("her2st C2", "her2st A1"),
    ("her2st C6", "her2st A2"),
    ("her2st C5", "mob 09"),
    ("her2st C2", "mob 01"),
    ("mob 04", "mob 09"),
]


def landmarks(folder: Path, moving: str, fixed: str) -> list[np.ndarray]:
    """Corresponding points of both slides, px; some have a few more on one of them."""
    files = [(folder / SLIDES[name][0]).with_suffix(".csv") for name in (moving, fixed)]
    tables = [pd.read_csv(file, index_col=0).to_numpy(float) for file in files]
    return [table[: min(map(len, tables))] for table in tables]


def affine_floor(one: np.ndarray, two: np.ndarray) -> float:
    """Median error, px, of the affine map fitted to the landmarks."""
    design = np.column_stack([one, np.ones(len(one))])
    fitted = design @ np.linalg.lstsq(design, two, rcond=None)[0]
    return float(np.median(np.hypot(*(fitted - two).T)))


def main() -> None:
    """Register every pair and write one row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("registration.csv"))
    parser.add_argument("--pictures", type=Path, help="folder of checkerboards")
    options = parser.parse_args()

    def slide(name: str) -> Slide:
        path, mpp = SLIDES[name]
        return open_slide(options.data / path).with_mpp(mpp, "benchmark")

    rows = []
    for related, pairs in ((True, RELATED), (False, UNRELATED)):
        for moving, fixed in pairs:
            one, two = slide(moving), slide(fixed)
            start = time.process_time()
            found = register(one, two)
            row = {
                "moving": moving,
                "fixed": fixed,
                "related": related,
                "accepted": found.accepted,
                **vars(found.quality),
                "cpu_s": time.process_time() - start,
            }
            if moving.endswith("HE") and related:
                points = landmarks(options.data, moving, fixed)
                errors = landmark_errors(found.transform, *(p * ASSUMED_MPP for p in points))
                median = float(np.median(errors)) / ASSUMED_MPP
                row |= {
                    "median_px": median,
                    "of_diagonal": median / float(np.hypot(two.width, two.height)),
                    "floor_px": affine_floor(*points),
                }
            rows.append(row)
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                name = f"{moving} on {fixed}.png".replace(" ", "_")
                save(registered_pair(one, two, found), options.pictures / name)
    pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
