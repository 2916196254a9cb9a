"""The process that watches: names the call in which a child crashed or hung, and goes on behind it."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fuzz.draw import draw

TESTS = Path(__file__).parents[1]
CHILD = ("-m", "fuzz.child")
STARTING = 300.0  # seconds for torch to be imported on a busy machine


@dataclass(frozen=True)
class Ended:
    """A call that is over, in one way or another."""

    number: int
    kind: str
    sentence: str | None
    """What is wrong; None: nothing."""
    script: str | None = None


def watch(seed: int, calls: int, timeout: float) -> Iterator[Ended]:
    """Every call, in order, as it ends; a crash, or more than `timeout` seconds, is a finding."""
    first = 0
    while first < calls:
        with _Child(seed, first, calls) as child:
            for ended in child.calls(timeout):
                first = ended.number + 1
                yield ended


class _Child:
    """One process of calls from `first` on, until all are done or one ends it."""

    def __init__(self, seed: int, first: int, end: int) -> None:
        self.seed, self.first = seed, first
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.reader, writer = os.pipe()
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, *CHILD, *map(str, (writer, seed, first, end))],
            pass_fds=[writer],
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
            env={"RUST_BACKTRACE": "0", **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        os.close(writer)

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reader)
        self.stderr.close()

    def calls(self, timeout: float) -> Iterator[Ended]:
        running: int | None = None
        for message in self._messages(timeout):
            if message is None:
                yield self._broken(running, f"no end within {timeout:g} seconds")
                return
            running = message.get("start")
            if "end" in message:
                yield Ended(message["end"], message["kind"], message.get("sentence"), message.get("script"))
        status = self.process.wait()
        if status != 0:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            yield self._broken(running, f"the process ended: {how}\n{self._last_words()}")

    def _messages(self, timeout: float) -> Iterator[dict[str, Any] | None]:
        """What the child writes, line by line; None if it writes nothing for too long."""
        buffer, allowed = b"", STARTING
        with selectors.DefaultSelector() as selector:
            selector.register(self.reader, selectors.EVENT_READ)
            while True:
                until = time.monotonic() + allowed
                while b"\n" not in buffer:
                    if not selector.select(max(0.0, until - time.monotonic())):
                        yield None
                        return
                    read = os.read(self.reader, 1 << 16)
                    if not read:
                        return
                    buffer += read
                line, _, buffer = buffer.partition(b"\n")
                yield json.loads(line)
                allowed = timeout

    def _broken(self, number: int | None, sentence: str) -> Ended:
        if number is None:
            raise RuntimeError(f"the child did not come to a call: {sentence}\n{self._last_words()}")
        call = draw(self.seed, number)
        return Ended(number, call.kind, sentence, call.text)

    def _last_words(self) -> str:
        self.stderr.seek(0)
        return "\n".join(self.stderr.read().decode(errors="replace").splitlines()[-12:])
