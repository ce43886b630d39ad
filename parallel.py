"""Several processes: one run on parts of its batches, or many independent pieces of work.

    torchrun --nproc_per_node N train.py ...      N processes share every batch: each computes the
                                                  gradient on its part, and the parts are summed,
        dL/dp = sum_n (b_n / B) dL_n/dp           b_n of B examples, L_n their mean loss

An adapter's gradient is small, so that one message a step is all there is to send. Every process
takes the same step, process 0 alone prints and writes. The result is that of one process on the
whole batch, up to the order of summation.

    train.py --task all --jobs N                  N runs at a time, in processes of their own
    eval.py --merge all --jobs N                  N rules at a time
"""

import contextlib
import multiprocessing
import os
import queue
import sys
from concurrent.futures import ProcessPoolExecutor

import torch
import torch.distributed as dist

from errors import BadInput


def place():
    """(rank, number of processes) of this one, as torchrun tells them; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def group(batch):
    """Join the processes that torchrun started; all but the first become silent.

    batch   examples of a step, at least one for each process, else BadInput
    """
    rank, count = place()
    if count == 1:
        yield
        return
    if batch < count:
        raise BadInput(f"--batch {batch} is too small for {count} processes: one example each")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, \
                contextlib.redirect_stdout(nowhere if rank else sys.stdout):
            yield
    finally:
        dist.destroy_process_group()


def wait():
    """Until every process is here."""
    if place()[1] > 1:
        dist.barrier()


def add_up(tensors):
    """Replace every tensor by its sum over the processes, in one message."""
    if place()[1] == 1:
        return
    message = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(message)
    for t, part in zip(tensors, message.split([t.numel() for t in tensors])):
        t.copy_(part.view_as(t))


class Ticks:
    """A progress bar in another process: what `update` says there, the bar here shows."""

    def __init__(self, line):
        self.line = line

    def update(self):
        self.line.put(1)

    def set_postfix_str(self, text, refresh=False):
        pass


def spread(function, units, jobs, bar):
    """[function(*unit, bar) for unit in units], `jobs` at a time in processes of their own.

    The threads of this process are shared out among them; their own bars are not shown. The first
    error ends the rest.
    """
    if jobs == 1:
        return [function(*unit, bar) for unit in units]
    threads = max(1, torch.get_num_threads() // jobs)
    spawn = multiprocessing.get_context("spawn")
    os.environ["TQDM_DISABLE"] = "1"                     # read when a new process imports tqdm
    with spawn.Manager() as manager, ProcessPoolExecutor(
            jobs, spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        line = manager.Queue()
        futures = [pool.submit(function, *unit, Ticks(line)) for unit in units]
        try:
            while not all(f.done() for f in futures) or not line.empty():
                if any(f.done() and f.exception() for f in futures):
                    break
                with contextlib.suppress(queue.Empty):
                    line.get(timeout=0.2)
                    bar.update()
            return [f.result() for f in futures]
        finally:
            del os.environ["TQDM_DISABLE"]
            pool.shutdown(cancel_futures=True)
