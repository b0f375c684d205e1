"""The two kinds of process a trial starts: the server under test and its netcat clients.

Imported by the scripts in the folders beside it; it runs nothing by itself.
"""

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BOUND = 10.0  # seconds any single step may take before it counts as hung


class Failure(Exception):
    """An expectation that did not hold; its text is the one line the user reads."""


def add_options(parser):
    parser.add_argument("--bin", metavar="PATH",
                        help="the standfast binary (default: $STANDFAST_BIN, else target/release, else target/debug)")
    parser.add_argument("--netcat", metavar="NAME",
                        help=f"nc, {', '.join(FLAVOURS)} (default: the first of these that is installed)")


def count(text):
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def find_binary(parser, named):
    target = Path(__file__).resolve().parent.parent / "target"
    wanted = named or os.environ.get("STANDFAST_BIN")
    places = [Path(wanted)] if wanted else [target / "release/standfast", target / "debug/standfast"]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    parser.error(f"no standfast binary at {' or '.join(map(str, places))}: cargo build --release, or --bin PATH")


def run_trial(trial):
    """Turns the end of a trial into the exit code, its clean-up run in every case."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that `finally` runs
    try:
        trial()
    except (Failure, OSError, subprocess.SubprocessError) as failure:
        sys.stdout.flush()  # the table stands above the verdict, also in a file
        sys.exit(f"{Path(sys.argv[0]).name}: failed: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


# --- the server -------------------------------------------------------------------------------

class Server:
    """One `standfast serve echo`; `listening` waits for its line on stdout."""

    def __init__(self, binary, address):
        self.log_file = tempfile.TemporaryFile()
        self.started = time.monotonic()
        # A group of its own: Ctrl-C must not reach it before the trial has seen to its clients.
        self.process = subprocess.Popen([binary, "serve", "echo", "-l", address], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=self.log_file, process_group=0)
        self.pid = self.process.pid

    def listening(self):
        """Waits until the server accepts; (host, port) of its listener, and the seconds it took."""
        line, deadline = b"", self.started + BOUND
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Failure(f"the server printed no `listening on` within {BOUND:.0f} s: {self.last_words()}")
            piece = os.read(self.process.stdout.fileno(), 4096)
            if not piece:
                raise Failure(f"the server ended with {self.wait()} before it listened: {self.last_words()}")
            line += piece
        seconds = time.monotonic() - self.started
        words = line.decode(errors="replace").splitlines()[0]
        if not words.startswith("listening on "):
            raise Failure(f"the server's first line is not `listening on ADDRESS`: {words!r}")
        host, _, port = words.removeprefix("listening on ").rpartition(":")
        return (host.strip("[]"), int(port)), seconds

    def signal(self, number):
        self.process.send_signal(number)

    def pause(self):
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def wait(self):
        """The exit status; a negative one names the signal."""
        try:
            return self.process.wait(BOUND)
        except subprocess.TimeoutExpired:
            raise Failure(f"the server had not ended {BOUND:.0f} s after it was told to: {self.last_words()}") from None

    def log(self):
        # Not by seek: the server writes where this file's offset is, which it shares.
        size = os.fstat(self.log_file.fileno()).st_size
        return os.pread(self.log_file.fileno(), size, 0).decode(errors="replace").splitlines()

    def last_words(self):
        return " / ".join(self.log()[-3:]) or "nothing on stderr"

    def summary(self):
        """The counts of the closing `ended` line: accepted, closed, read, written, and one a reason."""
        for line in reversed(self.log()):
            if " ended " in line:
                pairs = (word.split("=", 1) for word in line.split() if "=" in word)
                return {key: int(value) for key, value in pairs if value.isdigit()}
        raise Failure(f"the server logged no `ended` line: {self.last_words()}")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log_file.close()


# --- netcat -----------------------------------------------------------------------------------

# Flags that make each one say on stderr that it is connected, what it then says, and how it passes the
# end of its stdin on as a half-close (ncat does so by itself; the others' time-out must outlast any trial).
FLAVOURS = {
    "nc.openbsd": ("-n -v -N {host} {port}", b"succeeded!"),
    "ncat": ("-n -v {host} {port}", b"Connected to"),
    "nc.traditional": ("-n -v -q 3600 {host} {port}", b" open"),
    "socat": ("-d -d -t 3600 - TCP:{socat_host}:{port}", b"successfully connected"),
}


@dataclass(frozen=True)
class Netcat:
    name: str
    path: str
    arguments: str
    connected: bytes  # on its stderr once the handshake is done

    def start(self, address):
        host, port = address
        socat_host = f"[{host}]" if ":" in host else host
        arguments = self.arguments.format(host=host, port=port, socat_host=socat_host).split()
        # Python's descriptors are close-on-exec already; closing thousands by hand for each client is slow.
        return subprocess.Popen([self.path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, bufsize=0, close_fds=False)


def find_netcat(parser, named):
    known = [*FLAVOURS, "nc"]
    if named and named not in known:
        parser.error(f"--netcat {named}: not a netcat this script knows: {', '.join(known)}")
    for name in [named] if named else known:
        if path := shutil.which(name):
            # A plain `nc` is a link to one of the flavours, or else OpenBSD's under its own name.
            flavour = os.path.basename(os.path.realpath(path)) if name == "nc" else name
            return Netcat(flavour, path, *FLAVOURS.get(flavour, FLAVOURS["nc.openbsd"]))
    parser.error(f"{named or 'netcat'} not found: apt-get install netcat-openbsd (or ncat, netcat-traditional, socat)")
