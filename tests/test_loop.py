"""Training: the loop, its checkpoints, stopping and going on."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.models.checkpoint import RECENT_S, make_room
from deepspace.models.interrupt import Signals
from deepspace.models.loop import Examples, History, Steps, train_network, write_history
from make_training import CONFIG, PLAIN, STEPS, Tiny, content, make_examples, shade

EXAMPLES = make_examples()


class KilledError(Exception):
    """Stands for the death of the process."""


def dying(steps: Steps, at: int, die: Callable[[], None]) -> Steps:
    """Steps of which call number `at`, of augment, validate and refresh together, dies."""
    calls = iter(range(10**6))

    def wrap(function: Callable) -> Callable:
        def wrapped(*args: object) -> object:
            if next(calls) == at:
                die()
            return function(*args)

        return wrapped

    return replace(
        steps,
        augment=wrap(steps.augment),
        validate=wrap(steps.validate),
        refresh=wrap(steps.refresh),
    )


def kill() -> None:
    raise KilledError


def never(*args: object) -> Tensor:
    raise AssertionError("nothing should be left to do")


def same(a: History, b: History) -> bool:
    return json.dumps(a.rows) == json.dumps(b.rows) and a.best_epoch == b.best_epoch


def scripted(losses: Sequence[float], seen: list[dict[str, bytes]]) -> Callable:
    """Validation with given losses, which notes the network it is shown."""
    left = iter(losses)

    def validate(network: nn.Module) -> dict[str, float]:
        seen.append(content(network))
        return {"loss": next(left)}

    return validate


def by_hand(epochs: int, batch: int) -> Tiny:
    """The same training, written out plainly."""
    network = Tiny()
    groups = [
        {"params": [*network.trunk.parameters()], "lr": CONFIG.learning_rate},
        {"params": [*network.head.parameters()], "lr": CONFIG.head_learning_rate},
    ]
    adam = torch.optim.Adam(groups, weight_decay=CONFIG.weight_decay)
    x = torch.from_numpy(EXAMPLES.patches.transpose(0, 1, 4, 2, 3).copy()) / 255
    for epoch in range(1, epochs + 1):
        order = np.random.default_rng([CONFIG.seed, epoch]).permutation(len(x))
        for start in range(0, len(x), batch):
            rows = order[start : start + batch]
            outputs = network(x[rows], torch.from_numpy(EXAMPLES.section)[rows])
            error = (outputs - torch.from_numpy(EXAMPLES.labels)[rows]).abs()
            losses = torch.where(error < 1, error**2 / 2, error - 0.5).mean(1)
            weights = torch.from_numpy(EXAMPLES.weights)[rows]
            adam.zero_grad()
            ((losses * weights).sum() / weights.sum()).backward()
            adam.step()
    return network


@pytest.mark.parametrize("accumulate", [1, 2, 3, 9])
def test_equals_a_plain_loop_however_accumulated(accumulate: int) -> None:
    network = Tiny()
    steps = replace(PLAIN, validate=scripted([4, 3, 2, 1], []))
    train_network(network, EXAMPLES, replace(CONFIG, accumulate=accumulate), steps)
    for name, expected in by_hand(3, 5).state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], expected, atol=2e-6, rtol=0)


def test_only_what_is_trainable_moves_and_the_head_at_its_own_rate() -> None:
    start = Tiny().state_dict()
    for changes, still in (({"head_learning_rate": 0}, "head"), ({"learning_rate": 0}, "trunk")):
        network = Tiny()
        config = replace(CONFIG, weight_decay=0, **changes)
        train_network(
            network, EXAMPLES, config, replace(PLAIN, validate=scripted([3, 2, 1, 0], []))
        )
        moved = {n for n, t in network.state_dict().items() if not torch.equal(t, start[n])}
        assert moved == {f"{({'head', 'trunk'} - {still}).pop()}.{p}" for p in ("weight", "bias")}


def test_network_learns() -> None:
    history = train_network(Tiny(), EXAMPLES, replace(CONFIG, epochs=30, patience=30), PLAIN)
    assert history.rows[30]["train_loss"] < 0.6 * history.rows[1]["train_loss"]
    assert history.rows[history.best_epoch]["loss"] < 0.8 * history.rows[0]["loss"]


def test_best_epoch_is_kept_and_patience_counts_from_it() -> None:
    # better than the epoch before at 4 and 5, but not than the best one
    seen: list[dict[str, bytes]] = []
    steps = replace(STEPS, validate=scripted([5, 4, 2, 3.5, 3, 2.5, 1], seen))
    network = Tiny(norm=True)
    history = train_network(network, EXAMPLES, replace(CONFIG, epochs=9, patience=3), steps)
    assert [row["epoch"] for row in history.rows] == [0, 1, 2, 3, 4, 5]
    assert history.best_epoch == 2
    assert content(network) == seen[2]
    assert len({json.dumps([str(v) for v in s.values()]) for s in seen}) == 6


def test_without_validation_all_epochs_are_taken_and_the_last_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    config = replace(CONFIG, patience=1)
    network, again = Tiny(), Tiny(seed=1)
    history = train_network(
        network, EXAMPLES, config, replace(PLAIN, validate=None), checkpoint=path
    )
    assert [list(row) for row in history.rows] == [["epoch", "train_loss"]] * 4
    assert history.best_epoch == 3
    for name, expected in by_hand(3, 5).state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], expected, atol=2e-6, rtol=0)
    again.frozen.load_state_dict(network.frozen.state_dict())
    steps = replace(PLAIN, validate=None, augment=never)
    train_network(again, EXAMPLES, config, steps, checkpoint=path)
    assert content(again) == content(network)


def test_training_that_does_not_help_changes_nothing() -> None:
    network, seen = Tiny(norm=True), []
    steps = replace(STEPS, validate=scripted([1, 1, 1, 1], seen))
    history = train_network(network, EXAMPLES, CONFIG, steps)
    assert history.best_epoch == 0
    assert content(network) == seen[0]
    assert not network.training


def test_history_row_is_the_weighted_mean_loss_and_the_scores() -> None:
    still = replace(CONFIG, learning_rate=0, head_learning_rate=0, epochs=1)
    history = train_network(Tiny(), EXAMPLES, still, PLAIN)
    network = Tiny()
    x = torch.from_numpy(EXAMPLES.patches).permute(0, 1, 4, 2, 3) / 255
    outputs = network(x, torch.from_numpy(EXAMPLES.section))
    losses = nn.functional.smooth_l1_loss(
        outputs, torch.from_numpy(EXAMPLES.labels), reduction="none"
    )
    expected = np.average(losses.mean(1).detach().numpy(), weights=EXAMPLES.weights)
    assert math.isnan(history.rows[0]["train_loss"])
    assert history.rows[1]["train_loss"] == pytest.approx(expected, rel=1e-5)
    assert set(history.rows[1]) == {"epoch", "train_loss", "loss", "correlation"}


def test_history_file(tmp_path: Path) -> None:
    history = train_network(Tiny(), EXAMPLES, CONFIG, STEPS)
    write_history(history, tmp_path / "history.csv")
    table = pd.read_csv(tmp_path / "history.csv", float_precision="round_trip")
    assert list(table.columns) == ["epoch", "train_loss", "loss", "correlation"]
    pd.testing.assert_frame_equal(table, pd.DataFrame(history.rows), check_exact=True)


def test_what_the_network_and_augmentation_see() -> None:
    seen: dict[int, list[int]] = {}
    inputs: list[Tensor] = []

    class Watched(Tiny):
        def forward(self, x: Tensor, section: Tensor) -> Tensor:
            inputs.append(x)
            return super().forward(x, section)

    def augment(x: Tensor, seeds: Sequence[int]) -> Tensor:
        for patch, seed in zip(x, seeds, strict=True):
            rows = EXAMPLES.patches == (255 * patch).round().byte().permute(0, 2, 3, 1).numpy()
            (row,) = np.flatnonzero(rows.all((1, 2, 3, 4)))
            seen.setdefault(int(row), []).append(seed)
        return x.contiguous()

    steps = replace(PLAIN, augment=augment, validate=lambda network: {"loss": 0.0})
    train_network(Watched(), EXAMPLES, replace(CONFIG, epochs=2), steps)
    first = {row: list(seeds) for row, seeds in seen.items()}
    assert all(len(seeds) == 2 for seeds in first.values())
    assert len({seed for seeds in first.values() for seed in seeds}) == 44
    assert all(x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last) for x in inputs)
    whole = torch.cat(inputs)
    assert whole.min() == np.float32(EXAMPLES.patches.min()) / np.float32(255)
    assert whole.max() == np.float32(EXAMPLES.patches.max()) / np.float32(255)
    seen.clear()
    train_network(Watched(), EXAMPLES, replace(CONFIG, epochs=2, batch=7, accumulate=3), steps)
    assert seen == first


def test_dropout_is_seeded_and_torchs_own_state_stays() -> None:
    results = []
    for seed, torch_seed in ((0, 1), (0, 2), (3, 1)):
        network = Tiny(dropout=0.5)
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        masks: list[bytes] = []
        network.drop.register_forward_hook(
            lambda module, args, out, masks=masks: masks.append((out == 0).numpy().tobytes())
        )
        steps = replace(PLAIN, validate=scripted([2, 1], []))
        train_network(network, EXAMPLES, replace(CONFIG, epochs=1, batch=2, seed=seed), steps)
        assert torch.equal(torch.get_rng_state(), before)
        assert len(set(masks)) > 8  # 11 steps of 16 values each
        results.append(content(network))
    assert results[0] == results[1] != results[2]


def test_examples_without_weight_are_never_read(tmp_path: Path) -> None:
    some = EXAMPLES.weights.copy()
    some[::2] = 0
    spoilt = EXAMPLES.labels.copy()
    spoilt[::2] = np.nan
    path = tmp_path / "patches.npy"
    np.save(path, EXAMPLES.patches)
    mapped = np.load(path, mmap_mode="r")
    network = Tiny()
    history = train_network(
        network, Examples(mapped, spoilt, some, EXAMPLES.section), CONFIG, PLAIN
    )
    assert np.isfinite([row["loss"] for row in history.rows]).all()


def test_bf16_multiplies_in_bf16_and_keeps_float32() -> None:
    network, kinds = Tiny(), set()
    network.head.register_forward_hook(
        lambda module, args, out: kinds.add((module.training, out.dtype))
    )
    loss = replace(
        STEPS.loss, value=lambda o, y, w: kinds.add(o.dtype) or STEPS.loss.value(o, y, w)
    )
    exact = train_network(Tiny(), EXAMPLES, CONFIG, STEPS)
    rough = train_network(
        network, EXAMPLES, replace(CONFIG, precision="bf16"), replace(STEPS, loss=loss)
    )
    assert kinds == {(True, torch.bfloat16), (False, torch.float32), torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert rough.rows[3]["loss"] == pytest.approx(exact.rows[3]["loss"], rel=0.05)
    assert rough.rows[3]["loss"] != exact.rows[3]["loss"]


def clock_of(step: float) -> Callable[[], float]:
    """A clock on which `step` seconds pass with every look at it."""
    ticks = iter(range(10**6))
    return lambda: step * next(ticks)


VARIANTS = {
    "every step": ({"checkpoint_minutes": 0.0}, {"norm": True, "dropout": 0.5}),
    "every few": ({"checkpoint_minutes": 4 / 60, "accumulate": 2}, {"dropout": 0.5}),
    "every epoch": ({}, {"norm": True}),
    "bf16": ({"checkpoint_minutes": 0.0, "precision": "bf16"}, {"dropout": 0.5}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_anywhere_and_resumed_gives_the_same_bytes(tmp_path: Path, variant: str) -> None:
    changes, kind = VARIANTS[variant]
    config = replace(CONFIG, batch=8, epochs=2, **changes)  # 8, 8 and 6 examples
    whole = Tiny(**kind)
    expected = train_network(whole, EXAMPLES, config, STEPS, checkpoint=tmp_path / "w.safetensors")
    file = (tmp_path / "w.safetensors").read_bytes()
    calls = 3 * 2 + 2 * {1: 3, 2: 6}[config.accumulate]  # parts of steps
    for at in range(calls):
        path = tmp_path / f"{at}.safetensors"
        with pytest.raises(KilledError):
            train_network(
                Tiny(**kind), EXAMPLES, config, dying(STEPS, at, kill),
                checkpoint=path, clock=clock_of(1),
            )  # fmt: skip
        network = Tiny(**kind)
        history = train_network(network, EXAMPLES, config, STEPS, checkpoint=path)
        assert same(history, expected), at
        assert content(network) == content(whole), at
        assert path.read_bytes() == file, at
    # the number of calls was right: one more, and nothing dies
    train_network(Tiny(**kind), EXAMPLES, config, dying(STEPS, calls, kill))


def test_resumed_training_does_not_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    config = replace(CONFIG, checkpoint_minutes=0.0)  # 5 steps an epoch
    with pytest.raises(KilledError):
        train_network(Tiny(), EXAMPLES, config, dying(STEPS, 2 + 3, kill), checkpoint=path)
    with pytest.raises(KilledError):
        train_network(Tiny(), EXAMPLES, config, dying(STEPS, 1, kill), checkpoint=path)
    # 3 + 1 of the 5 steps are done: one step, then the validation of the first epoch
    steps = dying(STEPS, 1, kill)
    with pytest.raises(KilledError):
        train_network(Tiny(), EXAMPLES, config, replace(steps, validate=never), checkpoint=path)


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    first, other = Tiny(norm=True), Tiny(norm=True, seed=5)
    other.frozen.load_state_dict(first.frozen.state_dict())
    history = train_network(first, EXAMPLES, CONFIG, STEPS, checkpoint=path, key="a")
    before = path.read_bytes()
    steps = replace(STEPS, augment=never, validate=never, refresh=never)
    again = train_network(other, EXAMPLES, CONFIG, steps, checkpoint=path, key="a")
    assert same(again, history)
    assert content(other) == content(first)
    assert path.read_bytes() == before


@pytest.mark.parametrize("minutes", [0.0, 3 / 60, 1e9])
def test_checkpoints_are_written_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    written = []
    save_file = sys.modules["deepspace.models.checkpoint"].save_file
    monkeypatch.setattr(
        "deepspace.models.checkpoint.save_file",
        lambda *args: (
            written.append(json.loads(args[2]["deepspace"])["standing"]) or save_file(*args)
        ),
    )
    config = replace(CONFIG, epochs=1, batch=2, checkpoint_minutes=minutes)  # 11 steps
    train_network(
        Tiny(), EXAMPLES, config, PLAIN, checkpoint=tmp_path / "c.safetensors", clock=clock_of(1)
    )
    # the clock is looked at once a step and once a file
    within = {0.0: list(range(1, 12)), 3 / 60: [3, 6, 9], 1e9: []}[minutes]
    places = [(about["epoch"], about["step"]) for about in written]
    assert places == [(1, 0), *((1, step) for step in within), (2, 0)]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level("INFO", logger="deepspace")
    return caplog


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "network", "key", "empty", "standing"])
def test_useless_checkpoint_is_told_and_replaced(
    tmp_path: Path, told: pytest.LogCaptureFixture, damage: str
) -> None:
    path, right = tmp_path / "c.safetensors", tmp_path / "right.safetensors"
    expected = train_network(Tiny(), EXAMPLES, CONFIG, STEPS, checkpoint=right, key="a")
    spoilt = right.read_bytes()
    if damage == "network":
        train_network(Tiny(norm=True), EXAMPLES, CONFIG, STEPS, checkpoint=path, key="a")
    elif damage == "key":
        train_network(Tiny(), EXAMPLES, CONFIG, STEPS, checkpoint=path, key="b")
    else:
        standing = spoilt.replace(b"best_epoch", b"west_epoch")
        path.write_bytes(
            {
                "cut": spoilt[:-4],
                "flip": spoilt[:-1] + bytes([spoilt[-1] ^ 1]),
                "text": b"hello",
                "empty": b"",
                "standing": standing,
            }[damage]
        )
    told.clear()
    network = Tiny()
    history = train_network(network, EXAMPLES, CONFIG, STEPS, checkpoint=path, key="a")
    assert told.messages[0].startswith(str(path))
    assert "another training" in told.messages[0] if damage == "key" else "damaged" in told.text
    assert same(history, expected)
    assert path.read_bytes() == right.read_bytes()


def test_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"file/c\.safetensors: the checkpoint cannot be written"):
        train_network(
            Tiny(), EXAMPLES, CONFIG, STEPS, checkpoint=tmp_path / "file" / "c.safetensors"
        )


# 2 calls for epoch 0, then in each epoch 9 parts of 5 steps (the last has one) and 2 calls
LEFT = {0: 36, 1: 36, 2: 34, 7: 30, 10: 27, 11: 27, 12: 27, 30: 10, 45: 0}


@pytest.mark.parametrize("at", LEFT)
def test_ctrl_c_saves_and_stops(tmp_path: Path, at: int) -> None:
    path, config = tmp_path / "c.safetensors", replace(CONFIG, epochs=4, accumulate=2)
    whole, network = Tiny(dropout=0.5), Tiny(dropout=0.5)
    expected = train_network(whole, EXAMPLES, config, STEPS)
    steps = dying(STEPS, at, lambda: signal.raise_signal(signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_network(Tiny(dropout=0.5), EXAMPLES, config, steps, checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is handler
    calls: list[int] = []
    counted = replace(STEPS, augment=lambda x, seeds: calls.append(1) or shade(x, seeds))
    history = train_network(network, EXAMPLES, config, counted, checkpoint=path)
    assert len(calls) == LEFT[at]
    assert same(history, expected)
    assert content(network) == content(whole)


def test_signal_to_terminate_waits_for_the_checkpoint_too(tmp_path: Path) -> None:
    path, came = tmp_path / "c.safetensors", []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: came.append(path.exists()))
    steps = dying(STEPS, 2, lambda: signal.raise_signal(signal.SIGTERM))
    try:
        # a handler that only takes note: a half-trained network must not come back for all that
        with pytest.raises(KeyboardInterrupt):
            train_network(Tiny(), EXAMPLES, CONFIG, steps, checkpoint=path)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert came == [True]


def test_in_a_thread_nothing_is_held_back() -> None:
    histories: list[History] = []
    thread = threading.Thread(
        target=lambda: histories.append(train_network(Tiny(), EXAMPLES, CONFIG, STEPS))
    )
    thread.start()
    thread.join()
    assert same(histories[0], train_network(Tiny(), EXAMPLES, CONFIG, STEPS))


def test_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    path = tmp_path / "c.safetensors"
    steps = replace(dying(STEPS, 0, press_twice), validate=never)
    with pytest.raises(KeyboardInterrupt):
        train_network(Tiny(), EXAMPLES, CONFIG, steps, checkpoint=path)
    assert not path.exists()


def test_diverged_training_names_the_cure() -> None:
    labels = EXAMPLES.labels.copy()
    labels[3] = np.nan
    spoilt = replace(EXAMPLES, labels=labels)
    with pytest.raises(InputError, match=r"epoch 1: training loss at step \d is nan.*lower"):
        train_network(Tiny(), spoilt, CONFIG, PLAIN)
    with pytest.raises(InputError, match="train in fp32"):
        train_network(Tiny(), spoilt, replace(CONFIG, precision="bf16"), PLAIN)
    steps = replace(PLAIN, validate=scripted([1, math.inf], []))
    with pytest.raises(InputError, match=r"epoch 1: validation loss is inf.*0\.01 and 0\.03"):
        train_network(Tiny(), EXAMPLES, CONFIG, steps)


def test_one_line_per_epoch_is_logged(told: pytest.LogCaptureFixture) -> None:
    history = train_network(Tiny(), EXAMPLES, replace(CONFIG, epochs=1), STEPS)
    row = history.rows[1]
    assert told.messages[0].startswith("epoch 0: validation loss")
    assert told.messages[1] == (
        f"epoch 1: train loss {row['train_loss']:.4f}, validation loss {row['loss']:.4f}, "
        f"correlation {row['correlation']:.3f}" + (" (best)" if history.best_epoch else "")
    )


def test_buffers_that_the_caller_replaces_are_kept(tmp_path: Path) -> None:
    def replaces(network: nn.Module) -> None:
        network.centre = network.head.bias.detach().expand(2, 3).clone()

    path, seen = tmp_path / "c.safetensors", []
    steps = replace(STEPS, refresh=replaces, validate=scripted([3, 2, 1, 4], seen))
    train_network(Tiny(), EXAMPLES, CONFIG, steps, checkpoint=path)
    network = Tiny()
    train_network(network, EXAMPLES, CONFIG, replace(STEPS, validate=never), checkpoint=path)
    assert content(network) == seen[2]


def test_useless_examples_are_refused() -> None:
    with pytest.raises(InputError, match="no example has a weight"):
        replace(EXAMPLES, weights=np.zeros(22, np.float32))
    with pytest.raises(ValueError, match="negative"):
        replace(EXAMPLES, weights=-EXAMPLES.weights)
    with pytest.raises(ValueError, match="lengths differ"):
        replace(EXAMPLES, section=EXAMPLES.section[:5])
    with pytest.raises(InputError, match="every parameter is frozen"):
        train_network(Tiny().requires_grad_(False), EXAMPLES, CONFIG, PLAIN)


SIGKILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from make_training import CONFIG, STEPS, Tiny, make_examples, shade
from deepspace.models.loop import train_network

calls = []
def augment(x, seeds):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return shade(x, seeds)

config = replace(CONFIG, checkpoint_minutes=0.0)
steps = replace(STEPS, augment=augment)
train_network(
    Tiny(dropout=0.5), make_examples(), config, steps, checkpoint=Path(sys.argv[1]), key="k"
)
"""


