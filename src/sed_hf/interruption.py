"""Ctrl-C and SIGTERM end a command with one line, with nothing half written, and with the status that shells expect."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from . import files

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
REPEATED_SECONDS = 1.0  # a launcher hands on the signal that the terminal has sent to all processes
DEFERRED_SECONDS = 0.02  # what begins or ends a block, or a file, is not interrupted: it takes no longer
MAX_DEFERRED = 50  # times
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
SET_BY_ACCELERATE_LAUNCH = "ACCELERATE_MIXED_PRECISION"


@contextmanager
def interruptible(program: str, hint: str = "") -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the block as [`KeyboardInterrupt`], and the program with one line.

    Signals that the process was started to ignore stay ignored. Processes that it starts leave interruptions to it.
    Where `accelerate launch` has started this one and is terminated, so is this one.
    Outside of the main thread, and in processes of `multiprocessing`, this does nothing.

    Args:
        program: What the line begins with.
        hint: What to do next, for the line.

    Raises:
        SystemExit: With status 128 + the number of the signal, such as 130 for Ctrl-C and 143 for SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None:
        yield
        return
    received = _Received(program, hint)
    previous_hook = sys.unraisablehook
    previous = {
        number: signal.signal(number, received.handle)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    sys.unraisablehook = received.handle_unraisable
    if SET_BY_ACCELERATE_LAUNCH in os.environ:
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    try:
        yield
        received.raise_deferred()
    except BaseException as error:
        # An interruption may come out as another error: of a library, or because a process was interrupted too.
        if received.number is None and not isinstance(error, KeyboardInterrupt):
            raise
        traceback.clear_frames(error.__traceback__)  # ends progress bars and processes that read data
        received.report()
        raise SystemExit(received.status) from None
    finally:
        received.timer.cancel()
        sys.unraisablehook = previous_hook
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Received:
    """The signal that has come, if any, and what to do about it."""

    def __init__(self, program: str, hint: str) -> None:
        self.program, self.hint = program, hint
        self.process = os.getpid()
        self.number: int | None = None
        self.time = 0.0
        self.deferred: list[int] = []
        self.timer = threading.Timer(0, int)  # runs while a signal is deferred

    @property
    def status(self) -> int:
        """The exit status."""
        return 128 + (self.number or signal.SIGINT)

    def report(self) -> None:
        """Say what happened."""
        what = "interrupted" if self.status == 128 + signal.SIGINT else "terminated"
        with suppress(OSError):  # the terminal may be gone
            sys.stdout.flush()
            print(f"{self.program}: {what}{self.hint and f'; {self.hint}'}", file=sys.stderr, flush=True)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        if os.getpid() != self.process:  # forked, to read pictures for example: the process above ends it
            if number != signal.SIGINT:
                os._exit(128 + number)
            return
        if self.number is not None and time.monotonic() - self.time < REPEATED_SECONDS:
            return
        if _is_delicate(frame) and len(self.deferred) < MAX_DEFERRED:
            self.deferred.append(number)
            self._send_again(number, DEFERRED_SECONDS)
            return
        self.number, self.time = number, time.monotonic()
        if _is_importing(frame) and not files.is_writing() and not multiprocessing.active_children():
            # Modules that are interrupted while they load may swallow it or crash, and there is nothing to finish.
            self.report()
            os._exit(self.status)
        raise KeyboardInterrupt

    def raise_deferred(self) -> None:
        """Raise what was deferred, at the end of the block."""
        if self.deferred and self.number is None:
            self.number = self.deferred[0]
            raise KeyboardInterrupt

    def _send_again(self, number: int, seconds: float) -> None:
        self.timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
        self.timer.daemon = True
        self.timer.start()

    def handle_unraisable(self, unraisable: Any) -> None:
        """What Python cannot raise, in destructors: an interruption is repeated, errors that follow it are no news."""
        if self.number is None:
            sys.__unraisablehook__(unraisable)
        elif issubclass(unraisable.exc_type, KeyboardInterrupt):
            number, self.number = self.number, None
            self._send_again(number, 0.1)


def _follow(launcher: int) -> None:
    """Terminate this process when its parent has ended: `accelerate launch` of one process hands no signals on."""
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_delicate(frame: FrameType | None) -> bool:
    """Whether a `with` statement is being entered or left, or files are being put in their places."""
    if frame is not None and frame.f_code.co_filename == contextlib.__file__:
        return True
    while frame is not None:
        if frame.f_code.co_filename == files.__file__:
            return True
        frame = frame.f_back
    return False


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False
