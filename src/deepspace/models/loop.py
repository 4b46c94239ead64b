"""Train a network: the loop over epochs and steps, the same for every network and target.

The result depends on the examples, the configuration and the number of processes, not on when or
how often training was stopped and went on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepspace.core.errors import InputError
from deepspace.core.files import atomic_path
from deepspace.core.progress import counter, log
from deepspace.models import distributed
from deepspace.models.checkpoint import BEST, Checkpoint, Standing
from deepspace.models.interrupt import Signals
from deepspace.models.losses import Loss
from deepspace.models.optimiser import NOW, adam, current_tensors, kept_tensors
from deepspace.models.repeatable import repeatable, seeded, stable_seed


@dataclass(frozen=True)
class LoopConfig:
    """How a network is trained.

    Attributes
    ----------
    epochs
        At most so many passes over the examples.
    batch
        Examples a step, over all processes.
    accumulate
        Parts that each process computes its share of a batch in, one after another; more need
        less memory and give the same gradient (but for batch normalisation, which sees a part).
    learning_rate, head_learning_rate
        Of Adam (Kingma & Ba 2015), for all trainable parameters but those of ``network.head``,
        and for those.
    weight_decay
        L2 penalty, as in ``torch.optim.Adam``.
    patience
        Training stops after so many epochs in a row without a lower validation loss.
    seed
        Of the order of examples, augmentation and dropout.
    precision
        ``bf16`` multiplies in bfloat16; parameters, loss and Adam stay float32.
    checkpoint_minutes
        Time between two checkpoints within an epoch.
    device
        ``cpu`` or ``cuda``.
    """

    epochs: int
    batch: int
    accumulate: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    patience: int
    seed: int
    precision: Literal["fp32", "bf16"]
    checkpoint_minutes: float
    device: str


class PatchRows(Protocol):
    """Patches (n, f, s, s, 3) uint8 that are read by row numbers: an array, or parts of several."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.uint8]: ...


@dataclass
class Examples:
    """What is learnt from.

    Attributes
    ----------
    patches
        (n, f, s, s, 3) RGB, uint8, in memory or mapped from a file; f fields of view.
    labels
        (n, k) float32, values of the target.
    weights
        (n,) float32, not negative; an example of weight 0 is never read.
    section
        (n,) int64, number of the section it comes from.
    """

    patches: PatchRows
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    section: NDArray[np.int64]

    def __post_init__(self) -> None:
        parts = (self.patches, self.labels, self.weights, self.section)
        if len({len(part) for part in parts}) != 1:
            raise ValueError(f"examples: lengths differ: {[len(part) for part in parts]}")
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise ValueError("examples: a weight is negative or no number")
        if not self.weights.any():
            raise InputError("training: no example has a weight; measure or label more spots")


@dataclass(frozen=True)
class Steps:
    """What the caller does within the loop.

    Attributes
    ----------
    loss
        What is made small.
    augment
        From patches (b, f, 3, s, s) in 0..1 and one seed per patch to changed patches.
    validate
        Scores of the network, lower ``loss`` is better; ``correlation``, if it is there, is
        shown. Called in every process; the scores of process 0 count. Without it training takes
        all its epochs and keeps the last.
    refresh
        Updates the network's buffers. Called before every validation, so that the next epoch
        trains with these buffers too. Called in every process; the buffers of process 0 count.
    """

    loss: Loss
    augment: Callable[[Tensor, Sequence[int]], Tensor]
    validate: Callable[[nn.Module], Mapping[str, float]] | None
    refresh: Callable[[nn.Module], None]


@dataclass(frozen=True)
class History:
    """How training went.

    Attributes
    ----------
    rows
        Per epoch: ``epoch``, ``train_loss`` (weighted mean over the examples as they were
        seen, NaN for epoch 0, which is the network before any step), and the scores.
    best_epoch
        The epoch whose network was kept.
    """

    rows: list[dict[str, float]]
    best_epoch: int


def write_history(history: History, path: Path) -> None:
    """Write one CSV row per epoch."""
    with atomic_path(path) as temporary:
        pd.DataFrame(history.rows).to_csv(temporary, index=False)


