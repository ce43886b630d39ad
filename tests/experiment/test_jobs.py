"""Several processes give what one gives: torchrun on a shared batch, --jobs on separate pieces."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eval as evaluation
import train
from errors import BadInput
from experiment import jobs
from support import refuses

ROOT = Path(__file__).parents[2]


def trained(folder):
    return torch.load(folder / "adapter.pt", weights_only=True)["trained"]


def free_ports(count):
    """Ports of this machine that nobody listens to."""
    try:
        held = [socket.create_server(("localhost", 0)) for _ in range(count)]
    except OSError:
        pytest.skip("processes that train together need a socket on localhost")
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


COMMON = ["--dtype", "float64", "--batch", 7, "--steps", 12, "--limit", 50]
SHARED = {"lora": ["--joint", "--task", "digits,count"],
          "l_lora": ["--task", "digits", "--linearize", "model"],
          "rosa": ["--task", "digits", "--set", "warmup=3", "--set", "collect=2"],
          "adalora": ["--task", "digits", "--rank", 6, "--set", "target=3"]}


@pytest.fixture(scope="module")
def shared(tiny, tmp_path_factory):
    """The folder of SHARED's runs, trained in two processes, and what these printed.

    The first run is torchrun's; its launcher costs a process, so the others come in one go, and
    last a batch that is too small.
    """
    folder = tmp_path_factory.mktemp("shared")
    words = {name: ["--adapter", name, *more] for name, more in SHARED.items()}
    words = {name: [*map(str, [*line, "--model", tiny, *COMMON, "--out", folder / name])]
             for name, line in (words | {"small": []}).items()}
    words["small"] += ["--batch", "1"]
    ports = free_ports(len(words))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
              "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    start = lambda command, **more: subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more)
    together = start([*launch, "train.py", *words.pop("lora")])
    out, err = together.communicate(timeout=300)
    assert together.returncode == 0, err
    plan = json.dumps(list(zip(ports, words.values())))
    pair = [start([sys.executable, "tests/experiment/in_turn.py", plan], WORLD_SIZE="2",
                  MASTER_ADDR="localhost", RANK=str(n), LOCAL_RANK=str(n)) for n in range(2)]
    return folder, out, [(*p.communicate(timeout=300), p.returncode) for p in pair]


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_train_like_one_on_the_whole_batch(name, shared, command, tiny, tmp_path):
    """Batches of 7, so that the parts differ; hooks, supports and penalties see the sums."""
    code, _, err = command(train.main, "--adapter", name, *SHARED[name], "--model", tiny, *COMMON,
                           "--out", tmp_path / "one")
    assert code == 0, err
    two = shared[0] / name
    assert two.is_dir() and not (shared[0] / f"{name}.partial").exists(), shared[2]
    a, b = trained(tmp_path / "one"), trained(two)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-9, rtol=0)
    logs = [(n / "log.csv").read_text().splitlines()[-1] for n in (tmp_path / "one", two)]
    assert abs(float(logs[0].split(",")[1]) - float(logs[1].split(",")[1])) < 1e-9


def test_one_of_the_processes_speaks(shared):
    _, out, pair = shared
    assert out.count("next: python eval.py") == 1
    assert [text.count("next: python eval.py") for text, _, _ in pair] == [3, 0]


def test_a_batch_smaller_than_the_processes_is_refused(shared):
    folder, _, pair = shared
    for _, err, code in pair:
        assert code == 2 and "--batch 1 is too small for 2 processes" in err
    assert not (folder / "small").exists()


def test_jobs_train_and_merge_the_same(fit, command, tmp_path, request):
    """Runs and rules in other processes: the same bits, and rows in the order that was asked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                             # two jobs have one each, too
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    rows, weights = [], []
    for jobs_ in (1, 2):
        out = tmp_path / str(jobs_)
        code, text, err = fit("--adapter", "lora", "--task", "digits,count", "--steps", 3,
                              "--out", out / "{task}", "--jobs", jobs_)
        assert code == 0 and text.count("before training") == 2, err
        weights.append({f"{task}.{k}": v for task in ("digits", "count")
                        for k, v in trained(out / task).items()})
        words = [out / "digits", out / "count", "--sweep", "lam=0:1:0.5", "--limit", 40]
        code, text, err = command(evaluation.main, *words, "--merge", "ties,fitted,emr",
                                  "--jobs", jobs_, "--json", out / "x.json")
        assert code == 0 and "| emr" in text, err
        found = json.loads((out / "x.json").read_text())["all"]["rows"]
        rows.append({n: (r["scores"], r.get("chosen"), r["share"]) for n, r in found.items()})
    assert rows[0] == rows[1] and list(rows[1]) == ["base", "single", "ties", "fitted", "emr"]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert command(evaluation.main, *words, "--merge", "ties", "--jobs", 0)[0] == 2
    assert "TQDM_DISABLE" not in os.environ


def naps(seconds, path):
    """Leaves a trace; fails at once where it has no time."""
    path.write_text("began")
    if not seconds:
        raise BadInput("no time")
    time.sleep(seconds)


def test_an_error_ends_what_is_running_and_starts_nothing(tmp_path):
    """The long unit is not waited for, and most of those behind it never begin."""
    units = [(60, tmp_path / "0"), (0, tmp_path / "1"), *((60, tmp_path / f"{n}") for n in "2345")]
    began = time.monotonic()
    refuses("no time", jobs.spread, naps, units, 2, "naps")
    assert time.monotonic() - began < 50 and not (tmp_path / "5").exists()


def killed(path):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_the_system_kills_is_one_line(tmp_path):
    refuses("memory runs out: give fewer --jobs", jobs.spread, killed, [(tmp_path,)] * 2, 2, "x")


def test_a_terminated_process_takes_its_workers_along(tmp_path):
    """Two workers that would nap for a minute are gone soon after SIGTERM, with its exit code."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys, time\nfrom experiment import jobs\n\n"
                      "def nap(path):\n    open(path, 'w').write(str(os.getpid()))\n"
                      "    time.sleep(60)\n\n"
                      "if __name__ == '__main__':\n"
                      "    jobs.spread(nap, [(path,) for path in sys.argv[1:]], 2, 'naps')\n")
    files = [tmp_path / "0", tmp_path / "1"]
    main = subprocess.Popen([sys.executable, script, *files], env=os.environ | {"PYTHONPATH": ROOT})
    written = lambda: all(file.exists() and file.read_text() for file in files)
    for _ in range(400):
        if written():
            break
        time.sleep(0.1)
    main.send_signal(signal.SIGTERM)
    assert written() and main.wait(20) == 143
    for worker in (int(file.read_text()) for file in files):
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
