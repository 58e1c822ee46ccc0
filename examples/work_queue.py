"""Workers that share a directory of tasks: rename takes one, and only one of them gets it.

export NOKV_CLUSTER=127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
python examples/work_queue.py
"""

from __future__ import annotations

import threading

import nokv
from nokv.errors import NotFound

TASKS = 40
WORKERS = 4


def work(name: str, taken: list[str]) -> None:
    """Take tasks until none is left."""
    with nokv.connect_sync() as fs:
        for task in fs.listdir("/queue/waiting"):
            try:
                fs.rename(f"/queue/waiting/{task}", f"/queue/taken/{name}-{task}")
            except NotFound:
                continue  # another worker was faster
            taken.append(task)


def main() -> None:
    """Fill a queue, let workers empty it, and see that each task was taken once."""
    with nokv.connect_sync() as fs:
        if fs.exists("/queue"):
            fs.remove_tree("/queue")
        fs.mkdir("/queue")
        fs.mkdir("/queue/waiting")
        fs.mkdir("/queue/taken")
        fs.bulk_create("/queue/waiting", [f"task-{number:03}" for number in range(TASKS)])
    taken: list[str] = []
    threads = [threading.Thread(target=work, args=(f"w{i}", taken)) for i in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [f"task-{number:03}" for number in range(TASKS)]
    print(f"{WORKERS} workers took {len(taken)} tasks, each once")


if __name__ == "__main__":
    main()
