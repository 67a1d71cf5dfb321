"""Import this first in a process, and clickmask's modules find no more of the system than Windows has.

Modules that only POSIX has cannot be imported by them, and `os`, `signal` and `ctypes` lack the names
that Windows lacks (Python 3.11's documentation, "Availability: Unix"). Other packages see the system as
it is: they have Windows branches of their own. Not imitated: names without case, open files that
cannot be renamed or removed, locked files that cannot be read.
"""

import builtins
import ctypes
import errno
import fcntl
import os
import re
import signal
import stat
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODULES = {*"fcntl resource termios tty pty pwd grp syslog posix spwd crypt readline curses".split()}
OS = re.compile(
    r"O_(DIRECTORY|NOFOLLOW|NONBLOCK|CLOEXEC|N?O?A?SYNC|DSYNC|NOCTTY|PATH|TMPFILE|NOATIME|DIRECT|NDELAY)"
    r"|(sched|posix)_\w+|[gs]et(e|re|res)?[ug]id|[gs]et(groups|p?gid|sid|pgrp|priority)|initgroups|setsid|getsid"
    r"|nice|getloadavg|uname|sysconf|confstr|l?chown|fchown|fchmod|fchdir|chroot|fork|forkpty|killpg|wait[34]?"
    r"|waitid|mkfifo|mknod|f?statvfs|fdatasync|sync|p(read|write)v?|(read|write)v|sendfile|splice|memfd_create"
    r"|ctermid|ttyname|openpty|register_at_fork|[gls]+etxattr|listxattr|copy_file_range|pathconf|ftruncate64"
)
SIGNALS = re.compile(
    r"SIG(HUP|KILL|QUIT|USR[12]|ALRM|CHLD|PIPE|STOP|TSTP|CONT|WINCH)|pause|alarm|sigwait|pthread_\w+"
)


def windows_open(path: Any, flags: int, mode: int = 0o777) -> int:
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return os.open(path, flags, mode)


def windows_fsync(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode) or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    os.fsync(descriptor)


class WindowsLibrary(ctypes.CDLL):
    def __init__(self, name: str | None, *given: Any, **more: Any) -> None:
        if name is None:
            raise TypeError("LoadLibrary() argument 1 must be str, not None")
        super().__init__(name, *given, **more)


def without(module: types.ModuleType, names: re.Pattern[str], **replaced: object) -> types.ModuleType:
    seen = types.ModuleType(module.__name__)
    seen.__dict__.update({name: value for name, value in vars(module).items() if not names.fullmatch(name)})
    seen.__dict__.update(replaced)
    return seen


SEEN = {
    "os": without(os, OS, name="nt", open=windows_open, fsync=windows_fsync),
    "sys": without(sys, re.compile("abiflags"), platform="win32"),
    "signal": without(signal, SIGNALS),
    "ctypes": without(ctypes, re.compile("pythonapi"), CDLL=WindowsLibrary),
}
real_import = builtins.__import__


def windows_import(
    name: str,
    globals: Mapping[str, Any] | None = None,  # noqa: A002
    locals: Mapping[str, Any] | None = None,  # noqa: A002
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> types.ModuleType:
    importer = (globals or {}).get("__name__", "")
    if importer.split(".")[0] in ("__main__", "clickmask", "clickmask_adapters"):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name in SEEN:
            return SEEN[name]
    return real_import(name, globals, locals, fromlist or (), level)


builtins.__import__ = windows_import
