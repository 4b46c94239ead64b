"""Pictures, made with matplotlib's object interface so that no global state changes."""

from deepspace.output.canvas import Backdrop, Points, save
from deepspace.output.law import law_scores
from deepspace.output.maps import GeneMap, expression_maps
from deepspace.output.overview import overview, spot_points, spot_size_um
from deepspace.output.scores import gene_scores, score_summary

__all__ = [
    "Backdrop",
    "GeneMap",
    "Points",
    "expression_maps",
    "gene_scores",
    "law_scores",
    "overview",
    "save",
    "score_summary",
    "spot_points",
    "spot_size_um",
]
