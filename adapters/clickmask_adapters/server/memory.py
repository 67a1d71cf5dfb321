"""How this process keeps its memory, so that no click waits for it."""

from __future__ import annotations

import ctypes
import gc

# Of glibc's malloc.h. Otherwise each thread gets an arena of its own, and the arrays that one has
# freed are cold for all the others; and what is large goes back to the system as soon as it is free.
# All arenas but the first give back heaps of 64 MiB as well: with two, a click on 12 Mpx had 1,100
# page faults and took 28 ms beside its mask decoder; with one mostly none, and 23 to 26 ms.
_OPTIONS = {
    -8: 1,  # M_ARENA_MAX
    -3: 32 * 2**20,  # M_MMAP_THRESHOLD, in bytes: the most that glibc takes; a mask of 12 Mpx is kept
    -1: 64 * 2**20,  # M_TRIM_THRESHOLD, in bytes that are free at the end of a heap
}


def share_malloc_arena() -> bool:
    """Have all threads share what they free, and say whether that could be had; call it early.

    Of a click on 12 Mpx, answered by any of 16 threads, a third was page faults.
    """
    try:
        return all(ctypes.CDLL(None).mallopt(option, value) == 1 for option, value in _OPTIONS.items())
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
        return False


def freeze_gc() -> None:
    """Have Python's garbage collector look no more at what is there by now; call it when all is loaded.

    Modules, routes and models live as long as the process. Each full collection went through these
    140,000 objects, for 70 to 90 ms, while every thread waited.
    """
    gc.collect()
    gc.freeze()
