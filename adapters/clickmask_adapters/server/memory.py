"""Settings that keep clicks from waiting for the memory allocator or the garbage collector."""

import ctypes
import gc

# Options of glibc's malloc.h. By default each thread has its own arena, so memory that one thread frees is
# cold for all others, and large blocks return to the system at once. Arenas after the first also return
# heaps of 64 MiB: with two, a click on 12 Mpx had 1,100 page faults and took 28 ms beside its mask decoder;
# with one almost none, and 23 to 26 ms. A third of a click, answered by any of 16 threads, was page faults.
_OPTIONS = {
    -8: 1,  # M_ARENA_MAX
    -3: 32 * 2**20,  # M_MMAP_THRESHOLD, bytes: glibc's maximum; a mask of 12 Mpx stays in the heap
    -1: 64 * 2**20,  # M_TRIM_THRESHOLD, free bytes at the end of a heap
}


def share_malloc_arena() -> bool:
    """Let all threads share freed memory; call it early. False if this is not glibc."""
    try:
        return all(ctypes.CDLL(None).mallopt(option, value) == 1 for option, value in _OPTIONS.items())
    except (AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
        return False


def freeze_gc() -> None:
    """Exempt modules, routes and models from the garbage collector; call it when everything is loaded.

    Each full collection stopped all threads for 70 to 90 ms to visit these 140,000 lasting objects.
    """
    gc.collect()
    gc.freeze()