def train_network(
    network: nn.Module,
    examples: Examples,
    config: LoopConfig,
    steps: Steps,
    *,
    checkpoint: Path | None = None,
    key: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> History:
    """Train `network` in place; afterwards it is as it was after its best epoch.

    Parameters
    ----------
    network
        Called with patches (b, f, 3, s, s) in 0..1 and section numbers (b,); gives outputs
        (b, k). Parameters that need no gradient stay as they are.
    examples, config, steps
        What to learn from, how, and what is done on the way.
    checkpoint
        File that training goes on from if it was stopped, also after a kill; written after
        every epoch, in time, and on Ctrl-C. A finished training is not repeated.
    key
        Hash of everything that determines the training. A checkpoint with another key is
        replaced.
    clock
        Seconds, for the time between checkpoints.

    Returns
    -------
    History
        Of all epochs, also those before training was stopped.

    Raises
    ------
    InputError
        If the loss is not finite, or a checkpoint cannot be written.
    KeyboardInterrupt
        On Ctrl-C, once the step under way is done and saved.
    """
    device = distributed.setup(config.device)
    # channels_last is what makes bf16 pay on a processor
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with Signals() as signals, repeatable(device):
        training = _Training(network, examples, config, steps, device)
        history = training.run(
            Checkpoint(checkpoint, key, config.checkpoint_minutes, clock), signals
        )
    network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return history


class _Training:
    """A training under way: the tensors that it changes, and where it stands."""

    def __init__(
        self,
        network: nn.Module,
        examples: Examples,
        config: LoopConfig,
        steps: Steps,
        device: torch.device,
    ) -> None:
        self.network, self.examples, self.config, self.steps = network, examples, config, steps
        self.device = device
        self.optimizer = adam(
            network, config.learning_rate, config.head_learning_rate, config.weight_decay
        )
        self.forward = distributed.replicate(network, device)
        self.standing = Standing()
        self.kept = kept_tensors(network, self.optimizer)

    def run(self, checkpoint: Checkpoint, signals: Signals) -> History:
        """Train from where it stands to the end, or until a signal."""
        self._resume(checkpoint)
        while not self.standing.finished:
            if not self._train_epoch(checkpoint, signals):
                self._save(checkpoint)
                break
            self._validate()
            self._save(checkpoint)
            if self._told_to_stop(signals):
                break
        else:
            self._copy(BEST, NOW)
        return History(self.standing.rows, self.standing.best_epoch)

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Process 0 reads; the others need not see its disk."""
        found = checkpoint.load(self._tensors()) if distributed.is_main() else None
        text = distributed.share_text((found or self.standing).to_json(), self.device)
        self.standing = Standing.from_json(text)
        distributed.share(self._tensors().values(), self.device)
        if found and not found.finished:
            log.info("training goes on in epoch %d, step %d", found.epoch, found.step)

    def _save(self, checkpoint: Checkpoint) -> None:
        if distributed.is_main():
            checkpoint.save(self._tensors(), self.standing)

    def _tensors(self) -> dict[str, Tensor]:
        """All that changes; looked up each time, because a caller may replace a buffer."""
        return current_tensors(self.network) | self.kept

    @torch.no_grad()
    def _copy(self, source: str, target: str) -> None:
        tensors = self._tensors()
        for name, tensor in tensors.items():
            if name.startswith(target):
                tensor.copy_(tensors[source + name.removeprefix(target)])

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Examples of each step of an epoch."""
        if epoch == 0:
            return []
        with_weight = np.flatnonzero(self.examples.weights)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(with_weight)
        return [order[i : i + self.config.batch] for i in range(0, len(order), self.config.batch)]

    def _train_epoch(self, checkpoint: Checkpoint, signals: Signals) -> bool:
        """Do the steps of the epoch that are left; whether it was not stopped."""
        standing = self.standing
        batches = self._batches(standing.epoch)
        self.network.train()
        text, shown = f"epoch {standing.epoch}", distributed.is_main()
        with counter(len(batches), text, initial=standing.step, shown=shown) as bar:
            while standing.step < len(batches):
                self._step(batches[standing.step], signals)
                bar.set_postfix_str(f"loss {standing.loss_sum / standing.weight_sum:.4f}")
                bar.update(1)
                if signals.agreed:
                    return False
                if checkpoint.due():
                    self._save(checkpoint)
        return True

    def _step(self, batch: NDArray[np.int64], signals: Signals) -> None:
        """Change the parameters once, by the mean gradient of a batch."""
        standing = self.standing
        total = float(self.examples.weights[batch].sum(dtype=np.float64))
        self.optimizer.zero_grad()
        mine = self._gradients(batch, distributed.world_size() / total)
        table = distributed.gather([mine, signals.number], self.device)
        signals.agreed = int(table[:, 1].max())
        loss = float(table[:, 0].sum())
        if not math.isfinite(loss):
            raise self._not_finite(f"training loss at step {standing.step + 1}", loss)
        self.optimizer.step()
        distributed.share(self.network.buffers(), self.device)
        standing.step += 1
        standing.loss_sum += loss
        standing.weight_sum += total

    def _gradients(self, batch: NDArray[np.int64], scale: float) -> float:
        """Add up `scale` times the gradient of this process' share; return its loss sum."""
        together = distributed.world_size() * self.config.accumulate
        parts = distributed.parts_of(batch, math.ceil(self.config.batch / together))
        loss_sum = 0.0
        for number, rows in enumerate(parts):
            last = number == len(parts) - 1
            dice = seeded(self._seed(number), self.device)
            with distributed.adding_up(self.forward, last=last), dice:
                if len(rows):
                    loss = self._loss(rows, self.examples.weights[rows])
                else:  # nothing left for this process, but the others wait for it
                    loss = self._loss(batch[:1], np.zeros(1, np.float32))
                (loss * scale).backward()  # type: ignore[no-untyped-call]
            loss_sum += float(loss.detach())
        return loss_sum

    def _seed(self, part: int) -> int:
        """Seed of the dropout of one part of one step in one process."""
        standing, rank = self.standing, distributed.rank()
        return stable_seed(self.config.seed, standing.epoch, standing.step, part, rank)

    def _loss(self, rows: NDArray[np.int64], weights: NDArray[np.float32]) -> Tensor:
        """Sum of the weighted losses of some examples."""
        patches = torch.from_numpy(np.asarray(self.examples.patches[rows])).to(self.device)
        x = patches.permute(0, 1, 4, 2, 3).float() / 255
        seed, epoch = self.config.seed, self.standing.epoch
        x = self.steps.augment(x, [stable_seed(seed, epoch, int(row)) for row in rows])
        flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        section = torch.from_numpy(self.examples.section[rows]).to(self.device)
        labels = torch.from_numpy(self.examples.labels[rows]).to(self.device)
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            outputs = self.forward(flat.view(x.shape), section)
        return self.steps.loss.value(
            outputs.float(), labels, torch.from_numpy(weights).to(self.device)
        )

    def _validate(self) -> None:
        """End the epoch: score the network, keep it if it is the best so far."""
        standing = self.standing
        scores = self._scores()
        watched = self.steps.validate is not None
        if watched and not math.isfinite(scores["loss"]):
            raise self._not_finite("validation loss", scores["loss"])
        mean = standing.loss_sum / standing.weight_sum if standing.epoch else math.nan
        standing.rows.append({"epoch": standing.epoch, "train_loss": mean, **scores})
        first = standing.epoch == 0 or not watched
        best = first or scores["loss"] < standing.rows[standing.best_epoch]["loss"]
        if best:
            standing.best_epoch = standing.epoch
            self._copy(NOW, BEST)
        if distributed.is_main() and len(standing.rows[-1]) + standing.epoch > 2:
            log.info(_line(standing.rows[-1], best=best and watched))
        without = standing.epoch - standing.best_epoch
        standing.finished = standing.epoch >= self.config.epochs or without >= self.config.patience
        standing.epoch += 1
        standing.step, standing.loss_sum, standing.weight_sum = 0, 0.0, 0.0

    @torch.no_grad()
    def _scores(self) -> dict[str, float]:
        """Scores found by process 0, whose buffers everybody takes."""
        self.network.eval()
        self.steps.refresh(self.network)
        distributed.share(self.network.buffers(), self.device)
        if self.steps.validate is None:
            return {}
        scores = {name: float(score) for name, score in self.steps.validate(self.network).items()}
        shared: dict[str, float] = json.loads(
            distributed.share_text(json.dumps(scores), self.device)
        )
        return shared

    def _told_to_stop(self, signals: Signals) -> bool:
        signals.agreed = int(distributed.gather([signals.number], self.device).max())
        return signals.agreed != 0

    def _not_finite(self, what: str, value: float) -> InputError:
        rates = f"{self.config.learning_rate:g} and {self.config.head_learning_rate:g}"
        precision = " or train in fp32" if self.config.precision == "bf16" else ""
        return InputError(
            f"epoch {self.standing.epoch}: {what} is {value}: training diverged; lower the "
            f"learning rates (now {rates}){precision}"
        )


def _line(row: Mapping[str, float], *, best: bool) -> str:
    """One line about an epoch."""
    parts = [f"epoch {row['epoch']:.0f}:"]
    if row["epoch"]:
        parts.append(f"train loss {row['train_loss']:.4f}")
    if "loss" in row:
        parts.append(f"validation loss {row['loss']:.4f}")
    if "correlation" in row:
        parts[-1] += f", correlation {row['correlation']:.3f}"
    return parts[0] + " " + ", ".join(parts[1:]) + (" (best)" if best else "")
