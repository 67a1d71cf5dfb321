"""The real server, as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

READY = re.compile(r"http://\S+")
SERVE = ("-m", "clickmask_adapters.cli", "serve")


class Server:
    """`clickmask serve` on a free port; `url` once it printed its address, `output` what it said so far.

    `program` is what Python runs, and may be another server that takes --port and prints its address.
    """

    def __init__(
        self,
        home: Path,
        environment: Mapping[str, str],
        arguments: list[str],
        program: Sequence[str] = SERVE,
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLICKMASK_")}
        self.process = subprocess.Popen(
            [sys.executable, *program, "--port", "0", *arguments],
            env={**inherited, "CLICKMASK_HOME": str(home), "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(180) or not self.url:
            self.stop()
            raise RuntimeError(f"the server did not start:\n{self.output}")

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if not self.url and (match := READY.search(line)):
                self.url = match[0]
                self._ready.set()
        self._ready.set()

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(5)
        assert self.process.stdout
        self.process.stdout.close()
        return code


@contextmanager
def serving(home: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    server = Server(home, environment, list(arguments))
    try:
        yield server
    finally:
        server.stop()
