"""How workers end."""

import os
import subprocess
import sys
import time

import pytest

# A worker that comes to `end_with_parent` late: its parent is gone by then, and another process has adopted it.
LATE = """
import os, time
from multiprocessing import get_context
from vdq.processes import end_with_parent

def work(parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent()
    time.sleep(600)

if __name__ == "__main__":
    worker = get_context("spawn").Process(target=work, args=(os.getpid(),))
    worker.start()
    print(worker.pid, flush=True)
    os._exit(0)
"""


# A program that stops while a worker, which does not listen, has ten minutes to go.
WAITS = """
import signal, sys, time
from multiprocessing import get_context
from vdq.processes import end_workers

def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

if __name__ == "__main__":
    get_context("spawn").Process(target=work).start()
    end_workers()
    sys.exit(3)
"""


def start(code, folder):
    (folder / "code.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, folder / "code.py"], stdout=subprocess.PIPE, text=True, env=environment)


def test_a_program_that_stops_waits_for_no_worker(tmp_path):
    assert start(WAITS, tmp_path).wait(timeout=120) == 3


def test_a_worker_ends_whose_parent_was_gone_before_it_could_look(tmp_path):
    psutil = pytest.importorskip("psutil")
    done = start(LATE, tmp_path)
    worker = psutil.Process(int(done.stdout.readline()))
    done.wait()
    deadline = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    if not ended:
        worker.kill()
    assert ended
