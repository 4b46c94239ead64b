"""Random changes of patches that leave their spot's expression as it is, in named groups."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from deepspace.core.errors import InputError

Group = Callable[[Tensor, Sequence[Generator]], Tensor]

CROP_AREA = (0.64, 1.0)  # part of the patch that is kept
CROP_ASPECT = 1.1  # largest width to height of what is kept, or height to width
ELASTIC_NODES = 6  # nodes of the displacement field along a side
ELASTIC_SD = 0.02  # largest sd of a node's displacement, in sides of the patch
BRIGHTNESS = 0.1  # largest change of optical density, natural logarithm
CONTRAST = 0.2  # largest logarithm of the factor of optical density
SATURATION = 0.2  # largest logarithm of the factor of a colour's distance from grey
HUE = 0.1  # largest turn about grey, radians
BLUR_SIGMA = 1.5  # pixels
NOISE_SD = 0.03  # on the scale 0-1
_FLOOR = 0.5 / 255  # darker is as dark as half a grey level


def _draw(generators: Sequence[Generator], n: int, like: Tensor) -> Tensor:
    """Draw n numbers in 0..1 an example, (b, n); on the processor, so the same on every device."""
    drawn = torch.stack([torch.rand(n, generator=generator) for generator in generators])
    return drawn.to(like.device, like.dtype)


def _flips(patches: Tensor, generators: Sequence[Generator]) -> Tensor:
    chosen = (_draw(generators, 2, patches) < 0.5).view(-1, 2, 1, 1, 1, 1)
    patches = torch.where(chosen[:, 0], patches.flip(-1), patches)
    return torch.where(chosen[:, 1], patches.flip(-2), patches)


def _rotations(patches: Tensor, generators: Sequence[Generator]) -> Tensor:
    turns = (4 * _draw(generators, 1, patches)[:, 0]).long()
    turned = patches.clone()
    for quarters in (1, 2, 3):
        rows = turns == quarters
        turned[rows] = torch.rot90(patches[rows], quarters, (-2, -1))
    return turned


def _centres(side: int, like: Tensor) -> Tensor:
    """Centres of the pixels along a side whose edges are at -1 and 1."""
    return (2 * torch.arange(side, device=like.device, dtype=like.dtype) + 1) / side - 1


def _sample(patches: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values of every field of view at the same places x and y (b, s, s), -1 to 1, bilinear."""
    places = torch.stack([x, y], dim=-1)
    sampled = functional.grid_sample(
        patches.flatten(1, 2), places, padding_mode="reflection", align_corners=False
    )
    return sampled.view_as(patches)


def _crop(patches: Tensor, generators: Sequence[Generator]) -> Tensor:
    area, aspect, right, down = _draw(generators, 4, patches).unbind(1)
    area = CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area
    aspect = torch.exp(math.log(CROP_ASPECT) * (2 * aspect - 1))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    side = patches.shape[-1]
    centres = _centres(side, patches)
    x = ((1 - width) * (2 * right - 1))[:, None] + width[:, None] * centres
    y = ((1 - height) * (2 * down - 1))[:, None] + height[:, None] * centres
    whole = (-1, side, side)
    return _sample(patches, x[:, None, :].expand(whole), y[:, :, None].expand(whole))


def _elastic(patches: Tensor, generators: Sequence[Generator]) -> Tensor:
    side = patches.shape[-1]
    shape = (2, ELASTIC_NODES, ELASTIC_NODES)
    strength = 2 * ELASTIC_SD * _draw(generators, 1, patches)  # a side is 2 long
    nodes = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    nodes = nodes.to(patches) * strength.view(-1, 1, 1, 1)
    moved = functional.interpolate(nodes, (side, side), mode="bicubic", align_corners=True)
    centres = _centres(side, patches)
    return _sample(patches, moved[:, 0] + centres, moved[:, 1] + centres[:, None])


