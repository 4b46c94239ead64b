"""Find the weights of a network, read them, and load them without leaving anything out."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.core.files import sha256

FOLDER_VARIABLE = "DEEPSPACE_WEIGHTS"
RANDOM = "random:"

Renaming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class WeightSource:
    """Where the public weights of an encoder are.

    Attributes
    ----------
    files
        File names looked for in a folder, the preferred one first.
    repository
        Repository on the Hugging Face hub.
    repository_files
        Names of the weights there, the preferred one first.
    gated
        Whether the hub asks to accept terms first.
    package
        Registry package that carries the weights, and the glob of the file in it.
    extra
        Extra of deepspace that installs `package`.
    """

    files: tuple[str, ...]
    repository: str
    repository_files: tuple[str, ...] = ("model.safetensors",)
    gated: bool = False
    package: tuple[str, str] | None = None
    extra: str | None = None


@dataclass(frozen=True)
class Weights:
    """A state dict and where it came from.

    Attributes
    ----------
    state
        Parameter name to tensor, float32.
    sha256
        Hash of the file, or `random:SEED`.
    origin
        File the weights were read from, or `random:SEED`.
    metadata
        Text stored beside the tensors in a safetensors file.
    """

    state: dict[str, Tensor]
    sha256: str
    origin: str
    metadata: dict[str, str] = field(default_factory=dict)


def find_weights(name: str, source: WeightSource, weights: Path | str | None = None) -> Path:
    """File with the weights of encoder `name`.

    Looked for in this order: `weights`, a file or a folder; the folder $DEEPSPACE_WEIGHTS; the
    registry package; the Hugging Face hub and its cache. What was asked for by `weights` is never
    replaced by another.

    Raises
    ------
    InputError
        If there is none; the message lists what was tried and how to get them.
    """
    if weights is not None:
        return _given(name, source, Path(weights))
    tried: list[str] = []
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        if not Path(folder).is_dir():
            raise InputError(f"{FOLDER_VARIABLE}={folder}: no such folder; correct or unset it")
        if found := _in_folder(source, Path(folder)):
            return found
        tried.append(f"{FOLDER_VARIABLE}={folder}: has none of {', '.join(source.files)}")
    else:
        tried.append(f"{FOLDER_VARIABLE} is not set")
    if source.package:
        if found := _in_package(*source.package):
            return found
        tried.append(f"package {source.package[0]}: not installed")
    fetched = _from_hub(source)
    if isinstance(fetched, Path):
        return fetched
    tried.append(fetched)
    lines = "".join(f"\n  - tried: {line}" for line in tried)
    cures = "".join(f"\n  - {cure}" for cure in _cures(source))
    raise InputError(f"encoder {name}: no weights found{lines}\nDo one of these:{cures}")


def _given(name: str, source: WeightSource, path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder; give the weights of encoder {name}")
    if found := _in_folder(source, path):
        return found
    raise InputError(
        f"{path}: has no weights of encoder {name}; put one of {', '.join(source.files)} there, "
        "or give the file itself"
    )


def _in_folder(source: WeightSource, folder: Path) -> Path | None:
    return next((folder / file for file in source.files if (folder / file).is_file()), None)


def _in_package(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((file for place in places for file in sorted(Path(place).glob(pattern))), None)


def _from_hub(source: WeightSource) -> Path | str:
    """Path in the hub's cache, fetched if need be, or why there is none."""
    where = f"https://huggingface.co/{source.repository}"
    try:
        from huggingface_hub import constants, hf_hub_download  # noqa: PLC0415  # an extra
        from huggingface_hub.errors import (  # noqa: PLC0415
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        return f"{where}: huggingface_hub is not installed"
    for offline in (True, False):
        if not offline and not _resolves(constants.ENDPOINT):
            return f"{where}: not in the hub's cache, and {constants.ENDPOINT} cannot be reached"
        for file in source.repository_files:
            try:
                return Path(hf_hub_download(source.repository, file, local_files_only=offline))
            except GatedRepoError:
                return f"{where}: access was not granted to this account"
            except (LocalEntryNotFoundError, EntryNotFoundError):
                continue
            except (HfHubHTTPError, OSError) as error:
                return f"{where}: {str(error).splitlines()[0]}"
    return f"{where}: {' or '.join(source.repository_files)} could not be fetched"


def _resolves(endpoint: str) -> bool:
    """Whether the hub's name resolves; the hub's own client would retry for half a minute."""
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlparse(endpoint).hostname, None)
    except OSError:
        return False
    return True


