"""A `standfast serve --keep`: the keeper, and the servers behind it."""

import os
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from trial import BOUND
from trial.instance import Instance


class Keeper(Instance):
    def __init__(self, binary, folder, *words, **environment):
        super().__init__(binary, "the keeper", f"{folder}/control.sock", "--keep", "-l", "127.0.0.1:0", *words,
                         env={**os.environ, **environment})

    def close(self):
        servers = []
        with suppress(OSError):
            servers = self.children()
        super().close()
        # By itself a server goes on without its keeper.
        for pid in servers:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def status(self):
        """The server's; `None` while there is none."""
        with suppress(ValueError, subprocess.CalledProcessError):
            return super().status()

    def children(self):
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self):
        """Resident and anonymous, KiB."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return [int(lines[name].split()[0]) for name in ("VmRSS", "RssAnon")]


def echo(address):
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=3 * BOUND) as client:
        client.sendall(b"hello")
        try:
            said = client.recv(5, socket.MSG_WAITALL)
        except ConnectionResetError:
            said = b""
        if said != b"hello":
            # It was accepted by the one that has just ended.
            return echo(address)