def _colour_matrix(contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Matrices (b, 3, 3) that turn densities about grey, and scale them along and across it."""
    third = torch.full((3, 3), 1 / 3).to(contrast)
    across = torch.eye(3).to(contrast) - third
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]).to(contrast)
    cos, sin = (torch.stack([hue.cos(), hue.sin()]) * saturation)[..., None, None]
    turned = cos * across + sin * (cross / math.sqrt(3))
    matrix: Tensor = contrast[:, None, None] * (third + turned)
    return matrix


def _colour(patches: Tensor, generators: Sequence[Generator]) -> Tensor:
    brightness, contrast, saturation, hue = (2 * _draw(generators, 4, patches) - 1).unbind(1)
    matrix = _colour_matrix((CONTRAST * contrast).exp(), (SATURATION * saturation).exp(), HUE * hue)
    density = -patches.clamp(min=_FLOOR).log()
    changed = (BRIGHTNESS * brightness).view(-1, 1, 1, 1, 1)
    for channel in range(3):  # term by term: a matrix product would round with the batch's size
        weight = matrix[:, None, :, channel, None, None]
        changed = changed + weight * density[:, :, channel : channel + 1]
    return torch.exp(-changed.clamp_(min=0))


def _blur(patches: Tensor, generators: Sequence[Generator]) -> Tensor:
    sigma = BLUR_SIGMA * _draw(generators, 1, patches)
    reach = math.ceil(3 * BLUR_SIGMA)
    offsets = torch.arange(-reach, reach + 1).to(patches)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).view(len(patches), -1, 1, 1, 1)
    side = patches.shape[-1]
    for dim, pad in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        padded = functional.pad(patches.flatten(1, 2), pad, mode="replicate")
        blurred = torch.zeros_like(padded.narrow(dim, 0, side))
        for tap in range(2 * reach + 1):
            blurred.addcmul_(kernel[:, tap], padded.narrow(dim, tap, side))
        patches = blurred.view_as(patches)
    return patches


def _noise(patches: Tensor, generators: Sequence[Generator]) -> Tensor:
    noisy = torch.empty_like(patches)
    for patch, out, generator in zip(patches, noisy, generators, strict=True):
        sd = NOISE_SD * float(torch.rand((), generator=generator))
        seed = int(torch.randint(2**62, (), generator=generator))
        grain = Generator(patches.device).manual_seed(
            seed
        )  # as many numbers as pixels: drawn there
        torch.add(patch, out.normal_(generator=grain), alpha=sd, out=out)
    return noisy


# Applied in this order: what the section, the stain and the microscope do, one after another.
GROUPS: dict[str, Group] = {
    "flips": _flips,
    "rotations": _rotations,
    "crop": _crop,
    "elastic": _elastic,
    "colour": _colour,
    "blur": _blur,
    "noise": _noise,
}


def check_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """Return `groups` in the order in which they are applied, each once.

    Raises
    ------
    InputError
        If there are unknown ones; all are listed.

    Examples
    --------
    >>> check_groups(["noise", "flips"])
    ('flips', 'noise')
    """
    asked = set(groups)
    unknown = sorted(asked - set(GROUPS))
    if unknown:
        raise InputError(
            f"augmentation: unknown groups {', '.join(unknown)}; take some of {', '.join(GROUPS)}"
        )
    return tuple(name for name in GROUPS if name in asked)


def augment(patches: Tensor, groups: Iterable[str], seeds: Sequence[int]) -> Tensor:
    """Change patches at random.

    Parameters
    ----------
    patches
        (b, f, 3, s, s), RGB in 0..1; the f fields of view of an example share geometry, colour
        and blur.
    groups
        Names of `GROUPS`; their order does not matter.

        - ``flips``: left-right and up-down, each with probability 1/2;
        - ``rotations``: by 0, 90, 180 or 270 degrees;
        - ``crop``: a part of at least `CROP_AREA`, stretched back;
        - ``elastic``: a smooth field of small displacements;
        - ``colour``: brightness, contrast, saturation and hue of the optical density, in which
          stains add up (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291);
        - ``blur``: Gaussian;
        - ``noise``: Gaussian, independent in every value.
    seeds
        One per example. An example's result depends on its seed alone, neither on its batch nor,
        but for what later groups make of it, on which other groups are asked for.

    Returns
    -------
    Tensor
        New patches of the same shape, in 0..1.

    Raises
    ------
    InputError
        If a group is unknown.
    ValueError
        If there is not one seed per example.
    """
    if len(seeds) != len(patches):
        raise ValueError(f"{len(seeds)} seeds for {len(patches)} examples")
    names = check_groups(groups)
    if not len(patches):
        return patches.clone()
    for name in names:
        patches = GROUPS[name](patches, [_generator(seed, name) for seed in seeds])
    return patches.clamp(0, 1)


def _generator(seed: int, name: str) -> Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little"))
