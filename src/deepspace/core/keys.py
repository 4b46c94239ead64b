"""Every name that deepspace reads or writes in AnnData, once."""

from typing import Final

# obsm, uns, layers
SPATIAL: Final = "spatial"
UNS: Final = "deepspace"
SD: Final = "sd"
SD_LATENT: Final = "sd_latent"

# obs
IN_TISSUE: Final = "in_tissue"
MEASURED: Final = "measured"
OOD: Final = "ood"
OOD_DISTANCE: Final = "ood_distance"
OOD_REASON: Final = "ood_reason"
ARRAY_ROW: Final = "array_row"
ARRAY_COL: Final = "array_col"
CLUSTER: Final = "cluster"
CLUSTER_PROBABILITY: Final = "cluster_probability"
SECTION: Final = "section"
PATIENT: Final = "patient"

# var
GENE_IDS: Final = "gene_ids"
FEATURE_TYPES: Final = "feature_types"
PREDICTABLE: Final = "predictable"
SCORE: Final = "score"
CEILING: Final = "ceiling"
VERDICT: Final = "verdict"
SCORE_LOW: Final = "score_low"
SCORE_HIGH: Final = "score_high"
P_VALUE: Final = "p_value"
Q_VALUE: Final = "q_value"
