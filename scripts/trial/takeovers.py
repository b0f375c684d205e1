"""A chain of takeovers, one `standfast serve --replace` after another, and the load they are put under.

Imported by labs/takeover-soak and bench/takeover; it runs nothing by itself.
"""

import fcntl
import json
import os
import re
import select
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from standfast_process import BOUND, Failure, Server

LOADS = Path(__file__).resolve().parent / "bench"
FAULTS = ("refused", "unanswered", "reset", "dropped", "lost", "doubled", "reordered", "corrupt")


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def times(values):
    values = list(values)
    return f"p50 {quantile(values, 0.5):.2f} ms, p99 {quantile(values, 0.99):.2f} ms, worst {max(values):.2f} ms"


def whole(file):
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


# --- the servers ------------------------------------------------------------------------------

class Generation(Server):
    """One `standfast serve` of a chain. All that it prints is kept: it may be what clients sent."""

    def __init__(self, command, **environment):
        self.log_file = tempfile.TemporaryFile()
        self.started = time.monotonic()
        # A group of its own: Ctrl-C must not reach it before the driver has seen to the load.
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=self.log_file, process_group=0, env={**os.environ, **environment})
        self.pid = self.process.pid
        # What becomes of a full queue for stdout in a takeover is worth knowing: nobody reads more than the first line
        # of it until the next generation has taken over.
        fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        self.output, self.listened = bytearray(), None
        self.spoke, self.wanted = threading.Event(), threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        while piece := os.read(self.process.stdout.fileno(), 65_536):
            self.output += piece
            if not self.listened and b"\n" in self.output:
                self.listened = time.monotonic()
                self.spoke.set()
                self.wanted.wait()
        self.spoke.set()  # it says nothing any more

    def listening(self, bound):
        """Waits until it serves; the address, as text, and the seconds it took."""
        self.spoke.wait(max(0, self.started + bound - time.monotonic()))
        if not self.listened:
            with suppress(subprocess.TimeoutExpired):  # it closes its stdout a moment before it is gone
                self.process.wait(1)
            end = "runs on" if self.is_alive() else f"ended with {self.process.returncode}"
            raise Failure(f"the new process did not print `listening on` and {end}: {self.last_words()}")
        line = bytes(self.output).partition(b"\n")[0].decode(errors="replace")
        if not line.startswith("listening on "):
            raise Failure(f"the new process's first line is not `listening on ADDRESS`: {line!r}")
        return line.removeprefix("listening on "), self.listened - self.started

    def printed(self):
        """What it printed after its first line, once it has ended."""
        self.reader.join()
        return bytes(self.output).partition(b"\n")[2]

    def log(self):
        """Also while it runs: seek() here would move the place where it writes."""
        return whole(self.log_file).splitlines()

    def logged(self, message):
        """The keys of its last log line with that message, `at`, its time on time.monotonic(), and the `line`; None if
        it does not come: a thread of its own writes the log, so it may be a little late."""
        deadline = time.monotonic() + BOUND / 5
        while True:
            over = not self.is_alive() or time.monotonic() > deadline  # asked first: then all is written that will be
            for line in reversed(self.log()):
                if found := re.match(rf"(\S+) \w+ {message} (.*)", line):
                    pairs = dict(word.split("=", 1) for word in found[2].split() if "=" in word)
                    age = time.time() - datetime.fromisoformat(found[1]).timestamp()
                    return {**pairs, "at": time.monotonic() - age, "line": line}
            if over:
                return None
            time.sleep(0.005)

    def last_words(self):
        return " / ".join([line for line in self.log() if " info closed " not in line][-3:]) or "nothing on stderr"

    def is_alive(self):
        return self.process.poll() is None

    def descriptors(self):
        """How many descriptors of each kind it has open, once that is the same five times running: the one of the
        last question on the control socket, say, is closed a moment after the answer."""
        seen, deadline = [], time.monotonic() + BOUND
        while len(seen) < 5 or any(kinds != seen[-1] for kinds in seen[-5:]):
            if time.monotonic() > deadline:
                raise Failure(f"the open descriptors change all the time: {seen[-1]}, {seen[-2]}")
            kinds = Counter()
            for entry in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(FileNotFoundError):  # closed since it was listed
                    kinds[re.sub(r":\[\d+\]$|#\d+", "", os.readlink(entry))] += 1
            seen.append(kinds)
            time.sleep(0.02)
        return seen[-1]

    def resident(self):
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return {key: int(re.search(rf"^{key}: +(\d+) kB", text, re.M)[1]) * 1024 for key in ("Rss", "Anonymous")}

    def close(self):
        if self.is_alive():
            self.process.kill()
        self.wanted.set()
        self.reader.join()
        super().close()


