"""Sphinx: how the documentation site is built.

`python -m sphinx -W --keep-going docs build/docs` executes the tutorials (MyST-NB; results are kept
in `build/jupyter-cache`) and writes the command reference from the program itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from deepspace import __version__  # noqa: E402

# tutorials do not depend on the home folder; several threads are slower on small matrices
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DEEPSPACE_CACHE", str(HERE.parent / "build" / "docs-cache"))

project = "deepspace"
author = "The deepspace developers"
copyright = "the deepspace developers, BSD-3-Clause"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",  # equations are drawn without a network
    "command_reference",
]
exclude_patterns = ["_ext", "**.ipynb_checkpoints"]
root_doc = "index"

html_theme = "sphinx_book_theme"
html_title = f"deepspace {version}"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": True,
    "use_download_button": False,
}
html_last_updated_fmt = ""

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4

nb_execution_mode = os.environ.get("DEEPSPACE_DOCS_EXECUTE", "cache")
nb_execution_cache_path = str(HERE.parent / "build" / "jupyter-cache")
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_execution_show_tb = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings tell types, with shapes and units
autosummary_generate = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# interactive parts of shell sessions are not copied
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