@pytest.mark.slow
def test_sigkilled_process_goes_on_in_another(tmp_path: Path) -> None:
    path, whole = tmp_path / "c.safetensors", tmp_path / "whole.safetensors"
    config = replace(CONFIG, checkpoint_minutes=0.0)
    train_network(Tiny(dropout=0.5), EXAMPLES, config, STEPS, checkpoint=whole, key="k")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    for at, code in ((9, -signal.SIGKILL), (4, -signal.SIGKILL), (99, 0)):
        run = subprocess.run(
            [sys.executable, "-c", SIGKILLED, str(path), str(at)], env=environment, check=False
        )
        assert run.returncode == code
    assert path.read_bytes() == whole.read_bytes()


def test_an_ignored_signal_stays_ignored() -> None:
    """As in a background job of a script: it must not stop a training half-way."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
        assert signals.number == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stopped_block_never_looks_finished() -> None:
    """Even where somebody's own handler swallows the signal."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), Signals():
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_oldest_checkpoints_make_room(tmp_path: Path) -> None:
    for age, name in ((0, "new"), (1, "middle"), (RECENT_S + 9, "old"), (RECENT_S + 9, ".being")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(bytes(100))
        os.utime(path, (1e6 - age, 1e6 - age))
    make_room(tmp_path, max_bytes=250)
    assert {p.stem for p in tmp_path.iterdir()} == {"new", "middle", ".being"}
    make_room(tmp_path, max_bytes=150)  # of a training under way, perhaps
    assert {p.stem for p in tmp_path.iterdir()} == {"new", "middle", ".being"}