class GivenUp(Failure):
    """A takeover that took longer than a freeze may, so that the old process serves on: on a busy machine, no fault."""


@dataclass(frozen=True)
class Takeover:
    """What is known of one that went well. Times are seconds, and points on time.monotonic()."""

    connections: int
    staying: int  # with the old process, which ended them
    frozen: float  # as the old process has it: until it heard that the new one runs
    frozen_by_new: float  # as the new one has it, which is not told how long the commit was on its way
    whole: float  # from the start of the new process to its `listening on`
    started: float
    asked: float  # the old process was asked: the pre-copy begins
    committed: float  # or a little later
    ended: float  # the old process was gone


class Chain:
    """The server of the moment, and what the former ones left behind. `options` are flags of every generation."""

    def __init__(self, binary, directory, service, *options, bound=BOUND):
        self.bound = bound  # seconds that a takeover may take
        self.binary, self.service, self.options = binary, service, options
        self.control = os.path.join(directory, "control.sock")
        self.address, self.current = "127.0.0.1:0", None
        self.printed, self.accepted = [], 0

    def command(self, *more):
        return [self.binary, "serve", self.service, "-l", self.address, "--control", self.control, *self.options, *more]

    def start(self, *more):
        generation = Generation(self.command(*more))
        try:
            if self.current:
                generation.logged("took over")
                self.current.wanted.set()
            address, seconds = generation.listening(self.bound)
            if self.current and address != self.address:
                raise Failure(f"the new process listens on {address}, not on {self.address}")
        except BaseException as failure:  # nobody has it yet who could end it
            code = generation.process.poll()
            generation.close()
            if not self.current or not isinstance(failure, Failure):
                raise
            verdict = self.current.logged(f"takeover (?:failed, serving on|refused) pid={generation.pid}")
            slow = verdict and re.search(r' within \d+ ms"$', verdict["line"]) and code == 1
            raise (GivenUp if slow else Failure)(f"{failure}; the old one says: {self.current.last_words()}") from None
        self.address = address
        return generation, seconds

    def begin(self, *options):
        self.current, _ = self.start(*options)

    def take_over(self, *options):
        old, started = self.current, time.monotonic()
        self.current, seconds = self.start("--replace", *options)
        try:
            self.end(old)
            asked, given, taken = (old.logged("takeover asked for"), old.logged("handed over"),
                                   self.current.logged("took over"))
            if not (asked and given and taken):
                raise Failure("not logged: `takeover asked for`, `handed over` by the old process, or `took over` by "
                              f"the new: {old.last_words()}; {self.current.last_words()}")
            if given["connections"] != taken["connections"]:
                raise Failure(f"{given['connections']} connections handed over, {taken['connections']} taken over")
            frozen, frozen_by_new = (float(line["frozen_ms"]) / 1e3 for line in (given, taken))
            return Takeover(int(given["connections"]), int(given["staying"]), frozen, frozen_by_new, seconds, started,
                            asked["at"], min(given["at"], self.current.listened), time.monotonic())
        finally:
            old.close()

    def fail_to_take_over(self, fault):
        """Has a new process with this fault try: it must come to nothing, and the old one say so and serve on."""
        faulty = Generation(self.command("--replace"), STANDFAST_FAULT=fault)
        try:
            if fault == "abort-init":  # which is before it has asked
                faulty.wait()
            elif not self.current.logged(f"takeover (?:failed, serving on|refused) pid={faulty.pid}"):
                raise Failure(f"the old process says nothing of a takeover with the fault {fault}: "
                              f"{self.current.last_words()}")
            if faulty.listened or not self.current.is_alive():
                raise Failure(f"a takeover with the fault {fault} did not come to nothing: {faulty.last_words()}")
        finally:
            faulty.close()

    def end(self, server):
        """What is left to do and to know when a server has handed over, or was told to drain."""
        server.wanted.set()
        if (code := server.wait()) != 0:
            raise Failure(f"process {server.pid} ended with {code}: {server.last_words()}")
        self.accepted += server.summary()["accepted"]
        self.printed.append(server.printed())

    def drain(self):
        self.current.process.terminate()
        self.end(self.current)

    def ask(self, question):
        said = subprocess.run([self.binary, question, "--control", self.control, "--json"], timeout=BOUND,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if said.returncode != 0:
            raise Failure(f"standfast {question} ended with {said.returncode}: {said.stderr.strip()}")
        return json.loads(said.stdout)

    def wait_until_open(self, count):
        """Until the server has that many connections: it learns of the end of one a moment after the client."""
        deadline = time.monotonic() + BOUND
        while (still := self.ask("status")["open"]) != count:
            if time.monotonic() > deadline:
                raise Failure(f"the server has {still} connections open, its clients {count}")
            time.sleep(0.01)

    def close(self):
        if self.current:
            self.current.close()


# --- the load ---------------------------------------------------------------------------------

def build(name, directory):
    program = os.path.join(directory, name)
    said = subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, LOADS / f"{name}.c"],
                          stderr=subprocess.PIPE, text=True)
    if said.returncode != 0:
        raise Failure(f"cc cannot build {name}.c: {said.stderr.strip()}")
    return program


