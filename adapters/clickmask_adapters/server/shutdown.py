"""The end of the server: in order if that is possible, and in time whatever it waits for."""

import logging
import os
import threading
import time

log = logging.getLogger(__name__)

SHUTDOWN_S = 7.0  # from the signal to the end of the process; Docker kills after 10
ANSWERS_S = 3  # in which requests at work may still be answered
_LAST_LINE_S = 0.2  # a log that nobody reads may block


def end_in_time(begin: threading.Event, seconds: float = SHUTDOWN_S) -> None:
    """End this process with status 0 `seconds` after `begin` is set, unless it ends earlier by itself.

    A thread cannot be stopped, and Python waits for those of a pool: one that computes or waits for another
    server would keep the process alive. What must last is in databases by then, safe even from a kill. The
    thread that watches starts now: a signal handler can't be sure to start one.
    """

    def end() -> None:
        begin.wait()
        time.sleep(seconds)
        said = "the server ends with work undone: requests were at work, or another server did not answer"
        try:
            last_line = threading.Thread(target=log.warning, args=(said,), daemon=True)
            last_line.start()
            last_line.join(_LAST_LINE_S)
        finally:
            os._exit(0)

    threading.Thread(target=end, name="end-in-time", daemon=True).start()
