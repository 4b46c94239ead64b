"""A folder as `complete` writes it, whose predictions are the simulated truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.output.write import prediction_anndata, write_prediction
from deepspace.registration.stack import Place, Stack
from deepspace.registration.transform import Transform
from deepspace.simulate import Block


def predicted(block: Block, section: Section, coords: np.ndarray, names: list[str]) -> AnnData:
    """The truth as a prediction."""
    truth = block.truth(section.section, coords).astype(np.float32)
    genes = block.genes
    obs = pd.DataFrame(index=names).assign(measured=False, in_tissue=True, ood=False)
    obs["ood_distance"] = np.linspace(0.1, 1.2, len(obs))
    obs["ood"] = obs["ood_distance"] > 1
    verdicts = np.resize(["predictable", "weak", "no"], len(genes))
    var = pd.DataFrame({"verdict": verdicts, "score": np.linspace(0.9, 0.1, len(genes))}, genes)
    var["predictable"] = var["verdict"] == "predictable"
    values = {"mean": truth, "sd": truth * 0 + 0.5, "sd_latent": truth * 0 + 0.2}
    record = {"at": "spots", "target": "expression", "section": section.section}
    return prediction_anndata(
        values, coords, obs, var, section=section, provenance=record, spot_diameter_px=110.0
    )


def write_completed(block: Block, root: Path) -> Path:
    """Write block and folder under `root`; return the folder."""
    sheet = block.write(root / "block")
    out = root / "completed"
    places = []
    for section in read_sheet(sheet):
        assert section.spots is not None
        spots = section.spots[section.spots["in_tissue"]]
        found = predicted(
            block, section, spots[["x", "y"]].to_numpy(float), list(spots.index.astype(str))
        )
        write_prediction(found, out / "sections" / f"{section.section}-spots.h5ad")
        transform = Transform.identity()
        mpp = section.slide.require_mpp()
        digest = section.slide.content_hash()
        places.append(Place(section.section, "P1", digest, mpp, section.z_um, transform, "block"))
    values, _ = Stack(tuple(places)).state()
    (out / "registration").mkdir()
    (out / "registration" / "stack.json").write_text(json.dumps(values))
    (out / "summary.json").write_text(json.dumps({"sheet": "../block/sheet.csv"}))
    return out
