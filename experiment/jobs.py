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
def group(device, batch):
    """Join the processes that torchrun started; all but the first become silent.

    device  cpu: they talk by gloo; cuda: by nccl, one GPU each
    batch   examples of a step, at least one for each process, else BadInput
    """
    rank, count = place()
    if count == 1:
        yield
        return
    if batch < count:
        raise BadInput(f"--batch {batch} is too small for {count} processes: one example each")
    if cuda := torch.device(device).type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise BadInput(f"{gpus} GPUs are too few: start at most as many processes")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        with open(os.devnull, "w") as nowhere, \
                contextlib.redirect_stdout(nowhere if rank else sys.stdout):
            yield
            wait()                               # leave together: the first still scores and writes
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


@contextlib.contextmanager
def silent_bars():
    """New processes import a tqdm that shows nothing."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TQDM_DISABLE")
        if before is not None:
            os.environ["TQDM_DISABLE"] = before


def spread(function, units, jobs, bar):
    """[function(*unit, bar) for unit in units], `jobs` at a time in processes of their own.

    The threads of this process are shared out among them; their own bars are not shown. The first
    error, or an interruption, ends them all.
    """
    if (jobs := min(jobs, len(units))) <= 1:
        return [function(*unit, bar) for unit in units]
    threads = max(1, torch.get_num_threads() // jobs)
    spawn = multiprocessing.get_context("spawn")
    with silent_bars(), spawn.Manager() as manager:
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (threads,))
        line = manager.Queue()
        try:
            waiting = futures = [pool.submit(function, *unit, Ticks(line)) for unit in units]
            while waiting or not line.empty():
                for future in (f for f in waiting if f.done()):
                    future.result()                                  # raises what it raised
                waiting = [f for f in waiting if not f.done()]
                with contextlib.suppress(queue.Empty):
                    line.get(timeout=0.2)
                    bar.update()
            return [f.result() for f in futures]
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()                                  # it may be busy for minutes
            raise
        finally:
            pool.shutdown(cancel_futures=True)
