"""Serial sections of a cohort laid over each other, once, for the models that need it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from deepspace.core.config import Config
from deepspace.core.progress import log
from deepspace.data.cache import ArrayCache
from deepspace.io.section import Section
from deepspace.models.registry import Workbench
from deepspace.output.checkerboard import registered_pair
from deepspace.output.plot import save as save_figure
from deepspace.output.write import write_json
from deepspace.registration.chain import Link, register_stack
from deepspace.registration.quality import Quality
from deepspace.registration.register import Registration
from deepspace.registration.stack import Stack
from deepspace.registration.transform import Arrays, Transform

# raised when registration changes, so that old entries of the cache rest
VERSION = 2
# sections that lie farther apart tell nothing of each other
FAR_UM = 5000.0


@dataclass(frozen=True)
class Registered:
    """Where the sections lie, and the pairs that tell it."""

    stack: Stack
    links: tuple[Link, ...]


def with_stack(bench: Workbench, sections: Sequence[Section]) -> Workbench:
    """The same bench with the places of all sections: models and baselines use neighbours.

    Images alone decide: counts are not looked at, so a section that is held out later may take
    part.
    """
    if bench.stack is not None:
        return bench
    return replace(bench, stack=registered(sections, bench.config, bench.cache).stack)


def registered(
    sections: Sequence[Section], config: Config, cache: ArrayCache | None = None
) -> Registered:
    """Register the sections of every patient, or take the result from the cache.

    Sections that share a scan cannot be told apart by their slide: they keep their places on it.
    """
    hashes = [s.slide.content_hash() for s in sections]
    shared = [s.section for s, h in zip(sections, hashes, strict=True) if hashes.count(h) > 1]
    if shared:
        log.info("registration: %s share a scan and stay as they lie on it", ", ".join(shared))
    sections = [replace(s, z_um=None) if s.section in shared else s for s in sections]
    for line in _odd_depths(sections):
        log.info(line)
    recipe = {
        "kind": "registration",
        "version": VERSION,
        "config": config.registration.model_dump(mode="json"),
        "seed": config.seed,
        "sections": [
            [s.section, s.patient, s.z_um, s.slide.content_hash(), s.slide.require_mpp()]
            for s in sections
        ],
    }

    def make() -> NDArray[np.uint8]:
        stack, links = register_stack(sections, config.registration, seed=config.seed)
        return np.frombuffer(_to_bytes(Registered(stack, tuple(links))), np.uint8)

    found = _from_bytes((make() if cache is None else cache.get(recipe, make)).tobytes())
    for line in _told([s for s in sections if s.section not in shared], found):
        log.info(line)
    return found


def _odd_depths(sections: Sequence[Section]) -> list[str]:
    """Depths that are hardly what was meant."""
    lines = []
    known = sorted((s.patient, s.z_um, s.section) for s in sections if s.z_um is not None)
    for (patient, z, name), (other, more, following) in pairwise(known):
        where = f"note: {name} and {following}, both of {patient}:"
        if patient == other and more == z:
            lines.append(f"{where} z_um is {z:g} twice; give each section its own depth")
        elif patient == other and more - z > FAR_UM:
            lines.append(f"{where} {more - z:g} um lie between them; is z_um in micrometres?")
    return lines


def _told(sections: Sequence[Section], found: Registered) -> list[str]:
    """What a user should know: pairs that were refused, sections that stand alone."""
    lines = [
        f"registration: {link.moving} on {link.fixed} refused: {link.registration.reason()}"
        for link in found.links
        if not link.registration.accepted
    ]
    blocks = [place.block for place in found.stack.places]
    placed = {(place.patient, place.section): place.block for place in found.stack.places}
    for section in sections:
        block = placed[section.patient, section.section]
        others = [s for s in sections if s.patient == section.patient and s is not section]
        if others and blocks.count(block) == 1:
            why = "has no z_um" if section.z_um is None else "matches none of its neighbours"
            lines.append(
                f"section {section.section} {why}: nothing measured on other sections is used there"
            )
    return lines


def _to_bytes(found: Registered) -> bytes:
    """Everything in one safetensors file; JSON values as its metadata."""
    places, arrays = found.stack.state()
    arrays = {f"stack.{name}": array for name, array in arrays.items()}
    links = []
    for number, link in enumerate(found.links):
        pair = link.registration
        maps = {}
        for name, transform in (("transform", pair.transform), ("affine", pair.affine)):
            maps[name], own = transform.state()
            arrays |= {f"{number}.{name}.{k}": array for k, array in own.items()}
        links.append(
            {
                "link": {k: v for k, v in vars(link).items() if k != "registration"},
                "quality": vars(pair.quality),
                "accepted": bool(pair.accepted),
                **maps,
            }
        )
    text = json.dumps({"stack": places, "links": links})
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    # safetensors wants at least one array
    return save({"version": np.array([VERSION]), **arrays}, metadata={"deepspace": text})


def _from_bytes(content: bytes) -> Registered:
    arrays = load(content)
    size = int.from_bytes(content[:8], "little")
    values = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["deepspace"])
    links = []
    for number, saved in enumerate(values["links"]):
        maps = {
            name: Transform.restore(saved[name], _under(f"{number}.{name}.", arrays))
            for name in ("transform", "affine")
        }
        pair = Registration(**maps, quality=Quality(**saved["quality"]), accepted=saved["accepted"])
        links.append(Link(**saved["link"], registration=pair))
    stack = Stack.restore(values["stack"], _under("stack.", arrays))
    return Registered(stack, tuple(links))


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def draw_registration(sections: Sequence[Section], found: Registered, folder: Path) -> None:
    """A checkerboard of every pair that was tried, and their scores as a table."""
    slides = {(s.patient, s.section): s.slide for s in sections}
    for link in found.links:
        moving, fixed = (slides[link.patient, name] for name in (link.moving, link.fixed))
        title = f"{link.moving} on {link.fixed}"
        figure = registered_pair(moving, fixed, link.registration, title=title)
        save_figure(figure, folder / f"{link.moving}-on-{link.fixed}.png")
    pairs = [link.describe() for link in found.links]
    places = [{"section": p.section, "block": p.block, "z_um": p.z_um} for p in found.stack.places]
    write_json({"pairs": pairs, "places": places}, folder / "registration.json")
    values, arrays = found.stack.state()
    write_json(values, folder / "stack.json")
    for name, array in arrays.items():
        np.save(folder / f"stack.{name}.npy", array)
