"""Seconds and peak memory of a piece of work: with Peak() as peak: ...; peak.seconds, peak.bytes

On a CPU the resident memory of the process is sampled every few milliseconds by a thread, so the
peak is that of the process above where it stood, allocator slack included; on a GPU PyTorch counts.
"""

import ctypes
import mmap
import threading
import time
from pathlib import Path

import torch


def resident():
    """Bytes of memory the process holds now, or 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def give_back_freed_memory():
    """Return freed memory to the system now, and from now on at once, where the C library is glibc.

    Without it what was freed is kept for reuse, and the process hardly shrinks. Costs time.
    """
    mmap_threshold = -3
    try:
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass


class Peak:
    """Context manager: `seconds` and `bytes`, the most memory held above the start."""

    def __init__(self, device="cpu"):
        self.cuda = torch.device(device).type == "cuda"
        self.seconds = self.bytes = 0

    def _watch(self):
        while not self._done.wait(0.003):
            self._top = max(self._top, resident())

    def __enter__(self):
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            self._start = self._top = resident()
            self._done = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error):
        if self.cuda:
            torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self._began
            self.bytes = torch.cuda.max_memory_allocated() - self._start
        else:
            self.seconds = time.perf_counter() - self._began
            self._done.set(), self._thread.join()
            self.bytes = max(self._top, resident()) - self._start
