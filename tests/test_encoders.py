from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from deepspace.core.errors import InputError
from deepspace.models import network
from deepspace.models.backbones import (
    VGG16,
    Backbone,
    LayerOutput,
    ViT,
    ViTConfig,
)
from deepspace.models.encoder_rows import ENCODERS, NetworkRow
from deepspace.models.encoders import device_of, load_encoder
from deepspace.models.network import (
    IMAGENET,
    NetworkFeatures,
    Precision,
    Reading,
)
from deepspace.models.stain_features import FEATURE_NAMES, stain_features
from make_images import noise
from stub_torchvision import timm_or_skip

PINK, PURPLE = (230, 160, 200), (90, 60, 140)


pytestmark = pytest.mark.usefixtures("no_weights")


def tissue(n_nuclei: int, side: int = 128, seed: int = 0) -> NDArray[np.uint8]:
    """A pink patch with purple discs that do not touch."""
    patch = np.full((side, side, 3), PINK, np.uint8)
    places = np.random.default_rng(seed).permutation((side // 16) ** 2)[:n_nuclei]
    y, x = np.mgrid[:side, :side]
    for place in places:
        cy, cx = 8 + 16 * (place // (side // 16)), 8 + 16 * (place % (side // 16))
        patch[(x - cx) ** 2 + (y - cy) ** 2 <= 20] = PURPLE
    return patch


def row_of(patch: NDArray[np.uint8]) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, stain_features(patch[None])[0].tolist(), strict=True))


# stain


def test_stain_counts_nuclei() -> None:
    few, many = row_of(tissue(5)), row_of(tissue(40))
    assert (few["nuclei_count"], many["nuclei_count"]) == (5, 40)
    assert (few["nuclei_peaks"], many["nuclei_peaks"]) == (5, 40)
    assert many["nuclei_fraction"] == pytest.approx(8 * few["nuclei_fraction"], rel=0.15)
    assert many["haematoxylin_mean"] > few["haematoxylin_mean"]
    assert few["nuclei_haematoxylin_inside"] > few["nuclei_haematoxylin_outside"]


def test_stain_colour_is_numpys() -> None:
    patch = noise(1, 64)[0]
    row = row_of(patch)
    for index, channel in enumerate("rgb"):
        values = patch[..., index].ravel()
        assert row[f"{channel}_mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert row[f"{channel}_sd"] == pytest.approx(values.std(), rel=1e-5)
        expected = np.percentile(values, 25, method="inverted_cdf")
        assert row[f"{channel}_p25"] == expected


def test_stain_sees_scale_and_direction() -> None:
    x = np.arange(128)
    stripes = {w: np.where(x // w % 2, 220, 120).astype(np.uint8) for w in (4, 16)}
    fine, coarse = (np.broadcast_to(s[None, :, None], (128, 128, 3)) for s in stripes.values())
    detail = [[row_of(p)[f"eosin_detail{k}_log_sd"] for k in range(5)] for p in (fine, coarse)]
    assert np.argmax(detail[0]) < np.argmax(detail[1])
    assert row_of(fine)["grey_orientation8_mean"] > 0.9
    assert row_of(noise(1, 128)[0])["grey_orientation8_mean"] < 0.5


@settings(max_examples=15, deadline=None)
@given(hnp.arrays(np.uint8, (2, 32, 32, 3), elements=st.integers(0, 255)))
def test_stain_is_finite_and_a_row_depends_on_its_patch_alone(patches: NDArray[np.uint8]) -> None:
    features = stain_features(patches)
    assert np.isfinite(features).all()
    assert features.shape == (2, len(FEATURE_NAMES))
    assert features[1:].tobytes() == stain_features(patches[1:]).tobytes()


def test_stain_names_are_distinct() -> None:
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES)
    assert stain_features(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, len(FEATURE_NAMES))


@pytest.mark.parametrize("side", [60, 16])
def test_stain_refuses_other_sizes(side: int) -> None:
    with pytest.raises(InputError, match=f"patches of {side} px; use a multiple of 8 from 32"):
        stain_features(noise(1, side))


# encoders


def test_colour_is_the_mean() -> None:
    encoder = load_encoder("colour")
    patches = noise(3, 64)
    np.testing.assert_allclose(encoder(patches), patches.mean(axis=(1, 2)), rtol=1e-6)
    assert encoder.feature_names == ("220um_red", "220um_green", "220um_blue")


def test_several_fields_of_view() -> None:
    encoder = load_encoder("stain", fov_um=(100, 250.5), size_px=64)
    assert [(spec.fov_um, spec.size_px) for spec in encoder.specs] == [(100, 64), (250.5, 64)]
    assert encoder.n_features == len(encoder.feature_names) == 2 * len(FEATURE_NAMES)
    assert encoder.feature_names[-1].startswith("250.5um_")
    assert encoder(noise(2, 64)).shape == (2, len(FEATURE_NAMES))


def test_wrong_patches_are_a_bug() -> None:
    encoder = load_encoder("colour")
    wrongs: list[Any] = [noise(1, 32), noise(1, 64).astype(np.float32), noise(1, 64)[0]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="encoder colour takes uint8 patches"):
            encoder(wrong)


NETWORKS = ["vgg16", "densenet121", "resnet50", "efficientnet-lite0", "dinov2-s"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_do_not_depend_on_the_batch(name: str, precision: Precision) -> None:
    encoder = load_encoder(name, weights="random:0", size_px=56, precision=precision, fov_um=[100])
    patches = noise(20, 56)
    features = encoder(patches)
    assert features.dtype == np.float32
    assert features.shape == (20, encoder.n_features)
    assert np.isfinite(features).all()
    assert features.std(axis=0).max() > 0
    assert encoder(patches[::-1])[::-1].tobytes() == features.tobytes()
    assert encoder(patches[5:6]).tobytes() == features[5:6].tobytes()
    assert encoder(patches[3:]).tobytes() == features[3:].tobytes()
    assert encoder(patches[:0]).shape == (0, encoder.n_features)


@pytest.mark.parametrize("name", NETWORKS)
def test_random_weights_are_reproducible_and_leave_the_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    patches = noise(1, 56)
    first, again, other = (
        load_encoder(name, weights=f"random:{seed}", size_px=56, fov_um=[9]) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first(patches).tobytes() == again(patches).tobytes()
    assert first.key() == again.key() != other.key()
    assert not np.allclose(first(patches), other(patches))


def test_key_holds_everything_that_changes_features() -> None:
    asked: list[dict[str, Any]] = [
        {"name": "stain"},
        {"name": "colour"},
        {"name": "stain", "fov_um": [100]},
        {"name": "stain", "size_px": 64},
        {"name": "densenet121"},
        {"name": "densenet121", "layers": [1]},
        {"name": "densenet121", "precision": "bf16"},
    ]
    keys = []
    for kwargs in asked:
        if kwargs["name"] == "densenet121":
            kwargs = {"weights": "random:0", "precision": "fp32", "size_px": 64} | kwargs  # noqa: PLW2901
        keys.append(load_encoder(**kwargs).key())
    assert len(set(keys)) == len(asked)
    assert load_encoder(**asked[0]).key() == keys[0]


@pytest.mark.parametrize("name", [n for n, row in ENCODERS.items() if isinstance(row, NetworkRow)])
def test_rows_are_complete(name: str) -> None:
    row = ENCODERS[name]
    assert isinstance(row, NetworkRow)
    with torch.device("meta"):
        backbone = row.build({})
        outputs = backbone.layer_outputs(
            torch.empty(1, 3, row.size_px, row.size_px), [row.layers[-1]]
        )
    assert set(row.layers) <= set(backbone.layers)
    assert ("cls" in row.pooling) <= (outputs[0].cls is not None)
    assert row.licence
    assert row.source.files


def test_layers_and_their_names() -> None:
    encoder = load_encoder(
        "vgg16", weights="random:0", layers=["block2", 1], size_px=32, fov_um=[50], precision="fp32"
    )
    assert encoder.n_features == 2 * (128 + 64)
    assert encoder.feature_names[0] == "50um_layer2_mean_0"
    assert encoder.feature_names[-1] == "50um_layer1_sd_63"


def test_pooling_is_mean_and_standard_deviation() -> None:
    encoder = load_encoder(
        "vgg16", weights="random:0", layers=[1], size_px=32, fov_um=[50], precision="fp32"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = VGG16().eval()
    patches = noise(1, 32)
    with torch.inference_mode():
        maps = plain.features[:4](IMAGENET(torch.from_numpy(patches))).numpy()[0]
    expected = np.concatenate([maps.mean(axis=(1, 2)), maps.std(axis=(1, 2))])
    np.testing.assert_allclose(encoder(patches)[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "vgg19"}, r"no encoder 'vgg19'; take colour, stain, vgg16.*timm:NAME"),
        ({"name": "vgg16", "layers": [6]}, r"layers \[6\] cannot be read.*from 1 to 5"),
        ({"name": "vgg16", "layers": []}, r"layers \[\] cannot be read"),
        ({"name": "vgg16", "layers": ["relu"]}, r"layer 'relu' is not a number"),
        ({"name": "vgg16", "precision": "fp16"}, r"precision 'fp16': take auto, fp32, bf16"),
        ({"name": "vgg16", "device": "abacus"}, r"device 'abacus' cannot be used"),
        ({"name": "vgg16", "weights": "random:x"}, r"weights random:x: give a whole number"),
        ({"name": "dinov2-s", "size_px": 60}, r"60 px cannot be cut into tokens of 14 px"),
        ({"name": "stain", "fov_um": []}, r"encoder stain: no field of view"),
    ],
)
def test_requests_that_cannot_be_met(kwargs: dict[str, Any], message: str) -> None:
    if kwargs["name"] != "stain":
        kwargs = {"weights": "random:0", "size_px": 32} | kwargs
    with pytest.raises(InputError, match=message):
        load_encoder(**kwargs)


def test_statistics_take_neither_weights_nor_layers() -> None:
    with pytest.raises(InputError, match=r"(?s)2 problems.*has no weights.*has no layers"):
        load_encoder("stain", weights="x", layers=[1])


def test_layers_asked_for_are_pooled_to_mean_and_sd(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ENCODERS["midnight"]
    assert isinstance(row, NetworkRow)
    row = replace(
        row,
        build=lambda state: ViT(ViTConfig(2, 12, 2, 14, 4, 16, gated=True)),
        layers=(2,),
    )
    monkeypatch.setitem(ENCODERS, "midnight", row)
    kwargs: dict[str, Any] = {"weights": "random:0", "size_px": 56}
    published = load_encoder("midnight", **kwargs)
    middle = load_encoder("midnight", layers=[1], **kwargs)
    assert published.feature_names[0] == "112um_layer2_cls_0"
    assert published.feature_names[-1] == "112um_layer2_mean_11"
    assert middle.feature_names[-1] == "112um_layer1_sd_11"


# precision


class Cancelling(Backbone):
    """A difference of large numbers, which bf16 loses."""

    layers = range(1, 2)

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def layer_outputs(self, x: torch.Tensor, layers: Sequence[int]) -> list[LayerOutput]:
        return [LayerOutput((x + self.offset) - self.offset) for _ in layers]


@pytest.mark.parametrize(
    ("fast", "offset", "chosen"), [(True, 0.0, "bf16"), (True, 1e4, "fp32"), (False, 0.0, "fp32")]
)
def test_auto_takes_bf16_where_it_is_fast_and_right(
    monkeypatch: pytest.MonkeyPatch, fast: bool, offset: float, chosen: str
) -> None:
    monkeypatch.setattr(network, "fast_bf16", lambda device: fast)
    reading = Reading((1,), ("mean", "sd"), IMAGENET)
    features = NetworkFeatures(Cancelling(offset), reading, 32)
    assert features.precision == chosen
    patches = noise(4, 32)
    expected = IMAGENET(torch.from_numpy(patches)).numpy().reshape(4, 3, -1)
    np.testing.assert_allclose(features(patches)[:, :3], expected.mean(axis=2), atol=0.03)


def test_bf16_features_are_close() -> None:
    exact, rough = (
        load_encoder("resnet50", weights="random:0", size_px=64, precision=precision)
        for precision in ("fp32", "bf16")
    )
    patches = np.stack([tissue(n, 64, n) for n in (0, 4, 8, 16)])
    a, b = exact(patches), rough(patches)
    assert a.tobytes() != b.tobytes()
    assert np.linalg.norm(a - b) < network.TOLERANCE * np.linalg.norm(a)
    assert (exact.precision, rough.precision) == ("fp32", "bf16")


# weights


def test_timm_models_by_name(tmp_path: Path) -> None:
    timm = timm_or_skip()
    encoder = load_encoder("timm:resnet18", weights="random:0", size_px=64, fov_um=[50])
    patches = noise(18, 64)
    assert encoder.n_features == 2 * 128
    assert encoder(patches)[3:].tobytes() == encoder(patches[3:]).tobytes()
    torch.manual_seed(1)
    state = timm.create_model("resnet18").state_dict()
    save_file(state, tmp_path / "resnet18.safetensors")
    file = load_encoder("timm:resnet18", weights=tmp_path / "resnet18.safetensors", size_px=64)
    assert file.key() != encoder.key()
    with pytest.raises(InputError, match=r"has no such model; such as resnet18"):
        load_encoder("timm:resnet18x.a1", weights="random:0")


def test_timm_missing_or_broken_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'deepspace\[zoo\]'"):
        load_encoder("timm:resnet18", weights="random:0")


# the real weights


@pytest.mark.parametrize("name", ["vgg16", "dinov2-s"])
def test_real_weights_tell_tissues_apart(shared: Path, name: str) -> None:
    files = load_encoder(name, weights=shared / "weights", size_px=112, fov_um=[75])
    assert files.identity["transform"]["bgr"] == (name == "vgg16")
    assert len(files.identity["weights_sha256"]) == 64
    dense, sparse = ([tissue(n, 112, s) for s in range(3)] for n in (3, 40))
    features = files(np.stack([*dense, *sparse]))
    features /= features.std(axis=0) + 1e-6
    within = np.linalg.norm(features[0] - features[1])
    between = np.linalg.norm(features[0] - features[4])
    assert between > 1.5 * within


def test_real_dinov2_survives_timms_spelling(shared: Path, tmp_path: Path) -> None:
    timm = timm_or_skip()
    row = ENCODERS["dinov2-s"]
    assert isinstance(row, NetworkRow)
    stored = load_file(shared / "weights" / "dinov2_vits14.safetensors")
    theirs = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
    renamed = row.rename(theirs.state_dict())
    assert set(renamed) == {name for name in stored if not name.endswith("mask_token")}
    for name, value in renamed.items():  # parts of a fused layer share its memory
        value.copy_(stored[name])
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    patches = np.stack([tissue(9, 56)])
    kwargs: dict[str, Any] = {"size_px": 56, "precision": "fp32", "fov_um": [40]}
    ours = load_encoder("dinov2-s", weights=shared / "weights", **kwargs)
    other = load_encoder("dinov2-s", weights=tmp_path / "timm.safetensors", **kwargs)
    assert ours(patches).tobytes() == other(patches).tobytes()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [device_of(name) for name in ("cpu", "auto")] == ["cpu", "cpu"]
    with pytest.raises(InputError, match=r"device cuda: torch sees no GPU here.*--device cpu"):
        device_of("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device_of(name) for name in ("cuda", "auto", "cpu")] == ["cuda", "cuda", "cpu"]


def test_the_key_does_not_tell_the_device() -> None:
    """A model trained on a GPU predicts without one; features are kept apart all the same."""
    here = load_encoder("vgg16", weights="random:0", fov_um=(150,), size_px=64, layers=[1])
    there = copy.copy(here)
    there.identity = here.identity | {"device": "cuda"}
    assert (here.device, there.device) == ("cpu", "cuda")
    assert here.key() == there.key()
