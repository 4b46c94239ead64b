"""The fine-tuned network on small simulated data, whose law is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

from deepspace.core.config import Config
from deepspace.core.errors import InputError
from deepspace.core.metrics import pearson
from deepspace.data.cache import ArrayCache
from deepspace.data.targets import fit_target
from deepspace.io.section import Section
from deepspace.models.backbones.vgg import VGG16
from deepspace.models.cnn import CNN
from deepspace.models.encoders import load_network
from deepspace.models.examples import Pseudo
from deepspace.models.probe import Probe
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.trainable import OwnLayers, TrainableNetwork, own_layers, pooled_layers
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows.cohort import read_cohort

ENCODER = {
    "name": "vgg16",
    "weights": "random:0",
    "size_px": 16,
    "fov_um": (100.0,),
    "layers": (2,),
}


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    block = simulate_block(BlockConfig.preset("tiny", seed=3))
    return read_cohort(block.write(tmp_path_factory.mktemp("cnn") / "block"))


def settings(**cnn: object) -> Config:
    config = Config().with_values(
        target={"genes": "expressed:12"},
        encoder=ENCODER,
        qc={"min_counts": 1, "min_genes": 1},
    )
    return config.with_values(cnn={"epochs": 2, "precision": "fp32", **cnn})


def bench(config: Config, cache: ArrayCache | None = None) -> Workbench:
    return Workbench.of(config, cache)


def fitted(sections: list[Section], config: Config) -> CNN:
    model = MODELS["cnn"](bench(config))
    assert isinstance(model, CNN)
    return model.fit(sections, fit_target(sections, config.target))


@pytest.fixture(scope="module")
def trained(sections: list[Section]) -> CNN:
    return fitted(sections, settings())


def network(head: str = "pooled", layers: tuple[int, ...] = (3,)) -> TrainableNetwork:
    loaded = load_network("vgg16", weights="random:0", size_px=32, fov_um=(100,), layers=layers)
    rows = {"pooled": pooled_layers, "own": own_layers}
    return TrainableNetwork(rows[head](loaded), 2, 4)


@pytest.mark.parametrize(
    ("blocks", "indices"),
    [
        (0, set()),
        (1, {10, 12, 14}),
        (2, {5, 7, 10, 12, 14}),
        (3, {0, 2, 5, 7, 10, 12, 14}),
        ("all", {0, 2, 5, 7, 10, 12, 14}),
    ],
)
def test_blocks_are_counted_from_the_deepest_that_is_read(
    blocks: int | str, indices: set[int]
) -> None:
    net = network()
    net.release(blocks)
    names = {n for n, p in net.backbone.named_parameters() if p.requires_grad}
    assert names == {f"features.{i}.{kind}" for i in indices for kind in ("weight", "bias")}
    assert all(p.requires_grad for p in net.head.parameters())


def test_own_head_trains_its_dense_layers_with_the_last_block() -> None:
    net = network("own")
    net.release(1)
    free = {n for n, p in net.backbone.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in free} == {"own", "backbone"}
    assert {n for n in free if n.startswith("backbone.")} == {
        f"backbone.features.{i}.{kind}" for i in (24, 26, 28) for kind in ("weight", "bias")
    }
    net.release(0)
    # there are no public weights of the dense layers here: at random they would be useless
    left = {n.split(".")[0] for n, p in net.backbone.named_parameters() if p.requires_grad}
    assert left == {"own"}
    assert net.head.in_features == 4096


def test_own_head_with_public_weights_trains_the_last_layer_alone() -> None:
    own = network("own").backbone
    assert isinstance(own, OwnLayers)
    known = [name for name, _ in own.own.named_parameters()]
    assert not OwnLayers(own.backbone, VGG16().own_head(1), known).new


def test_untrained_network_equals_the_ridge_it_starts_from(sections: list[Section]) -> None:
    config = settings(epochs=0)
    target = fit_target(sections, config.target)
    model = fitted(sections, config)
    # both standardised over as many points as the network is while it changes
    probe = Probe(model.tools.start, config.probe, config.seed).fit(sections, target)
    slide, coords = sections[0].slide, sections[0].coords
    assert model.predict(slide, coords).mean == pytest.approx(
        probe.predict(slide, coords).mean, abs=1e-3
    )


def test_prediction_follows_the_measurement(trained: CNN, sections: list[Section]) -> None:
    section = sections[0]
    measured = trained.target.encode(section.require_counts())
    predicted = trained.predict(section.slide, section.coords)
    assert np.nanmean(pearson(measured, predicted.mean)) > 0.3
    assert (predicted.sd >= predicted.sd_latent).all()
    assert (predicted.sd_latent >= 0).all()


def test_a_point_does_not_depend_on_the_others(trained: CNN, sections: list[Section]) -> None:
    slide, coords = sections[1].slide, sections[1].coords
    whole = trained.predict(slide, coords)
    part = trained.predict(slide, coords[5:8])
    assert part.mean == pytest.approx(whole.mean[5:8], rel=1e-9)
    assert part.sd == pytest.approx(whole.sd[5:8], rel=1e-9)


def test_same_seed_same_bytes(trained: CNN, sections: list[Section]) -> None:
    again = fitted(sections, settings())
    for name, values in trained.state()[1].items():
        assert np.array_equal(values, again.state()[1][name]), name


def test_state_round_trip(trained: CNN, sections: list[Section]) -> None:
    values, arrays = trained.state()
    back = MODELS["cnn"](bench(settings())).restore(trained.target, values, arrays)
    slide, coords = sections[2].slide, sections[2].coords
    for name in ("mean", "sd", "sd_latent"):
        one, other = trained.predict(slide, coords), back.predict(slide, coords)
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_only_what_was_trained_is_saved(trained: CNN) -> None:
    names = [n for n in trained.state()[1] if n.startswith("network.")]
    assert {n.split(".")[2] for n in names} == {"5", "7"}


def test_held_out_counts_do_not_reach_the_network(sections: list[Section]) -> None:
    """What early stopping watches may choose the epoch; it may not change the weights."""
    config = settings(refit=False, epochs=1)
    tools = bench(config)
    target = fit_target(sections, config.target)
    one = MODELS["cnn"](tools).fit(sections, target)
    watched = sections[config.seed % len(sections)]
    assert watched.counts is not None
    changed = replace(watched, counts=_reversed(watched.counts))
    other = MODELS["cnn"](tools).fit([changed, *sections[1:]], target)
    assert one.state()[0]["validation_loss"] != other.state()[0]["validation_loss"]
    rows = [[r["train_loss"] for r in m.state()[0]["history"]] for m in (one, other)]
    assert rows[0] == rows[1]


def _reversed(counts: AnnData) -> AnnData:
    other = counts.copy()
    other.X = counts.X[::-1].copy()
    return other


def test_pseudo_labels_count_in_training_only(sections: list[Section]) -> None:
    config = settings(refit=False, epochs=1)
    target = fit_target(sections, config.target)
    slide, coords = sections[1].slide, sections[1].coords + 20.0
    level = target.wide.encode(sections[1].require_counts()).mean(axis=0)
    values = np.tile(level, (len(coords), 1))

    def losses(weight: float) -> list[float]:
        pseudo = [Pseudo(slide, coords, values, np.full(len(coords), weight))]
        model = MODELS["cnn"](bench(config))
        assert isinstance(model, CNN)
        return [row["loss"] for row in model.fit(sections, target, pseudo).history]

    without = [row["loss"] for row in fitted(sections, config).history]
    assert losses(0.0) == without
    assert losses(1.0)[0] == without[0]
    assert losses(1.0)[1] != without[1]


def test_finished_training_is_not_repeated(
    sections: list[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(epochs=1)
    cache = ArrayCache(tmp_path)
    target = fit_target(sections, config.target)
    one = MODELS["cnn"](bench(config, cache)).fit(sections, target)

    def forbidden(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("deepspace.models.loop._Training._step", forbidden)
    other = MODELS["cnn"](bench(config, cache)).fit(sections, target)
    assert np.array_equal(one.state()[1]["weights"], other.state()[1]["weights"])


@pytest.mark.parametrize("scale", ["section", "minmax"])
def test_scalings_come_back_in_target_units(sections: list[Section], scale: str) -> None:
    model = fitted(sections, settings(scale=scale, epochs=1))
    measured = np.concatenate([model.target.encode(s.require_counts()) for s in sections])
    predicted = np.concatenate([model.predict(s.slide, s.coords).mean for s in sections])
    assert predicted.mean(axis=0) == pytest.approx(measured.mean(axis=0), abs=0.25)


def test_own_head_of_a_densenet_with_trained_batch_norm(sections: list[Section]) -> None:
    config = settings(
        head="own", start="random", batch_norm="trained", epochs=1, validation="spot"
    ).with_values(
        encoder={"name": "densenet121", "layers": None, "standardise": "none", "size_px": 32}
    )
    model = fitted(sections, config)
    names = model.state()[1]
    assert any(n.endswith("running_mean") for n in names)
    assert np.isfinite(model.predict(sections[0].slide, sections[0].coords[:4]).mean).all()


@pytest.mark.parametrize(
    ("encoder", "cnn", "words"),
    [
        ({"name": "stain", "weights": None, "layers": None}, {}, "no network to fine-tune"),
        (
            {"fov_um": (100.0, 200.0), "standardise": "none"},
            {"head": "own", "start": "random"},
            "one field",
        ),
        ({}, {"loss": "cross_entropy"}, "does not fit"),
        ({}, {"augment": ("flip",)}, "flips"),
        ({}, {"head": "own", "start": "random"}, "standardise"),
        ({}, {"head": "own"}, "start"),
    ],
)
def test_wrong_settings_are_told_before_training(
    sections: list[Section], encoder: dict[str, object], cnn: dict[str, object], words: str
) -> None:
    config = settings(**cnn)
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update=encoder)})
    with pytest.raises(InputError, match=words):
        bench(config).check(["cnn"])


def test_gradient_of_a_dead_channel_is_finite() -> None:
    net = network()
    net.release("all")
    net(torch.zeros(1, 1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
