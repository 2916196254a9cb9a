"""Processes that do not outlive the one that needs them, however that one ends."""

import os
import threading
from collections.abc import Callable


def end_after(wait: Callable[[], object]) -> None:
    """End this process once `wait` returns, whatever else it does by then.

    A process that is left alone would go on with its run, and a worker then wait for the next one for ever.
    """

    def end() -> None:
        wait()
        os._exit(1)  # from a thread, sys.exit would end the thread alone

    threading.Thread(target=end, daemon=True).start()
