"""Processes that do not outlive the process that needs them, however it ends."""

import os
import threading
from collections.abc import Callable


def end_after(wait: Callable[[], object]) -> None:
    """End this process once `wait` returns, whatever else it does by then.

    Otherwise a process whose parent has ended would finish its run, and a worker would then wait for ever.
    """

    def end() -> None:
        wait()
        os._exit(1)  # in a thread, sys.exit would end only the thread

    threading.Thread(target=end, daemon=True).start()
