"""Whether a model is better than what it stands beside, on patients, sections or regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from deepspace.data.splits import LEAST_REGION, SplitOptions, blocks

SlotT = TypeVar("SlotT")
FloatArray = NDArray[np.float64]

# parts of a section that count as one observation each: spots beside each other are no two
REGIONS = 4
# patients, or else sections, from which on they are what is counted
LEAST_UNITS = 3
LEVEL = 0.95


def compare_models(
    held_out: Mapping[str, Any],
    better: Callable[[Any, str, str], FloatArray | None],
    models: Sequence[str],
    others: Sequence[str],
) -> list[dict[str, Any]]:
    """Compare every model with every baseline on the same held-out spots.

    Parameters
    ----------
    held_out : mapping
        A slot per section.
    better : callable
        Tells spot by spot how much better one is than the other.
    models, others : sequence of str
        Names in the slots.

    Returns
    -------
    list of dict
        `model`, `against`, `difference` (mean over the spots of a section, then over sections),
        `low` and `high` (95 % t interval; None with one observation), `over` and `number` (what
        counts as one observation, and how many there are: patients or else sections, from three
        on; regions, four a section, otherwise) and `beats`: the whole interval is above 0.
        Regions of a section share its model: their interval tells of these sections alone.
    """
    found = []
    for model in models:
        for other in others:
            told = [
                (slot.section, difference)
                for slot in held_out.values()
                for difference in [better(slot, model, other)]
                if difference is not None and not np.isnan(difference).all()
            ]
            if told:
                found.append({"model": model, "against": other, **_interval(told)})
    return found


def _interval(told: Sequence[tuple[Any, FloatArray]]) -> dict[str, Any]:
    """Mean difference over sections, and how sure that is."""
    means = pd.Series([float(np.nanmean(d)) for _, d in told])
    patients = means.groupby([section.patient for section, _ in told]).mean()
    if len(patients) >= LEAST_UNITS:
        over, units = "patients", patients.to_numpy()
    elif len(means) >= LEAST_UNITS:
        over, units = "sections", means.to_numpy()
    else:
        over = "regions"
        units = np.array([mean for pair in told for mean in _by_region(*pair)])
    middle, half = float(means.mean()), None
    if len(units) > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(units) - 1)) * float(stats.sem(units))
    low, high = (None, None) if half is None else (middle - half, middle + half)
    return {
        "difference": round(middle, 4),
        "low": None if low is None else round(low, 4),
        "high": None if high is None else round(high, 4),
        "over": over,
        "number": len(units),
        "beats": low is not None and low > 0,
    }


def _by_region(section: Any, difference: FloatArray) -> list[float]:
    """Mean difference in each region of a section."""
    regions = min(REGIONS, len(section.coords) // LEAST_REGION)
    labels = np.zeros(len(section.coords), dtype=np.int64)
    if regions > 1:
        labels = blocks(section, SplitOptions(folds=regions))
    parts = (difference[labels == k] for k in np.unique(labels))
    # a region without any labelled spot tells nothing
    return [float(np.nanmean(part)) for part in parts if not np.isnan(part).all()]
