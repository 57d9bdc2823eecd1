"""The process group listens on the job's interface and nowhere else."""

import os
import socket
import subprocess
import sys

import pytest

from rwkv_music.training import process_group
from rwkv_music.training.process_group import init_process_group, interface_towards, is_loss_of_a_rank
from tests.training.conftest import PROJECT, SMALL, environment, train

LISTENING = """
import os
from pathlib import Path
from rwkv_music.training.process_group import init_process_group
from rwkv_music.training.signals import leave
from torch import distributed as dist
init_process_group("gloo", 1)
dist.barrier()
own = {os.readlink(f) for f in Path("/proc/self/fd").iterdir() if f.is_symlink()}
for table in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            print("listens", fields[1].split(":")[0])
dist.barrier()
leave(0)
"""


def test_every_port_is_opened_on_the_jobs_interface(tmp_path):
    (tmp_path / "rank.py").write_text(LISTENING)
    done = subprocess.run(
        [sys.executable, str(PROJECT / "launch" / "node.py"), "2", str(tmp_path / "rank.py")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    addresses = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")}
    assert addresses == {"0100007F"}, addresses  # 127.0.0.1, and no wildcard


HOSTS = """
import os, socket, sys
from rwkv_music.training.process_group import init_process_group, ranks_share_a_host
from rwkv_music.training.signals import leave
name = sys.argv[1] + os.environ["RANK"] * (sys.argv[2] == "apart")
socket.gethostname = lambda: name
init_process_group("gloo", 1)
print("one host" if ranks_share_a_host() else "several")
leave(0)
"""


@pytest.mark.parametrize("place, found", [("together", "one host"), ("apart", "several")])
def test_whether_the_ranks_share_a_host(place, found, tmp_path):
    (tmp_path / "rank.py").write_text(HOSTS)
    line = [sys.executable, str(PROJECT / "launch" / "node.py"), "2", str(tmp_path / "rank.py"), "node", place]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.replace("\n", "") == 2 * found, done.stderr


RESTARTED = """
import os, sys
from rwkv_music.errors import SharedError
from rwkv_music.training.process_group import init_process_group, share_error
from rwkv_music.training.signals import leave
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    share_error("A file is missing.")
    leave(1)
try:
    init_process_group("gloo", 1)
    print("joined")
    leave(0)
except SharedError as error:
    print(error)
    leave(1)
"""


def test_ranks_of_torchrun_join_again_after_a_restart(tmp_path):
    (tmp_path / "rank.py").write_text(RESTARTED)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--max_restarts=1", "--monitor_interval=0.1"]
    port = environment()["MASTER_PORT"]
    done = subprocess.run(
        [sys.executable, *torchrun, f"--master_port={port}", str(tmp_path / "rank.py")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stdout.count("joined") == 2, done


def test_nccls_watchdog_timeout_is_set_before_the_process_group_exists(monkeypatch):
    """A process group reads the variable when it is created, and never again."""
    name, found = "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", []
    for variable in process_group.ENVIRONMENT:
        monkeypatch.setenv(variable, "")  # so that what is set here is put back
        monkeypatch.delenv(variable)
    monkeypatch.setattr(process_group.dist, "init_process_group", lambda *_, **__: found.append(os.environ.get(name)))
    init_process_group("gloo", 1)
    assert found == ["2000"]
    monkeypatch.setenv(name, "15000")  # a user's own value is kept
    init_process_group("gloo", 1)
    assert found[1:] == ["15000"]


@pytest.mark.parametrize(
    "error, is_loss",
    [
        (BrokenPipeError(32, "Broken pipe"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (RuntimeError("wandb: Connection reset by peer"), False),
        (OSError(5, "Input/output error: Broken pipe"), False),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"), True),
        (process_group.dist.DistBackendError("NCCL communicator was aborted"), True),
    ],
)
def test_only_errors_of_the_process_group_are_losses_of_a_rank(error, is_loss):
    assert is_loss_of_a_rank(error) == is_loss


# train.py with an error that one rank finds before it joins the others; its exit status is printed.
ERROR_OF_ONE = """
import os, sys
import train
from rwkv_music.errors import UserError
from rwkv_music.training.signals import leave
configure = train.configure
def configured(options):
    if os.environ["RANK"] == sys.argv[1]:
        raise UserError("There is a file in the way: remove it.")
    return configure(options)
train.configure = configured
print(f"status {train.main(sys.argv[2:])}", flush=True)
leave(0)
"""


@pytest.mark.parametrize("rank", (0, 1))
def test_every_rank_learns_of_an_error_of_one(rank, bach_data, tmp_path):
    (tmp_path / "one.py").write_text(ERROR_OF_ONE)
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, ranks=2, program=(tmp_path / "one.py", rank))
    assert run.output.count("status 1\n") == 2 and run.output.count("There is a file in the way") == 1, run.output


def test_one_rank_prints_the_usage(tmp_path):
    run = train(tmp_path / "run", "--no_such_flag", ranks=2, check=False)
    assert run.status == 2 and run.output.count("usage:") == 1 and "--no_such_flag" in run.output


# train.py, printing at the end what was added to the environment since the process group exists, even briefly.
ADDED = """
import os, sys
from torch import distributed as dist
from rwkv_music.training import signals
import train
join, put, added = dist.init_process_group, os.putenv, ["no process group"]
def watched(name, value):
    if os.fsdecode(name) not in os.environ:
        added.append(os.fsdecode(name))
    put(name, value)
def joined(*own, **named):
    added.clear()
    os.putenv = watched
    return join(*own, **named)
dist.init_process_group = joined
status = train.main(sys.argv[1:])
print("added", added)
signals.leave(status)
"""


def test_nothing_is_added_to_the_environment_while_nccls_threads_may_read_it(bach_data, tmp_path):
    (tmp_path / "alone.py").write_text(ADDED)
    run = train(tmp_path / "run", "--data", bach_data, *SMALL, "--steps", 2, program=(tmp_path / "alone.py",))
    assert run.output.splitlines()[-1] == "added []"


def test_the_interface_of_an_address():
    assert interface_towards("127.0.0.1") == "lo"
    outside = interface_towards("192.0.2.1")
    assert outside is None or outside in dict(map(reversed, socket.if_nameindex()))
