"""A chain of takeovers, one `standfast serve --replace` after another, and the load they are put under."""

import fcntl
import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from trial import BOUND, Failure, host_and_port, quantile, wait_for
from trial.process import Process, Server

FAULTS = ("refused", "unanswered", "reset", "dropped", "lost", "doubled", "reordered", "corrupt")


def times(values):
    values = list(values)
    return f"p50 {quantile(values, 0.5):.2f} ms, p99 {quantile(values, 0.99):.2f} ms, worst {max(values):.2f} ms"


# --- the servers ------------------------------------------------------------------------------

class Generation(Server):
    """One `standfast serve` of a chain. All that it prints is kept: it may be what clients sent."""

    def __init__(self, command, **environment):
        super().__init__(command, env={**os.environ, **environment})

    def begin(self):
        # What becomes of a full queue for stdout in a takeover is worth knowing: nobody reads more than the first line
        # of it until the next generation has taken over.
        fcntl.fcntl(self.child.stdout, fcntl.F_SETPIPE_SZ, 4096)
        self.output, self.listened = bytearray(), None
        self.spoke, self.wanted = threading.Event(), threading.Event()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        while piece := os.read(self.child.stdout.fileno(), 65_536):
            self.output += piece
            if not self.listened and b"\n" in self.output:
                self.listened = time.monotonic()
                self.spoke.set()
                self.wanted.wait()
        self.spoke.set()  # it says nothing any more

    def listening(self, bound=BOUND):
        """Waits until it serves; the address, as text."""
        self.spoke.wait(max(0, self.started + bound - time.monotonic()))
        if not self.listened:
            with suppress(subprocess.TimeoutExpired):  # it closes its stdout a moment before it is gone
                self.child.wait(1)
            end = "runs on" if self.is_alive() else f"ended with {self.child.returncode}"
            raise Failure(f"the new process did not print `listening on` and {end}: {self.last_words()}")
        line = bytes(self.output).partition(b"\n")[0].decode(errors="replace")
        if not line.startswith("listening on "):
            raise Failure(f"the new process's first line is not `listening on ADDRESS`: {line!r}")
        return line.removeprefix("listening on ")

    def printed(self):
        """What it printed after its first line, once it has ended."""
        self.reader.join()
        return bytes(self.output).partition(b"\n")[2]

    def logged(self, message, bound=BOUND / 5):
        """The keys of its last log line with that message, `at`, its time on time.monotonic(), and the `line`; None if
        it does not come: a thread of its own writes the log, so it may be a little late."""
        deadline = time.monotonic() + bound
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

    def close(self):
        if self.is_alive():
            self.child.kill()
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
            address = generation.listening(self.bound)
            if self.current and address != self.address:
                raise Failure(f"the new process listens on {address}, not on {self.address}")
        except BaseException as failure:  # nobody has it yet who could end it
            code = generation.child.poll()
            generation.close()
            if not self.current or not isinstance(failure, Failure):
                raise
            verdict = self.current.logged(f"takeover (?:failed, serving on|refused) pid={generation.pid}")
            slow = verdict and re.search(r' within \d+ ms"$', verdict["line"]) and code == 1
            raise (GivenUp if slow else Failure)(f"{failure}; the old one says: {self.current.last_words()}") from None
        self.address = address
        return generation

    def begin(self, *options):
        self.current = self.start(*options)

    def take_over(self, *options):
        old, started = self.current, time.monotonic()
        self.current = self.start("--replace", *options)
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
            return Takeover(int(given["connections"]), int(given["staying"]), frozen, frozen_by_new,
                            self.current.listened - self.current.started, started, asked["at"],
                            min(given["at"], self.current.listened), time.monotonic())
        finally:
            old.close()

    def fail_to_take_over(self, fault):
        """Has a new process with this fault try: it must come to nothing, and the old one say so and serve on."""
        faulty = Generation(self.command("--replace"), STANDFAST_FAULT=fault)
        try:
            if fault == "abort-init":  # which is before it has asked
                faulty.wait()
            # With one that hangs in the freeze the old process has 2 s of patience.
            elif not self.current.logged(f"takeover (?:failed, serving on|refused) pid={faulty.pid}", BOUND):
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
        self.current.child.terminate()
        self.end(self.current)

    def ask(self, question):
        said = subprocess.run([self.binary, question, "--control", self.control, "--json"], timeout=BOUND,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if said.returncode != 0:
            raise Failure(f"standfast {question} ended with {said.returncode}: {said.stderr.strip()}")
        return json.loads(said.stdout)

    def wait_until_open(self, count):
        """Until the server has that many connections: it learns of the end of one a moment after the client."""
        wait_for(f"{count} connections open, as many as the clients have", lambda: self.ask("status")["open"] == count)

    def close(self):
        if self.current:
            self.current.close()


# --- the load ---------------------------------------------------------------------------------

class Load(Process):
    """One takeover-load; see there for what it does, and what it answers."""

    def __init__(self, program, address, *options):
        self.report = {}
        command = [program, *map(str, host_and_port(address)), *map(str, options)]
        super().__init__("the load", command, stdin=subprocess.PIPE)

    def begin(self):
        self.expect("ready", 60)

    def ask(self, words, seconds=3 * BOUND):
        """Its counts after that; any fault among them is a Failure."""
        self.tell(words)
        self.report = self.figures(seconds)
        if wrong := [f"{self.report[fault]:.0f} {fault}" for fault in FAULTS if self.report[fault]]:
            raise Failure(f"{', '.join(wrong)}: {self.last_words()}")
        return self.report

    def window(self, start, end):
        """(due, latency) of each paced message that was due in this time, in seconds, due counted from the start."""
        self.tell(f"window {start * 1e9:.0f} {end * 1e9:.0f}")
        pairs = (pair.split(":") for pair in self.line(BOUND).split())
        return [(int(due) / 1e9, int(latency) / 1e9) for due, latency in pairs]

    def last_words(self):
        return " / ".join(line.removeprefix("takeover-load: ") for line in self.log()[:3]) or "nothing on stderr"
