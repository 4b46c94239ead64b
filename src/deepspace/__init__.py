"""deepspace: complete a spatial transcriptomics experiment from its H&E, and say what to trust."""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepspace.core.config import Config as Config
    from deepspace.core.config import load_config as load_config
    from deepspace.core.errors import InputError as InputError
    from deepspace.io.section import Section as Section
    from deepspace.io.section import read_section as read_section
    from deepspace.io.section import section_from_anndata as section_from_anndata
    from deepspace.io.sheet import read_sheet as read_sheet
    from deepspace.io.slide import open_slide as open_slide
    from deepspace.model import Model as Model
    from deepspace.models.store import load_model as load_model
    from deepspace.output import plot
    from deepspace.output.section import section_to_anndata as section_to_anndata
    from deepspace.output.section import write_section as write_section

    pl = plot
    from deepspace import pp as pp
    from deepspace import tl as tl
    from deepspace.simulate import simulate_block as simulate_block
    from deepspace.workflows.annotate import AnnotateSettings as AnnotateSettings
    from deepspace.workflows.annotate import annotate as annotate
    from deepspace.workflows.complete import complete as complete
    from deepspace.workflows.demo import demo as demo
    from deepspace.workflows.evaluate import evaluate as evaluate
    from deepspace.workflows.explain import explain as explain
    from deepspace.workflows.export import ExportSettings as ExportSettings
    from deepspace.workflows.export import export as export
    from deepspace.workflows.ihc import ihc_check as ihc_check
    from deepspace.workflows.inspect import inspect as inspect
    from deepspace.workflows.predict import PredictOptions as PredictOptions
    from deepspace.workflows.predict import predict as predict
    from deepspace.workflows.report import write_report as write_report
    from deepspace.workflows.train import train as train

__version__ = metadata.version("deepspace")

# where each public name lives; imported on first use, because torch takes seconds to import
_HOMES = {
    "Config": "deepspace.core.config",
    "ExportSettings": "deepspace.workflows.export",
    "InputError": "deepspace.core.errors",
    "Model": "deepspace.model",
    "Section": "deepspace.io.section",
    "AnnotateSettings": "deepspace.workflows.annotate",
    "PredictOptions": "deepspace.workflows.predict",
    "annotate": "deepspace.workflows.annotate",
    "complete": "deepspace.workflows.complete",
    "demo": "deepspace.workflows.demo",
    "evaluate": "deepspace.workflows.evaluate",
    "explain": "deepspace.workflows.explain",
    "export": "deepspace.workflows.export",
    "ihc_check": "deepspace.workflows.ihc",
    "inspect": "deepspace.workflows.inspect",
    "load_config": "deepspace.core.config",
    "load_model": "deepspace.models.store",
    "open_slide": "deepspace.io.slide",
    "predict": "deepspace.workflows.predict",
    "read_section": "deepspace.io.section",
    "read_sheet": "deepspace.io.sheet",
    "read_provenance": "deepspace.output.write",
    "section_from_anndata": "deepspace.io.section",
    "section_to_anndata": "deepspace.output.section",
    "simulate_block": "deepspace.simulate",
    "write_section": "deepspace.output.section",
    "write_report": "deepspace.workflows.report",
    "train": "deepspace.workflows.train",
}
_MODULES = {
    "pl": "deepspace.output.plot",
    "pp": "deepspace.pp",
    "simulate": "deepspace.simulate",
    "tl": "deepspace.tl",
}

__all__ = ["__version__", *sorted([*_HOMES, *_MODULES])]  # noqa: PLE0604 - all are strings


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'deepspace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
