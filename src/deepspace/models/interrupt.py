"""Stop at a good moment: Ctrl-C and the signal to terminate, held back for a little."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from deepspace.core.progress import log

_HELD = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Inside the block a first Ctrl-C, or SIGTERM, is only noted; at its end it takes effect.

    A second one takes effect at once. Python lets only the main thread do so: in another one
    nothing is held back.

    Attributes
    ----------
    number
        The signal that came, or 0.
    agreed
        The signal that all processes stop for, or 0; set by the loop, which asks all of them.
    """

    def __init__(self) -> None:
        self.number = 0
        self.agreed = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            # a signal that is ignored, as in a script's background job, stays so
            wanted = [held for held in _HELD if signal.getsignal(held) != signal.SIG_IGN]
            self._before = {held: signal.signal(held, self._note) for held in wanted}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._let_go()
        number = self.agreed or self.number
        if number and error is None:
            signal.raise_signal(number)
            # whatever handles it: what was stopped must not be taken for finished
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._let_go()
        log.info("stopping once this step is done and saved; once more to stop at once")

    def _let_go(self) -> None:
        for held, handler in self._before.items():
            signal.signal(held, signal.SIG_DFL if handler is None else handler)
        self._before = {}
