"""Several processes: one run on parts of its batches, or many independent pieces of work.

    torchrun --nproc_per_node N train.py ...      N processes share every batch: each computes the
                                                  gradient on its part, and the parts are summed,
        dL/dp = sum_n (b_n / B) dL_n/dp           b_n of B examples, L_n their mean loss

in one message a step. Every process takes the same step; process 0 alone prints and writes. The
result is that of one process on the whole batch, up to the order of summation.

    train.py --task all --jobs N                  N runs at a time, in processes of their own
    eval.py --merge all --jobs N                  N rules at a time
"""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch
import torch.distributed as dist
from tqdm import tqdm

from errors import BadInput


@contextlib.contextmanager
def group(batch, device):
    """Join the processes that torchrun started, and leave them together; one GPU each on cuda."""
    if batch < (count := int(os.environ["WORLD_SIZE"])):
        raise BadInput(f"--batch {batch} is too small for {count} processes: one example each")
    if cuda := torch.device(device).type == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise BadInput(f"{gpus} GPUs are too few: start at most as many processes")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
        dist.barrier()                                       # the first still scores and writes
    finally:
        dist.destroy_process_group()


def add_up(loss, params, layers):
    """Replace the loss and every gradient by their sums over the processes, in one message."""
    observed = [t for layer in layers for t in layer.observed()]
    tensors = [loss.detach(), *(t.grad for t in (*params, *observed) if t.grad is not None)]
    message = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(message)
    for t, part in zip(tensors, message.split([t.numel() for t in tensors])):
        t.copy_(part.view_as(t))


def printed(function, *arguments):
    """What function(*arguments) prints, as text."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        function(*arguments)
    return text.getvalue()


def spread(function, units, jobs, title):
    """[function(*unit) for unit in units], `jobs` at a time in processes of their own.

    They share out the threads of this process. The first error, an interruption or a SIGTERM ends
    them all.
    """
    jobs = max(1, min(jobs, len(units)))
    threads = max(1, torch.get_num_threads() // jobs)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads,
                               (threads,))
    os.environ["TQDM_DISABLE"] = "1"                          # the bars of the new processes
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tqdm(desc=title, total=len(units)) as bar:
            futures = [pool.submit(function, *unit) for unit in units]
            for future in as_completed(futures):
                future.result()                                      # raises what it raised
                bar.update()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise BadInput("a process was killed, as the system does when memory runs out: give fewer "
                       "--jobs; what is finished is kept") from None
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()                                      # it may be busy for minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.pop("TQDM_DISABLE")
        signal.signal(signal.SIGTERM, before)
