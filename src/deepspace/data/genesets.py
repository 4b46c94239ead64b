"""Gene sets: GMT files, the sets that come with deepspace, and which of their genes are here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from deepspace.core.errors import InputError, Problems
from deepspace.core.files import atomic_path
from deepspace.core.progress import log
from deepspace.io.genes import is_ensembl
from deepspace.io.text import read_text

BUILTIN = Path(__file__).parent.parent / "genesets"
_SUSPECT = re.compile(r"[\s,;]")


@dataclass(frozen=True)
class GeneSet:
    """Genes that stand for a tissue, a cell type or a process.

    Attributes
    ----------
    name : str
    description : str
        What it is and where it comes from; a link in many public files.
    genes : tuple of str
        Symbols, each once.
    source : str
        File that it was read from, without its folder.
    """

    name: str
    description: str
    genes: tuple[str, ...]
    source: str


def read_gmt(path: Path) -> list[GeneSet]:
    """Read a GMT file: one set a line, as name, description and genes, separated by tabs.

    Empty lines and lines that start with ``#`` are passed over, and so are tabs at the end of a
    line; a gene that a line has twice counts once.

    Raises
    ------
    InputError
        With all faults and their line numbers: no tabs, no name, no genes, a name that occurs
        twice, an entry that cannot be a gene.
    """
    problems = Problems(str(path))
    found: dict[str, GeneSet] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.rstrip("\t\r ").split("\t")]
        fault = _fault(fields)
        if fault is None and fields[0] in found:
            fault = f"set {fields[0]!r} is also in line {lines[fields[0]]}; rename one of them"
        if fault is not None:
            problems.add(f"line {number}: {fault}")
            continue
        genes = tuple(dict.fromkeys(fields[2:]))
        found[fields[0]] = GeneSet(fields[0], fields[1], genes, path.name)
        lines[fields[0]] = number
    if not found and not problems:
        problems.add("holds no gene set; one line is name, description, genes, separated by tabs")
    problems.raise_if_any()
    return list(found.values())


def _fault(fields: Sequence[str]) -> str | None:
    """What is wrong with the fields of a line; None if nothing is."""
    if len(fields) < 2:
        return "has no tabs; a line is name, description, genes, separated by tabs"
    if not fields[0]:
        return "has no name in its first field"
    if len(fields) < 3:
        return f"set {fields[0]!r} has no genes (its second field is the description)"
    strange = [gene for gene in fields[2:] if not gene or _SUSPECT.search(gene)]
    if strange:
        return f"set {fields[0]!r}: {strange[0]!r} is no gene; give symbols only, tab after tab"
    return None


def write_gmt(sets: Iterable[GeneSet], path: Path) -> None:
    """Write sets as a GMT file that `read_gmt` reads back."""
    lines = ["\t".join([s.name, s.description, *s.genes]) + "\n" for s in sets]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def gene_sets(files: Sequence[Path], *, builtin: bool) -> list[GeneSet]:
    """Sets of all files, after those of deepspace where `builtin` is set.

    A set of a file takes the place of one of deepspace that has the same name.

    Raises
    ------
    InputError
        As `read_gmt`; or if two of the files have a set of the same name, or there is no set.
    """
    own: dict[str, GeneSet] = {}
    problems = Problems("--gmt")
    for path in files:
        with problems.collect():
            for found in read_gmt(path):
                if found.name in own:
                    where = own[found.name].source
                    problems.add(f"set {found.name!r} is in {where} and {path}; rename one of them")
                own[found.name] = found
    problems.raise_if_any()
    ours = [s for path in sorted(BUILTIN.glob("*.gmt")) for s in read_gmt(path)] if builtin else []
    for replaced in [s for s in ours if s.name in own]:
        log.info("gene set %s: that of %s is used", replaced.name, own[replaced.name].source)
    sets = [*(s for s in ours if s.name not in own), *own.values()]
    if not sets:
        raise InputError("no gene sets: give a file with --gmt, or leave --no-builtin out")
    return sets


@dataclass(frozen=True)
class MatchedSet:
    """A gene set and the columns of a table that its genes are.

    Attributes
    ----------
    gene_set : GeneSet
    columns : tuple of int
        In the order of the table.
    """

    gene_set: GeneSet
    columns: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.gene_set.name


def match_sets(sets: Sequence[GeneSet], names: Sequence[str]) -> list[MatchedSet]:
    """Find the genes of sets among the names of a table's genes.

    A name that is not there as it is written is looked for in capitals: human (ERBB2) and mouse
    (Erbb2) genes that are called alike are mostly orthologues. Names that differ in case alone
    inside the table match only as written.

    Raises
    ------
    InputError
        If no gene of any set is found.

    Examples
    --------
    >>> found = match_sets([GeneSet("a", "", ("ERBB2", "ESR1"), "x.gmt")], ["Krt8", "Erbb2"])
    >>> found[0].columns
    (1,)
    """
    exact = {name: column for column, name in enumerate(names)}
    folded: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        folded.setdefault(name.upper(), []).append(column)
    by_case: set[str] = set()

    def column_of(gene: str) -> int | None:
        if gene in exact:
            return exact[gene]
        near = folded.get(gene.upper(), [])
        if len(near) != 1:
            return None
        by_case.add(gene)
        return near[0]

    matched = []
    for one in sets:
        columns = {c for gene in one.genes if (c := column_of(gene)) is not None}
        matched.append(MatchedSet(one, tuple(sorted(columns))))
    if not any(m.columns for m in matched):
        raise InputError(_nothing(sets, names))
    if by_case:
        log.info(
            "%d genes of the sets match in capitals only (human and mouse names are taken as the "
            "same gene), as %s",
            len(by_case),
            min(by_case),
        )
    return matched


def _nothing(sets: Sequence[GeneSet], names: Sequence[str]) -> str:
    cause = "are they of the same species and named alike? Give fitting sets with --gmt"
    if is_ensembl(pd.Index(names)) != is_ensembl(pd.Index(sets[0].genes)):
        cause = "one has Ensembl identifiers, the other symbols; give sets in the other kind"
    return (
        f"none of the genes of {len(sets)} gene sets ({sets[0].genes[0]}, ...) is among the "
        f"{len(names)} predicted ones ({names[0]}, ...): {cause}"
    )
