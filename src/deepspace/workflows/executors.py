"""Where the parts of a long job run: here, or on the worker processes of dask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Any, TypeVar

from deepspace.core.errors import InputError
from deepspace.core.progress import log

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Executor:
    """Where to run.

    Attributes
    ----------
    kind : str
        Key of `EXECUTORS`.
    address : str, optional
        Scheduler of a dask cluster that runs already, as ``tcp://10.0.0.1:8786``.
    workers : int, optional
        Processes of a cluster that is started on this machine for this job.
    """

    kind: str = "local"
    address: str | None = None
    workers: int | None = None


def run_all(
    work: Callable[[T], R], parts: Sequence[T], executor: Executor
) -> Iterator[tuple[T, R | BaseException]]:
    """Run every part and give it with its result, or with what ended it, as they end.

    `work` must be safe to repeat: dask runs a part whose process was killed again in another one,
    until `distributed.scheduler.allowed-failures` processes have died of it.

    Raises
    ------
    InputError
        If there is no such executor, an option does not belong to it, or no cluster answers.
    """
    check_executor(executor)
    return EXECUTORS[executor.kind](work, parts, executor)


def check_executor(executor: Executor) -> None:
    """Refuse an executor that does not exist, or options that are not its own.

    Raises
    ------
    InputError
        If they do not fit together.
    """
    if executor.kind not in EXECUTORS:
        raise InputError(f"--executor {executor.kind}: take {' or '.join(EXECUTORS)}")
    for option, value in (("--address", executor.address), ("--workers", executor.workers)):
        if value is not None and executor.kind == "local":
            raise InputError(f"{option} {value}: belongs to --executor dask")
    if executor.address is not None and executor.workers is not None:
        raise InputError("--workers: a cluster at an --address has its own; leave one out")
    if executor.workers is not None and executor.workers < 1:
        raise InputError(f"--workers {executor.workers}: give a whole number from 1")


def _local(
    work: Callable[[T], R], parts: Sequence[T], executor: Executor
) -> Iterator[tuple[T, R | BaseException]]:
    for part in parts:
        try:
            yield part, work(part)
        except Exception as error:
            yield part, error


def _dask(
    work: Callable[[T], R], parts: Sequence[T], executor: Executor
) -> Iterator[tuple[T, R | BaseException]]:
    try:
        from dask import distributed  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "--executor dask needs dask.distributed; run: pip install 'deepspace[distributed]'"
        ) from None
    with _client(distributed, executor) as client:
        log.info("dask: %s", client)
        futures = client.map(work, parts, pure=False)
        found = dict(zip(futures, parts, strict=True))
        for future in distributed.as_completed(futures):  # type: ignore[no-untyped-call]
            error = future.exception()
            yield found[future], future.result() if error is None else error


def _client(distributed: Any, executor: Executor) -> AbstractContextManager[Any]:
    """Client of the cluster at an address, or of one that ends with the job."""
    if executor.address is not None:
        try:
            client = distributed.Client(executor.address, timeout=20)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--address {executor.address}: no dask scheduler answers ({error})"
            ) from error
        return closing(client)
    # closing the client closes the cluster that it has started
    return closing(
        distributed.Client(
            n_workers=executor.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,  # else dask stops workers at an even share of the machine's memory
        )
    )


EXECUTORS: dict[str, Callable[..., Iterator[Any]]] = {"local": _local, "dask": _dask}