class Load:
    """One takeover-load; see there for what it does, and what it answers."""

    def __init__(self, program, address, *options):
        host, _, port = address.rpartition(":")
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen([program, host, port, *map(str, options)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors, bufsize=0, process_group=0)
        self.pid = self.process.pid
        self.unread, self.report = b"", {}

    def ready(self):
        if (said := self.line(60)) != "ready":
            raise Failure(f"the load said {said!r}, not `ready`")

    def line(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\n" not in self.unread:
            if not select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Failure(f"the load had no answer for {seconds:.0f} s: {self.last_words()}")
            piece = os.read(self.process.stdout.fileno(), 1 << 20)
            if not piece:
                raise Failure(f"the load ended with {self.process.wait()}: {self.last_words()}")
            self.unread += piece
        line, _, self.unread = self.unread.partition(b"\n")
        return line.decode()

    def tell(self, words):
        try:
            self.process.stdin.write(words.encode() + b"\n")
        except BrokenPipeError:
            raise Failure(f"the load ended with {self.process.wait()}: {self.last_words()}") from None

    def ask(self, words, seconds=3 * BOUND):
        """Its counts after that; any fault among them is a Failure."""
        self.tell(words)
        self.report = {key: float(value) for key, value in (pair.split("=") for pair in self.line(seconds).split())}
        if wrong := [f"{self.report[fault]:.0f} {fault}" for fault in FAULTS if self.report[fault]]:
            raise Failure(f"{', '.join(wrong)}: {self.last_words()}")
        return self.report

    def window(self, start, end):
        """(due, latency) of each paced message that was due in this time, in seconds, due counted from the start."""
        self.tell(f"window {start * 1e9:.0f} {end * 1e9:.0f}")
        pairs = (pair.split(":") for pair in self.line(BOUND).split())
        return [(int(due) / 1e9, int(latency) / 1e9) for due, latency in pairs]

    def last_words(self):
        lines = [line.removeprefix("takeover-load: ") for line in whole(self.errors).splitlines()]
        return " / ".join(lines[:3]) or "nothing on stderr"

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            stream.close()
