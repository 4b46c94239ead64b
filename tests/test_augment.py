from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepspace.core.errors import InputError
from deepspace.models.augment import BLUR_SIGMA, CROP_AREA, GROUPS, augment

GEOMETRY = ("flips", "rotations", "crop", "elastic")
SEEDS = st.integers(0, 2**63)


def patches(n: int = 3, fields: int = 2, side: int = 23) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(n, fields, 3, side, side, generator=generator)


def ramp(side: int) -> Tensor:
    """Patches (1, 1, 3, s, s) whose first channels say where a pixel was: x, y, 0."""
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy")
    return torch.stack([x, y, 0 * x])[None, None] / side


@settings(max_examples=20, deadline=None)
@given(st.lists(SEEDS, min_size=3, max_size=3))
def test_flips_and_rotations_only_permute_pixels(seeds: Sequence[int]) -> None:
    before = patches()
    after = augment(before, ["flips", "rotations"], seeds)
    assert torch.equal(after.flatten(3).sort().values, before.flatten(3).sort().values)


def test_flips_and_rotations_give_all_eight_ways_to_lay_a_patch_equally_often() -> None:
    n = 800
    corners = torch.arange(4.0).view(1, 1, 1, 2, 2).expand(n, 1, 3, 2, 2) / 4
    laid = augment(corners, ["flips", "rotations"], range(n))
    _, counts = laid[:, 0, 0].flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 8
    assert counts.min() > 0.6 * n / 8  # four standard deviations


@pytest.mark.parametrize("name", GROUPS)
@settings(max_examples=10, deadline=None)
@given(seeds=st.lists(SEEDS, min_size=5, max_size=5), rows=st.sets(st.integers(0, 4), min_size=1))
def test_an_example_depends_on_its_seed_alone(name: str, seeds: list[int], rows: set[int]) -> None:
    before = patches(5)
    chosen = sorted(rows, reverse=True)
    alone = augment(before[chosen], [name], [seeds[row] for row in chosen])
    assert torch.equal(alone, augment(before, [name], seeds)[chosen])


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_changes_patches_by_the_seed_and_leaves_its_input(name: str) -> None:
    before = patches(1)
    kept = before.clone()
    results = [augment(before, [name], [seed]) for seed in range(8)]
    assert torch.equal(before, kept)
    assert sum(not torch.equal(result, before) for result in results) >= 5
    assert any(not torch.equal(result, results[0]) for result in results)
    assert results[0].shape == before.shape


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.3, 1.0]))
def test_values_stay_in_range(seed: int, level: float) -> None:
    before = patches(2)
    before[0] = level
    after = augment(before, GROUPS, [seed, seed])
    assert after.isfinite().all()
    assert after.min() >= 0
    assert after.max() <= 1


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_a_constant_patch_stays_constant_under_geometry_and_blur(seed: int) -> None:
    colour = torch.tensor([0.2, 0.5, 0.9]).view(1, 1, 3, 1, 1)
    before = colour.expand(1, 2, 3, 24, 24)
    torch.testing.assert_close(augment(before, [*GEOMETRY, "blur"], [seed]), before)


def test_order_of_names_does_not_matter_and_groups_draw_apart() -> None:
    before = patches()
    seeds = [3, 4, 5]
    turned = augment(before, ["rotations"], seeds)
    both = augment(before, ["noise", "rotations"], seeds)
    assert torch.equal(both, augment(before, ["rotations", "noise"], seeds))
    # the turn is the same with noise after it, and the noise is what it is alone
    assert (both - turned).abs().mean() < 0.03 < (both - before).abs().mean()
    grey = torch.full_like(before, 0.5)
    assert torch.equal(
        augment(grey, ["noise"], seeds), augment(grey, ["noise", "rotations"], seeds)
    )


def test_fields_of_view_of_an_example_share_all_but_noise() -> None:
    one = patches(4, fields=1)
    names = [name for name in GROUPS if name != "noise"]
    after = augment(one.expand(-1, 3, -1, -1, -1), names, range(4))
    assert torch.equal(after[:, 0], after[:, 2])
    noisy = augment(one.expand(-1, 3, -1, -1, -1), ["noise"], range(4))
    assert not torch.equal(noisy[:, 0], noisy[:, 2])


def test_a_crop_keeps_the_area_it_says() -> None:
    side, n = 32, 200
    after = augment(ramp(side).expand(n, -1, -1, -1, -1), ["crop"], range(n))
    # steps between neighbours, in pixels of the patch before; mirrored borders are left out
    across = (after[:, 0, 0, :, 2:-2].diff(dim=-1) * side).mean((1, 2))
    down = (after[:, 0, 1, 2:-2].diff(dim=-2) * side).mean((1, 2))
    area = across * down
    assert area.min() >= CROP_AREA[0] - 1e-3
    assert area.max() <= 1 + 1e-3
    assert area.max() - area.min() > 0.25
    assert (across / down).max() <= 1.1 + 1e-3
    assert (across / down).min() >= 1 / 1.1 - 1e-3


def test_elastic_moves_pixels_a_little_and_smoothly() -> None:
    side, n = 64, 40
    before = ramp(side).expand(n, -1, -1, -1, -1)
    inner = slice(8, -8)
    moved = ((augment(before, ["elastic"], range(n)) - before) * side)[:, 0, :2, inner, inner]
    assert 0.2 < moved.std() < 2  # pixels; the sd is at most 0.02 * 64
    assert moved.diff(dim=-1).abs().max() < 0.6  # below 1 the picture does not fold


def test_colour_leaves_white_glass_near_white_and_keeps_order() -> None:
    n = 50
    greys = torch.linspace(0.1, 1, 10).view(1, 1, 1, 1, 10).expand(n, 1, 3, 10, 10)
    after = augment(greys, ["colour"], range(n))
    assert after[..., -1].min() > 0.9
    assert (after.diff(dim=-1) >= 0).all()
    # a grey has no hue: its channels stay alike
    assert (after.amax(2) - after.amin(2)).max() < 1e-5
    assert 0.05 < (after - greys).abs().amax() < 0.3


def test_blur_spreads_a_point_by_its_sigma() -> None:
    side, n = 31, 100
    point = torch.zeros(n, 1, 3, side, side)
    point[..., side // 2, side // 2] = 1
    after = augment(point, ["blur"], range(n))[:, 0, 0]
    torch.testing.assert_close(after.sum((1, 2)), torch.ones(n))
    offsets = torch.arange(side) - side // 2
    for profile in (after.sum(1), after.sum(2)):
        sigma = (profile * offsets.square()).sum(1).sqrt()
        assert sigma.max() <= BLUR_SIGMA
        assert sigma.max() > 0.9 * BLUR_SIGMA
        assert sigma.min() < 0.3


def test_noise_has_the_sd_it_says() -> None:
    grey = torch.full((100, 1, 3, 40, 40), 0.5)
    noise = (augment(grey, ["noise"], range(100)) - grey).flatten(1)
    sd = noise.std(1)
    assert 0.027 < sd.max() < 0.031
    assert sd.min() < 0.003
    assert noise.mean().abs() < 2e-4


def test_unknown_groups_are_all_listed_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"groups blurr, tilt; take some of flips.*noise"):
        augment(patches(), ["tilt", "flips", "blurr"], [0, 1, 2])


def test_one_seed_an_example() -> None:
    with pytest.raises(ValueError, match="2 seeds for 3"):
        augment(patches(), ["flips"], [0, 1])
    assert augment(patches()[:0], GROUPS, []).shape == (0, 2, 3, 23, 23)
