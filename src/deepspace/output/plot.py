"""Pictures, made with matplotlib's object interface so that no global state changes."""

from deepspace.output.canvas import Backdrop, Points, save
from deepspace.output.clusters import ClusterMap, cluster_maps, cluster_scores, recall_picture
from deepspace.output.law import law_scores
from deepspace.output.maps import GeneMap, expression_maps
from deepspace.output.overview import overview, spot_points, spot_size_um
from deepspace.output.scores import gene_scores, score_summary

__all__ = [
    "Backdrop",
    "ClusterMap",
    "GeneMap",
    "Points",
    "cluster_maps",
    "cluster_scores",
    "expression_maps",
    "gene_scores",
    "law_scores",
    "overview",
    "recall_picture",
    "save",
    "score_summary",
    "spot_points",
    "spot_size_um",
]
