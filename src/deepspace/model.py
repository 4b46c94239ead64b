"""A model as an object: train, look at its scores, predict, save, load."""

from __future__ import annotations

import html
import shutil
from pathlib import Path

import pandas as pd
from anndata import AnnData

from deepspace.core.config import Config
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, check_output
from deepspace.io.section import Section, section_from_anndata
from deepspace.io.slide import Slide
from deepspace.models.store import ModelCard, read_card
from deepspace.output.text import NOUNS
from deepspace.workflows.cohort import Cohort
from deepspace.workflows.predict import PredictOptions, predict
from deepspace.workflows.train import Trained, train, write_trained

MARKER = "model.json"


class Model:
    """A trained model with the honest scores that it carries.

    Made by `Model.train` or `Model.load`.

    Examples
    --------
    >>> model = Model.train("cohort.csv", genes="expressed:300")  # doctest: +SKIP
    >>> model.scores.query("verdict == 'predictable'")  # doctest: +SKIP
    >>> model.save("model")  # doctest: +SKIP
    >>> between = Model.load("model").predict(section, at="between")  # doctest: +SKIP
    """

    def __init__(self, source: Trained | Path, card: ModelCard) -> None:
        self._source = source
        self.card = card

    @classmethod
    def train(
        cls,
        sections: Cohort,
        *,
        model: str | None = None,
        genes: str | None = None,
        encoder: str | None = None,
        config: Config | None = None,
    ) -> Model:
        """Learn from the measured sections, scored on held-out ones.

        Parameters
        ----------
        sections : Path, str or sequence of Section
            Cohort sheet, a Space Ranger ``outs/`` folder, or sections in memory.
        model, genes, encoder : str, optional
            As on the command line: ``kriging``, ``expressed:300``, ``dinov2-s``; in place of
            what `config` says.
        config : Config, optional
            Everything else; see `deepspace.load_config`.

        Raises
        ------
        InputError
            If the cohort or the configuration is wrong, all faults listed.
        """
        settings = (config or Config()).with_values(
            target={"genes": genes}, encoder={"name": encoder}
        )
        trained = train(sections, model=model, config=settings)
        return cls(trained, trained.card)

    @classmethod
    def load(cls, folder: Path | str) -> Model:
        """Model that `save` or ``deepspace train`` wrote.

        Raises
        ------
        InputError
            If the folder is no model or is damaged.
        """
        return cls(Path(folder), read_card(Path(folder)))

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write the model, its card, its evaluation and ``report.html`` into a folder.

        Raises
        ------
        InputError
            If `folder` exists and `overwrite` is false, or it is no model.
        """
        out = Path(folder)
        check_output(out, overwrite=overwrite, marker=MARKER)
        if isinstance(self._source, Trained):
            write_trained(self._source, out)
        elif self._source.resolve() != out.resolve():
            with atomic_folder(out) as temporary:
                shutil.copytree(self._source, temporary, dirs_exist_ok=True)
        self._source = out

    def predict(
        self,
        section: Section | AnnData | Path | str,
        image: Path | str | Slide | None = None,
        *,
        at: str = "spots",
        mpp: float | None = None,
        options: PredictOptions | None = None,
    ) -> AnnData:
        """Predict a section; its own counts are never looked at.

        Parameters
        ----------
        section : Section, AnnData, Path or str
            What to predict; a sheet or ``outs/`` folder of one section; or AnnData, whose
            `obsm['spatial']` are the spots.
        image : Path, str or Slide, optional
            Full-resolution image of an AnnData object.
        at : str
            ``spots``, ``between`` (super-resolution) or ``grid:UM``.
        mpp : float, optional
            Micrometres per pixel of `image`.
        options : PredictOptions, optional
            What is left out, and where networks run.

        Returns
        -------
        AnnData
            As `deepspace.predict` returns it.

        Raises
        ------
        InputError
            If the section is wrong.
        """
        if isinstance(section, AnnData):
            if image is None:
                raise InputError("image: AnnData has no full-resolution image; give its path")
            section = section_from_anndata(section, image, mpp=mpp, measured=False)
        return predict(self._source, section, at=at, options=options)

    @property
    def scores(self) -> pd.DataFrame:
        """Each gene or cluster: verdict, held-out score with its interval, noise ceiling."""
        rows = [column.model_dump() for column in self.card.columns]
        return pd.DataFrame(rows).set_index("name")

    @property
    def training(self) -> pd.DataFrame:
        """Each training section: patient, spots, pixel size, hash of its slide."""
        return pd.DataFrame([t.model_dump() for t in self.card.training]).set_index("section")

    def _facts(self) -> dict[str, str]:
        verdicts = self.scores["verdict"].value_counts()
        return {
            "model": self.card.model,
            "encoder": self.card.encoder.config.name,
            "predicts": f"{len(self.card.columns)} {NOUNS[self.card.kind]}: "
            + ", ".join(f"{verdicts.get(v, 0)} {v}" for v in ("predictable", "weak", "no")),
            "learnt from": ", ".join(self.training.index),
            "held out by": str(self.card.scores.get("split", "not recorded")),
            "saved": "no" if isinstance(self._source, Trained) else str(self._source),
        }

    def __repr__(self) -> str:
        """Facts on one line each."""
        lines = [f"    {name}: {value}" for name, value in self._facts().items()]
        return "\n".join(["deepspace.Model", *lines])

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._facts().items()
        )
        return f"<table>{rows}</table>"
