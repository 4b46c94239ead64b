"""The law of expression, and counts drawn from it.

The share of gene ``g`` in the RNA at a point is a softmax within its kind::

    share_g = S_kind * exp(a_g + i_g * z(programme_g) + n_g * f(field_g)) / sum over the kind

``z`` is a standardised property of the tissue in the 55 um around the point, which the image
shows; ``f`` is a smooth field in x, y, z of mean 0 and variance 1, which it does not show.
``i_g`` and ``n_g`` are 0 where a kind does not have them. Because each kind keeps its part
``S_kind`` of the RNA everywhere, no gene inherits the law of another through the library size:
a gene of the kind ``none`` is constant. Counts are negative binomial with mean
``depth * share_g`` and variance ``mean + dispersion_g * mean ** 2``.

One link remains, as in real data: depth follows the tissue, and the logarithm of few counts is
biased by depth. A weak gene of the kind ``none`` therefore correlates with the image by about
0.1 once counts are turned into log1p CP10k, though its true expression is constant.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from scipy import sparse

from deepspace.simulate.config import Genes
from deepspace.simulate.fields import Floats, RandomField
from deepspace.simulate.geometry import SPOT_UM
from deepspace.simulate.tissue import CLASSES, Tissue

PROGRAMMES: Final = (
    "tumour",
    "grade",
    "epithelium",
    "lymphocytes",
    "collagen",
    "stroma",
    "fat",
    "nuclei",
)
N_FIELDS: Final = 4
# RNA of a full spot of each of CLASSES, relative to each other
_RNA: Final = np.array([0.8, 1.25, 1.1, 0.5, 1.15, 0.05, 0.0])
_CLIP = 2.5  # standard deviations: rare tissue must not explode the exponential
_CANDIDATES = 150
_CHUNK = 2000  # points at a time, to bound memory


class Law:
    """Expected expression at any point of a block.

    Parameters
    ----------
    tissue
        The block.
    genes
        How many genes of each kind.
    seed
        Decides the strengths, the levels and the fields.
    z_um
        Lowest and highest section.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per gene: kind (image, neighbours, mixed, none), programme, field (-1: none),
        strength_image, strength_neighbours, strength, level (share of the RNA at z = f = 0
        before the softmax) and dispersion.
    """

    def __init__(self, tissue: Tissue, genes: Genes, seed: int, z_um: tuple[float, float]) -> None:
        rng = np.random.default_rng([seed, 4])
        self._tissue = tissue
        self.table = _draw_table(genes, rng)
        sample = self._sample(rng, z_um)
        raw, rna = self._raw(sample)
        self._mean, self._sd = raw.mean(axis=0), raw.std(axis=0) + 1e-9
        self._rna_median = float(np.median(rna))
        self._fields = self._draw_fields(sample, rng)

    def _sample(self, rng: np.random.Generator, z_um: tuple[float, float]) -> Floats:
        """Points in tissue, to standardise by, (n, 3) um."""
        half = self._tissue.side_um / 2
        points = rng.uniform((-half, -half, z_um[0]), (half, half, z_um[1]), size=(1000, 3))
        glass = self._tissue.composition(points, SPOT_UM / 2)[0][:, CLASSES.index("glass")]
        return points[glass < 0.5]

    def _draw_fields(self, sample: Floats, rng: np.random.Generator) -> list[RandomField]:
        """Hidden fields; of many drawn, those that happen to look least like the image.

        A smooth field has few independent values in a small block, so that one drawn at random
        correlates with the tissue by chance.
        """
        length = 130.0 * min(1.0, self._tissue.side_um / 1500.0)
        visible = np.column_stack([np.ones(len(sample)), self.programmes(sample)])
        fields = [RandomField(rng, self._tissue.box, length, 110.0) for _ in range(_CANDIDATES)]
        values = np.column_stack([field.at(sample) for field in fields])
        explained = visible @ np.linalg.lstsq(visible, values, rcond=None)[0]
        overlap = explained.var(axis=0) / values.var(axis=0)
        return [fields[i] for i in np.argsort(overlap, kind="stable")[:N_FIELDS]]

    def _raw(self, xyz: Floats) -> tuple[Floats, Floats]:
        """Programmes before standardisation (n, 8), and RNA of a spot full of tissue (n,)."""
        parts = [
            self._tissue.composition(xyz[i : i + _CHUNK], SPOT_UM / 2)
            for i in range(0, max(len(xyz), 1), _CHUNK)
        ]
        area, moments = (np.concatenate(part) for part in zip(*parts, strict=True))
        # a spot half on glass holds the same tissue as one in full
        covered = np.maximum(1.0 - area[:, CLASSES.index("glass")], 0.02)[:, None]
        share = dict(zip(CLASSES, (area / covered).T, strict=True))
        nuclei, grade, collagen = (moments / covered).T
        raw = np.column_stack(
            [
                share["tumour"],
                grade,
                share["epithelium"] + share["lumen"],
                share["lymphocytes"],
                collagen,
                share["stroma"],
                share["fat"],
                nuclei,
            ]
        )
        return raw, (area / covered) @ _RNA

    def programmes(self, xyz: Floats) -> Floats:
        """What the image shows around points, (n, 8) in the order of `PROGRAMMES`."""
        return self._standardise(self._raw(xyz)[0])

    def _standardise(self, raw: Floats) -> Floats:
        scores: Floats = np.clip((raw - self._mean) / self._sd, -_CLIP, _CLIP)
        return scores

    def hidden(self, xyz: Floats) -> Floats:
        """The fields that the image does not show, (n, 4)."""
        return np.column_stack([field.at(xyz) for field in self._fields]).astype(float)

    def shares(self, xyz: Floats) -> tuple[Floats, Floats]:
        """What is expected at points ``(n, 3)`` um.

        Returns
        -------
        shares : ndarray
            (n, genes) part of each gene in the RNA; rows sum to 1.
        rna : ndarray
            (n,) RNA of a spot full of this tissue, relative to the median.
        """
        table = self.table
        raw, rna = self._raw(xyz)
        visible, hidden = self._standardise(raw), self.hidden(xyz)
        # genes without a programme or a field have strength 0, so any column serves
        programme = np.array([PROGRAMMES.index(p) if p else 0 for p in table["programme"]])
        field = np.maximum(table["field"].to_numpy(), 0)
        level = table["level"].to_numpy()
        log_rate = np.log(level) + visible[:, programme] * table["strength_image"].to_numpy()
        log_rate += hidden[:, field] * table["strength_neighbours"].to_numpy()
        rate: Floats = np.exp(log_rate)
        for index in table.groupby("kind").indices.values():
            total = level[index].sum()
            rate[:, index] *= total / rate[:, index].sum(axis=1, keepdims=True)
        return rate, rna / self._rna_median


def draw_counts(mean: Floats, dispersion: Floats, rng: np.random.Generator) -> sparse.csr_matrix:
    """Negative binomial counts, as a Poisson whose rate is gamma distributed.

    Parameters
    ----------
    mean
        (n, genes) expected counts.
    dispersion
        (genes,) variance is ``mean + dispersion * mean ** 2``.
    rng
        Source of the noise.
    """
    rate = mean * rng.gamma(1.0 / dispersion, dispersion, size=mean.shape)
    return sparse.csr_matrix(rng.poisson(rate).astype(np.int32))


def _draw_table(genes: Genes, rng: np.random.Generator) -> pd.DataFrame:
    groups = (
        ("IMG", "image", genes.image),
        ("NBR", "neighbours", genes.neighbours),
        ("MIX", "mixed", genes.mixed),
        ("NONE", "none", genes.none),
        ("MT-SIM", "none", genes.mitochondrial),
    )
    names = [f"{prefix}{i + 1:03d}" for prefix, _, n in groups for i in range(n)]
    kind = np.repeat([k for _, k, _ in groups], [n for *_, n in groups])
    order = np.concatenate([np.arange(n) for *_, n in groups])
    n = len(names)
    seen, hidden = np.isin(kind, ["image", "mixed"]), np.isin(kind, ["neighbours", "mixed"])
    weaker = np.where(kind == "mixed", 0.75, 1.0)
    level = np.exp(rng.normal(scale=0.8, size=n))
    image = np.where(seen, rng.uniform(0.4, 0.9, n) * weaker, 0.0)
    neighbours = np.where(hidden, rng.uniform(0.4, 0.9, n) * weaker, 0.0)
    return pd.DataFrame(
        {
            "kind": kind,
            "programme": np.where(seen, np.array(PROGRAMMES)[order % len(PROGRAMMES)], ""),
            "field": np.where(hidden, order % N_FIELDS, -1),
            "strength_image": image,
            "strength_neighbours": neighbours,
            "strength": np.hypot(image, neighbours),
            "level": level / level.sum(),
            "dispersion": np.exp(rng.normal(np.log(0.06), 0.4, n)),
        },
        index=pd.Index(names, name="gene"),
    )
