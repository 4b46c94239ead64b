"""Places of a cohort's sections: from the cache the same, and never guessed."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepspace.core.config import Config
from deepspace.data.cache import ArrayCache
from deepspace.io.section import Section
from deepspace.models.registry import Workbench
from deepspace.registration.chain import Link
from deepspace.registration.quality import Quality
from deepspace.registration.register import Registration
from deepspace.registration.stack import Stack, identity_stack
from deepspace.registration.transform import Field, Transform
from deepspace.workflows import stacking
from deepspace.workflows.stacking import _odd_depths, registered, with_stack
from make_sections import lattice, make_section


@pytest.fixture
def sections(tmp_path: Path) -> list[Section]:
    made = [make_section(tmp_path, name, np.ones((16, 2)), lattice(4)) for name in ("A", "B")]
    return [replace(s, z_um=20.0 * k) for k, s in enumerate(made)]


def bent() -> Transform:
    rng = np.random.default_rng(0)
    return Transform(np.eye(3), Field((0.0, 0.0), 50.0, rng.normal(size=(4, 5, 2))))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Registration that takes no time, and how many sections each call was of."""
    seen: list[int] = []

    def register(sections: list[Section], config: object, *, seed: int) -> tuple[Stack, list[Link]]:
        seen.append(sum(s.z_um is not None for s in sections))
        stack = identity_stack(sections)
        places = (stack.places[0], replace(stack.places[1], transform=bent()))
        quality = Quality(0.9, 0.1, 0.3, 0.2, 1.0)
        pair = Registration(bent(), Transform.identity(), quality, accepted=False)
        return Stack(places), [Link("P", "B", "A", pair, None)]

    monkeypatch.setattr(stacking, "register_stack", register)
    return seen


def test_the_cache_gives_back_what_was_registered(
    sections: list[Section], calls: list[int], tmp_path: Path
) -> None:
    cache = ArrayCache(tmp_path / "cache")
    first = registered(sections, Config(), cache)
    again = registered(sections, Config(), cache)
    assert calls == [2]
    points = lattice(5)
    for a, b in zip(first.stack.places, again.stack.places, strict=True):
        assert (a.transform.forward(points) == b.transform.forward(points)).all()
        assert (a.section, a.block, a.z_um, a.mpp) == (b.section, b.block, b.z_um, b.mpp)
    (one,), (other,) = first.links, again.links
    assert one.registration.quality == other.registration.quality
    moved = [link.registration.transform.forward(points) for link in (one, other)]
    assert (moved[0] == moved[1]).all()
    registered(sections, Config(seed=1), cache)
    assert calls == [2, 2]


def test_refusals_are_told(
    sections: list[Section], calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        registered(sections, Config())
    assert "B on A refused" in caplog.text


def test_sections_on_one_scan_stay_as_they_lie(
    sections: list[Section], calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    twin = replace(sections[0], section="twin", z_um=5.0)
    with caplog.at_level(logging.INFO):
        registered([sections[0], twin], Config())
    assert calls == [0]
    assert "A, twin share a scan" in caplog.text


def test_a_bench_is_given_its_stack_once(sections: list[Section], calls: list[int]) -> None:
    found = with_stack(Workbench.of(Config()), sections)
    assert found.stack is not None
    assert with_stack(found, sections) is found
    assert calls == [2]


def test_depths_that_can_hardly_be_meant_are_noted(tmp_path: Path) -> None:
    coords = lattice(4)
    one, two, three, other = (
        replace(make_section(tmp_path, name, np.ones((16, 2)), coords), z_um=z, patient=patient)
        for name, z, patient in (
            ("A", 0.0, "P"),
            ("B", 0.0, "P"),
            ("C", 1e30, "P"),
            ("D", 0.0, "Q"),
        )
    )
    twice, far = _odd_depths([three, other, two, one])
    assert "A and B" in twice
    assert "B and C" in far
    assert _odd_depths([one, other]) == []
