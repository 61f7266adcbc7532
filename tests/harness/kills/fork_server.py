"""A server of processes that have imported everything: what it runs are forks of it, which take no seconds to begin.

A program of a few lines stands in for Python: `Server.python`, run as `PYTHON -m MODULE …` or `PYTHON FILE …`, has the server
fork a process with its arguments, environment, folder and standard streams, and ends as that ends. Where it is killed, so is
that process. Launchers start their workers by it, as `sys.executable` of a forked process is this program. What else they
start is run by Python itself.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLIENT = """#!{python} -SE
import array, os, socket, sys
rest = [argument for argument in sys.argv[1:] if argument != "-u"]
if "setup_worker.py" in rest[0] or not any(name in argument for argument in rest for name in {forked!r}):
    own = [] if rest[0].startswith("-") else ["-c", {setup!r}, sys.argv[0]]
    os.execv({python!r}, [{python!r}, *own, *rest])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
about = repr((sys.argv[1:], dict(os.environ), os.getcwd())).encode()
streams = array.array("i", [0, 1, 2])
server.sendmsg([b"%12d" % len(about)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(about)
code = server.recv(8)
os._exit(int(code or 1) & 255)
"""
SETUP = """
import runpy, sys
sys.executable, *sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Has Python itself run a file, and take this program for Python where that starts others."""


@dataclass(frozen=True)
class Child:
    """A process that the server has forked: its number, and the arguments of Python that it was asked for with."""

    process: int
    arguments: list[str]


class Server:
    """A fork of this process that forks others. forked: what is among the arguments of those that are forked; begin: called in
    each before its program, with its arguments."""

    def __init__(self, folder: Path, forked: tuple[str, ...], begin: Callable[[list[str]], None]) -> None:
        self.python, self.log = folder / "python", folder / "children.jsonl"
        address = f"/tmp/fork-server-{os.getpid()}"
        self.log.touch()
        self.python.write_text(CLIENT.format(python=sys.executable, address=address, forked=forked, setup=SETUP))
        self.python.chmod(0o755)
        listening = socket.socket(socket.AF_UNIX)
        with suppress(FileNotFoundError):
            os.unlink(address)
        listening.bind(address)
        listening.listen(64)
        self.address = address
        self.process = os.fork()
        if not self.process:
            try:
                _serve(listening, self, begin)
            finally:
                os._exit(1)
        listening.close()
        self.others: list[subprocess.Popen[bytes]] = []

    def children(self) -> list[Child]:
        """All processes that it has forked so far, those that have ended too."""
        return [Child(*json.loads(line)) for line in self.log.read_text().splitlines()]

    def close(self) -> None:
        """End it, what it has forked, and what else was started for it."""
        for other in self.others:
            other.terminate()
            other.wait(60)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.unlink(self.address)


def _serve(listening: socket.socket, server: Server, begin: Callable[[list[str]], None]) -> None:
    """Fork what is asked for, tell each client how its process ended, and kill that of a client that is gone."""
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listening, *running.values()], [], [], 0.01)
        for process, client in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                with suppress(OSError):
                    client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                client.close()
                del running[process]
            elif client in ready:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        if listening in ready:
            client, _ = listening.accept()
            with suppress(OSError, ValueError):
                process = _fork(client, server, [listening, *running.values()], begin)
                running[process] = client


def _fork(client: socket.socket, server: Server, others: list[socket.socket], begin: Callable[[list[str]], None]) -> int:
    length, streams, _, _ = socket.recv_fds(client, 12, 3)
    text = b""
    while len(text) < int(length):
        text += client.recv(1 << 16)
    arguments, environment, folder = eval(text)
    process = os.fork()
    if process:
        for stream in streams:
            os.close(stream)
        with server.log.open("a") as log:
            log.write(json.dumps([process, arguments]) + "\n")
        return process
    code = 1
    try:
        os.setpgid(0, 0)  # Ray kills the group of a worker, which would be the server's
        for other in (client, *others):
            other.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin = os.fdopen(0, "r", closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.executable = str(server.python)
        begin(arguments)
        _run(arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[Any]) -> None:
    """Run what Python is asked to run: a module or a file, with its arguments."""
    while arguments[0] != "-m" and arguments[0].startswith("-"):
        arguments = arguments[1:]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
