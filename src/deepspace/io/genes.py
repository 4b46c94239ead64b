"""Whether the gene names of sections are of one kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from deepspace.io.parts import clip_list

if TYPE_CHECKING:
    from deepspace.io.section import Section

_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")
_VERSION = re.compile(r"\.\d+$")
# two panels of one kind (poly-A and probes, say) share far more than this
_LEAST_SHARED = 0.1
_SAMPLE = 500


def gene_name_problems(sections: Sequence[Section]) -> list[str]:
    """Compare the gene names of every measured section with those of the first one.

    Returns
    -------
    One message per section whose names are of another kind: identifiers against symbols,
    versions of identifiers, upper against mixed case (human against mouse), or other names.
    """
    named = [(s.section, s.counts.var_names) for s in sections if s.counts is not None]
    named = [(section, genes) for section, genes in named if len(genes)]
    return [
        problem
        for section, genes in named[1:]
        if (problem := _compare(named[0][0], named[0][1], section, genes)) is not None
    ]


def _compare(first: str, genes: pd.Index, other: str, others: pd.Index) -> str | None:
    fewest = min(len(genes), len(others))
    shared = len(genes.intersection(others))
    if shared >= _LEAST_SHARED * fewest:
        return None
    some, other_some = (clip_list([*map(str, names[:2])]) for names in (genes, others))
    intro = (
        f"gene names do not match between sections {first} ({some}, ...) and {other} "
        f"({other_some}, ...), {shared} are shared: "
    )
    return intro + _cause(genes, others, fewest)


def _cause(genes: pd.Index, others: pd.Index, fewest: int) -> str:
    if is_ensembl(genes) != is_ensembl(others):
        return "Ensembl identifiers against symbols; use one of the two in all sections"
    if len(_bare(genes).intersection(_bare(others))) >= _LEAST_SHARED * fewest:
        return "identifiers with and without a version (.1); cut the versions off"
    upper, others_upper = genes.str.upper(), others.str.upper()
    if len(upper.unique().intersection(others_upper.unique())) >= _LEAST_SHARED * fewest:
        return (
            "they differ in case only, as human (ERBB2) and mouse (Erbb2) genes do; "
            "put one species into a sheet"
        )
    return "other species or another annotation; put sections with the same genes into a sheet"


def is_ensembl(genes: pd.Index) -> bool:
    """Say whether most of the first names are Ensembl gene identifiers.

    Examples
    --------
    >>> is_ensembl(pd.Index(["ENSG00000141736", "ENSMUSG00000062312.7"]))
    True
    """
    names = [str(name) for name in genes[:_SAMPLE]]
    return sum(bool(_ENSEMBL.match(name)) for name in names) * 2 > len(names)


def _bare(genes: pd.Index) -> pd.Index:
    return genes.astype(str).str.replace(_VERSION, "", regex=True).unique()
