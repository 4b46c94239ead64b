"""`demo`: the main job from end to end on a simulated block, whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from anndata import AnnData, read_h5ad

from deepspace.core import keys
from deepspace.core.config import Config
from deepspace.core.files import atomic_folder, check_output
from deepspace.core.metrics import pearson
from deepspace.core.progress import log
from deepspace.output.plot import law_scores, save
from deepspace.output.text import format_completion, format_law
from deepspace.output.write import write_table
from deepspace.simulate import Block, BlockConfig, simulate_block
from deepspace.workflows.complete import complete
from deepspace.workflows.inspect import inspect

GENES = "expressed:300"


def demo(out: Path | str, *, seed: int = 0, overwrite: bool = False) -> str:
    """Simulate a block of serial sections, complete it, compare with the truth.

    Parameters
    ----------
    out : Path or str
        Folder to write; it appears when everything is done.
    seed : int
        Seed of the block and of the training.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    str
        What was done and found, for a terminal.
    """
    out = Path(out)
    check_output(out, overwrite=overwrite, marker="block/sheet.csv")
    with atomic_folder(out) as folder:
        report = _run(folder, seed)
    return f"{report}\n\nPictures and files: {out}\n{_contents()}"


def _run(folder: Path, seed: int) -> str:
    log.info("1/3 simulating a block of serial sections")
    block = simulate_block(BlockConfig.preset("demo", seed=seed))
    sheet = block.write(folder / "block")
    inspect(sheet, folder / "inspect")
    log.info("2/3 completing it: failed spots, between the spots, the unmeasured section, volume")
    # blanking regions as well would take as long as all the rest; the truth knows every gene
    config = Config(seed=seed).with_values(
        target={"genes": GENES}, complete={"score_within": False, "all_genes": True}
    )
    found = complete(sheet, folder / "completed", config=config)
    unmeasured = block.config.unmeasured[0]
    log.info("3/3 comparing section %s, which was never measured, with the truth", unmeasured)
    at_spots = read_h5ad(folder / "completed" / "sections" / f"{unmeasured}-spots.h5ad")
    truth = score_against_truth(at_spots, block, unmeasured)
    write_table(truth, folder / "truth")
    save(law_scores(truth), folder / "truth.png")
    return f"{format_completion(found)}\n\n{format_law(truth, unmeasured)}"


def score_against_truth(prediction: AnnData, block: Block, section: str) -> pd.DataFrame:
    """Correlation of each predicted gene with the true expression, beside its kind of law.

    Returns
    -------
    DataFrame
        Columns `gene`, `kind`, `truth` (Pearson with the noiseless truth), `score` (the
        model's own held-out score) and `predictable` (its verdict).
    """
    genes = list(prediction.var_names)
    expected = block.truth(section, prediction.obsm[keys.SPATIAL])
    expected = expected[:, [block.genes.index(gene) for gene in genes]]
    return pd.DataFrame(
        {
            "gene": genes,
            "kind": block.law.loc[genes, "kind"].to_numpy(),
            "truth": pearson(expected, prediction.X),
            "score": prediction.var[keys.SCORE].to_numpy(),
            "predictable": prediction.var[keys.PREDICTABLE].to_numpy(),
        }
    )


def _contents() -> str:
    return "\n".join(
        [
            "  inspect/            what was simulated: H&E, spots, counts",
            "  completed/          what `deepspace complete` makes of it:",
            "    report.html       open it first: what to trust, and all of the below on one page",
            "    failed.csv        spots that failed, with the reason",
            "    registration/     serial sections laid over each other, as checkerboards",
            "    evaluation/       scores of whole sections held out: tables, maps",
            "    sections/         every section at its spots and between them, with pictures",
            "    volume*           the block in three dimensions: OME-Zarr, a row of planes",
            "    model/            the saved model",
            "  truth.png           predictions against the simulated truth",
            "  block/              Space Ranger folders with a cohort sheet",
        ]
    )