def _cures(source: WeightSource) -> list[str]:
    page = f"https://huggingface.co/{source.repository}"
    file = source.repository_files[0]
    cures = [f"pip install 'deepspace[{source.extra}]'"] if source.extra else []
    hub = [] if importlib.util.find_spec("huggingface_hub") else ["pip install 'deepspace[zoo]'"]
    if source.gated:
        hub += [f"accept the terms at {page}", "run `hf auth login`"]
    cures += [
        ", ".join([*hub, "run this again on a machine that reaches the hub"]),
        f"download {file} from {page} and add --weights FILE",
        f"export {FOLDER_VARIABLE}=FOLDER, where FOLDER holds it as {source.files[-1]}",
    ]
    return cures


def read_weights(path: Path) -> Weights:
    """Read a safetensors file or a torch checkpoint (tensors only, no code is run).

    Raises
    ------
    InputError
        If the file is neither, or holds no tensors.
    """
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as stream:
                metadata = dict(stream.metadata() or {})
                state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a safetensors file ({error}); fetch it again") from error
    else:
        state = _read_checkpoint(path)
    floats = {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }
    if not floats:
        raise InputError(f"{path}: holds no tensors; give a file with weights")
    stat = path.stat()
    return Weights(floats, _sha256(path, stat.st_mtime_ns, stat.st_size), str(path), metadata)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the old pickle format fails in any way on a foreign file
        raise InputError(
            f"{path}: not a torch checkpoint of plain tensors; "
            "fetch it again, or convert it to safetensors"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds a {type(loaded).__name__}, not a state dict")
    return {key: value for key, value in loaded.items() if isinstance(value, Tensor)}


@lru_cache(maxsize=64)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    """Hash of the file at `path`, computed once as long as time and size stay."""
    return sha256(path)


def load_into(
    network: nn.Module, state: Mapping[str, Tensor], origin: str, ignore: str = r"$^"
) -> None:
    """Put `state` into `network`, which may live on the meta device; every key must fit.

    Parameters
    ----------
    ignore
        Regular expression of names in the file that the network knowingly does without, such as
        the classifier.

    Raises
    ------
    InputError
        If names are missing, unknown, or of another shape; all are counted, the first are listed.
    """
    wanted = network.state_dict()
    given = {key: value for key, value in state.items() if not re.match(ignore, key)}
    for key, value in wanted.items():
        if key.endswith(
            "num_batches_tracked"
        ):  # absent from old checkpoints, unused when predicting
            given.setdefault(key, torch.zeros((), dtype=value.dtype))
    faults = [
        _listed("missing", [key for key in wanted if key not in given]),
        _listed("not part of this network", [key for key in given if key not in wanted]),
        _listed(
            "of another shape",
            [
                f"{key} {tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
                for key in wanted
                if key in given and given[key].shape != wanted[key].shape
            ],
        ),
    ]
    if any(faults):
        lines = "".join(f"\n  - {fault}" for fault in faults if fault)
        raise InputError(f"{origin}: these weights do not fit this encoder{lines}")
    network.load_state_dict(given, assign=True)


def _listed(what: str, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    more = f", and {len(keys) - 5} more" if len(keys) > 5 else ""
    return f"{len(keys)} {what}: {', '.join(keys[:5])}{more}"


def random_seed(weights: Path | str | None) -> int | None:
    """Seed asked for by `random:SEED`, else None.

    Raises
    ------
    InputError
        If SEED is not a whole number.

    Examples
    --------
    >>> random_seed("random:7")
    7
    >>> random_seed("vgg16.pth") is None
    True
    """
    text = str(weights)
    if not text.startswith(RANDOM):
        return None
    if not text.removeprefix(RANDOM).isdigit():
        raise InputError(f"weights {text}: give a whole number, as {RANDOM}0")
    return int(text.removeprefix(RANDOM))
