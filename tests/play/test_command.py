"""The command `play`."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from urllib.parse import urlsplit

import pytest

from rwkv_music.__main__ import main
from tests.training.conftest import PROJECT


def test_a_port_in_use_is_an_error_in_one_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["play", "--port", str(port), "--no-browser"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("rwkv_music play: ") and str(port) in line and line.endswith("choose another --port or --host.")
    )


def test_the_page_is_served_until_ctrl_c():
    """In a process of its own, as a user starts it, without a run."""
    command = [sys.executable, "-m", "rwkv_music", "play", "--port", "0", "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        address = process.stdout.readline().split()[2]
        with urllib.request.urlopen(address, timeout=60) as page:
            assert b"<title>RWKV-Music</title>" in page.read()
        port = urlsplit(address).port
        # By default, the server listens on one address. Linux has others of the same computer, all of 127.0.0.0/8.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 20)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
