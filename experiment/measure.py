"""Seconds and peak memory of a piece of work: with Peak() as peak: ...; peak.seconds, peak.bytes

On a GPU PyTorch counts. On a CPU the Linux kernel does: VmHWM of /proc/self/status is the most
memory that was ever resident, exactly and not sampled, and writing 5 to /proc/self/clear_refs sets
it back to what is resident now. Where the system offers neither, `bytes` is 0.
"""

import contextlib
import ctypes
import re
import time
from pathlib import Path

import torch


def high_water():
    """Bytes: the most memory the process has held since the last reset, or 0 if not known."""
    try:
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return 0


def reset_high_water():
    """Forget earlier peaks; returns the bytes held now, or None where that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return high_water()
    except OSError:
        return None


class Peak:
    """Context manager: `seconds` and `bytes`, the most memory held above the start."""

    def __init__(self, device="cpu"):
        self.cuda = torch.device(device).type == "cuda"
        self.seconds = self.bytes = 0

    def __enter__(self):
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._start = torch.cuda.memory_allocated()
        else:
            with contextlib.suppress(AttributeError, OSError, TypeError):    # glibc: give back what
                ctypes.CDLL(None).malloc_trim(0)                             # was freed, and reused
            self._start = reset_high_water()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error):
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self._began
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self._start
        elif self._start is not None:
            self.bytes = max(0, high_water() - self._start)
