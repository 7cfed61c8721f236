"""How the program and its workers end: on Ctrl-C, on SIGTERM, and when the process that started them is gone."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import cache
from multiprocessing import current_process

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
    if current_process().name == "MainProcess":
        return
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _exit(*_: object) -> None:
    os._exit(ENDED)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(INTERVAL)
    _exit()
