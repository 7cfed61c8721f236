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


def test_a_worker_ends_whose_parent_was_gone_before_it_could_look(tmp_path):
    psutil = pytest.importorskip("psutil")
    (tmp_path / "late.py").write_text(LATE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.Popen([sys.executable, tmp_path / "late.py"], stdout=subprocess.PIPE, text=True, env=environment)
    worker = psutil.Process(int(done.stdout.readline()))
    done.wait()
    deadline = time.monotonic() + 60
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    if not ended:
        worker.kill()
    assert ended
