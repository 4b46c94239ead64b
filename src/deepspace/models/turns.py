"""Which spots a kriging model looks at, and which of them it leaves out in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from deepspace.models.field import Spots

IntArray = NDArray[np.int64]

# spots of one patch, and most patches of one block
PATCH, PATCHES = 600, 3
# blocks of sections that the calibration looks at, and how often it leaves spots out
CALIBRATION_BLOCKS, MOST_TURNS = 8, 6
# a section that is alone is left out in so many regions, each of at least so many spots
REGIONS, LEAST_REGION = 4, 15
NEVER = -1


def patches(spots: Spots, blocks: int, seed: int) -> list[IntArray]:
    """Rows of spots near a few centres, for a look at up to so many blocks of sections.

    A block of up to `PATCH` spots is one patch. One block alone gets up to `PATCHES`.
    """
    rng = np.random.default_rng(seed)
    found = []
    for block in np.unique(spots.block):
        rows = np.flatnonzero(spots.block == block)
        if len(rows) <= PATCH:
            found.append(rows)
            continue
        xy = spots.places.xyz[rows, :2]
        for centre in rng.choice(len(rows), PATCHES, replace=False):
            near = np.argsort(((xy - xy[centre]) ** 2).sum(axis=1), kind="stable")
            found.append(np.sort(rows[near[:PATCH]]))
    most = max(PATCHES, blocks)
    if len(found) > most:
        found = [found[k] for k in np.sort(rng.choice(len(found), most, replace=False))]
    return found


@dataclass(frozen=True)
class Turns:
    """What is left out together.

    Attributes
    ----------
    rows : ndarray of int, shape (looked at,)
        Spots that take part.
    turn : ndarray of int, shape (looked at,)
        When each is left out; `NEVER` if it only teaches.
    group : ndarray of int, shape (looked at,)
        Which section or region it is left out with; several may have the same turn.
    whole : ndarray of bool, shape (looked at,)
        Nothing of its section stays.
    """

    rows: IntArray
    turn: IntArray
    group: IntArray
    whole: NDArray[np.bool_]

    @classmethod
    def of(cls, spots: Spots, rows: IntArray, seed: int) -> Turns:
        """Whole sections where others of their block stay, else regions of a section."""
        turn, group = np.full(len(rows), NEVER), np.full(len(rows), NEVER)
        whole = np.zeros(len(rows), dtype=bool)
        block, home = spots.block[rows], spots.places.home[rows]
        alone = len(np.unique(home)) == 1
        for number in np.unique(block):
            inside = np.flatnonzero(block == number)
            homes = np.unique(home[inside])
            if len(homes) > 1:
                picked = np.linspace(0, len(homes) - 1, min(len(homes), MOST_TURNS)).astype(int)
                for k, one in enumerate(homes[picked]):
                    out = inside[home[inside] == one]
                    turn[out], group[out], whole[out] = k, one, True
                continue
            regions = min(REGIONS, len(inside) // LEAST_REGION)
            if regions > 1:
                means = KMeans(n_clusters=regions, n_init=10, random_state=seed)
                turn[inside] = means.fit_predict(spots.places.xyz[rows[inside], :2])
                group[inside] = turn[inside] if alone else homes[0]
        return cls(rows, turn, group, whole)

    def __iter__(self) -> Iterator[tuple[IntArray, NDArray[np.bool_]]]:
        """Rows that teach, and which of those looked at are left out, for every turn."""
        for number in np.unique(self.turn[self.turn != NEVER]):
            out = self.turn == number
            yield self.rows[~out], out
