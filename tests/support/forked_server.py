"""Real servers that start at once: processes forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from support.served import READY

# A process of root's may read everything. Without these capabilities, a mode counts for it too.
AS_OTHERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


class ForkedServer:
    """`clickmask serve` on a free port; `url` once it answers, else empty if it has ended."""

    def __init__(self, pid: int, said: Path) -> None:
        self._process, self._said = psutil.Process(pid), said

    @property
    def output(self) -> str:
        return self._said.read_text()

    @property
    def url(self) -> str:
        found = READY.search(self.output)
        return found[0] if found else ""

    @property
    def is_over(self) -> bool:
        return not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE

    def processor_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def send(self, sent: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(sent)

    def stop(self, within_s: float) -> bool:
        """Whether it ended in time after SIGTERM."""
        self.send(signal.SIGTERM)
        with contextlib.suppress(psutil.TimeoutExpired):
            self._process.wait(within_s)
        ended = self.is_over
        self.send(signal.SIGKILL)
        return ended


class Forking:
    """Starts servers."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CLICKMASK_")}
        program = [sys.executable, "-u", "-c", "from support.forked_server import main; main()"]
        self._process = subprocess.Popen(
            [*AS_OTHERS, *program] if os.getuid() == 0 else program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )

    def start(self, home: Path, within_s: float) -> ForkedServer:
        """A server, once it answers, has ended, or `within_s` is over."""
        said = home.with_name(f"{home.name}.said")
        said.write_text("")
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([str(home), str(said)]) + "\n")
        self._process.stdin.flush()
        server = ForkedServer(int(self._process.stdout.readline()), said)
        until = time.monotonic() + within_s
        while not server.url and not server.is_over and time.monotonic() < until:
            time.sleep(0.02)
        return server

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def forking(**environment: str) -> Iterator[Forking]:
    opened = Forking(environment)
    try:
        yield opened
    finally:
        opened.close()


def main() -> None:
    from clickmask_adapters import app, cli
    from clickmask_adapters.commands import serve

    assert app
    assert serve
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        home, said = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(said, os.O_WRONLY | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((0, nothing), (1, output), (2, output)):
            os.dup2(new, old)
        os.environ["CLICKMASK_HOME"] = home
        cli.app(["serve", "--port", "0"])
