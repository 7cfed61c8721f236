"""How the program and its workers end: on Ctrl-C, on SIGTERM, and when the process that started them is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import cache
from multiprocessing import active_children, parent_process

INTERVAL = 0.5  # seconds between two looks at the parent
ENDED = 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM ended


def end_on_sigterm() -> None:
    """Lets SIGTERM end this program as Ctrl-C does. Schedulers send it at a time limit; Lightning would only take note
    of it and go on.
    """
    signal.signal(signal.SIGTERM, _interrupt)


@cache
def end_with_parent() -> None:
    """Ends this process, if it is a worker, on SIGTERM and soon after its parent has ended, however that was.

    Does nothing in a main process. A worker that nobody waits for would compute on for hours.
    """
    if (parent := parent_process()) is None:
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def end_workers() -> None:
    """Ends the processes that this one has started, at once.

    Python would wait for them before it exits, and a signal to this process alone does not reach them.
    """
    for worker in active_children():
        worker.kill()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _exit(*_: object) -> None:
    os._exit(ENDED)


def _watch(parent: int) -> None:
    """`parent` is the one that made this process: os.getppid() may name another one by the time of the first look."""
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    _exit()
