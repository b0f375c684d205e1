"""A process that a trial starts: read by lines, pinned to a core if wished, and certain to end."""

import ctypes
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from trial import BOUND, Failure


class Process:
    """`core` is the one it may use. Its stderr is kept. Ends as a context, or by `close`."""

    def __init__(self, name, command, core=None, **options):
        self.name, self.unread = name, b""
        self.errors = tempfile.TemporaryFile()
        self.started = time.monotonic()
        # A group of its own: Ctrl-C is for the script, which then ends this one.
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "bufsize": 0, "process_group": 0, **options}
        if core is not None:
            options["preexec_fn"] = lambda: os.sched_setaffinity(0, {core})
        self.child = subprocess.Popen(command, stderr=self.errors, **options)
        self.pid = self.child.pid
        try:
            self.begin()
        except BaseException:  # nobody has it yet who could end it
            self.close()
            raise

    def begin(self):
        """Waits until it has said that it is ready, where it says so."""

    # --- what it says ---

    def line(self, seconds=BOUND):
        """The next line of its stdout."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.unread:
            if not select.select([self.child.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Failure(f"{self.name} said nothing for {seconds:.0f} s: {self.last_words()}")
            piece = os.read(self.child.stdout.fileno(), 1 << 20)
            if not piece:
                raise Failure(f"{self.name} ended with {self.wait()}: {self.last_words()}")
            self.unread += piece
        line, _, self.unread = self.unread.partition(b"\n")
        return line.decode(errors="replace").strip()

    def expect(self, wanted, seconds=BOUND):
        if (said := self.line(seconds)) != wanted:
            raise Failure(f"{self.name} said {said!r}, not `{wanted}`")

    def figures(self, seconds=BOUND):
        """The next line, of `key=value` words."""
        return {key: float(value) for key, value in (pair.split("=") for pair in self.line(seconds).split())}

    def listening(self):
        """The address in the line `listening on ADDRESS`, as text."""
        if not (found := re.fullmatch(r"listening on (\S+:\d+)", line := self.line())):
            raise Failure(f"{self.name}: not a `listening on` line: {line!r}")
        return found[1]

    def tell(self, words):
        try:
            self.child.stdin.write(words.encode() + b"\n")
        except BrokenPipeError:
            raise Failure(f"{self.name} ended with {self.wait()}: {self.last_words()}") from None

    def log(self):
        # Not by seek: it writes where this file's offset is, which it shares.
        size = os.fstat(self.errors.fileno()).st_size
        return os.pread(self.errors.fileno(), size, 0).decode(errors="replace").splitlines()

    def last_words(self):
        return " / ".join(self.log()[-3:]) or "nothing on stderr"

    # --- what it takes ---

    def ran_and_waited(self):
        """Seconds that all its threads ran (what /proc/PID/stat shows, without the rounding to 10 ms), and
        seconds that they could have run but for something else on their core."""
        clock = ctypes.c_int()
        if ctypes.CDLL(None).clock_getcpuclockid(self.pid, ctypes.byref(clock)) != 0:
            raise Failure(f"{self.name}: no CPU clock for process {self.pid}: it has ended")
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        waited = sum(int(thread.read_text().split()[1]) for thread in threads)
        return time.clock_gettime(clock.value), waited / 1e9

    def resident(self):
        """Bytes of memory, by kind."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return {key: int(re.search(rf"^{key}: +(\d+) kB", text, re.M)[1]) * 1024 for key in ("Rss", "Anonymous")}

    # --- its end ---

    def is_alive(self):
        return self.child.poll() is None

    def signal(self, number):
        self.child.send_signal(number)

    def pause(self):
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def wait(self):
        """The exit status; a negative one names the signal."""
        try:
            return self.child.wait(BOUND)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} had not ended {BOUND:.0f} s after it was told to: {self.last_words()}") from None

    def close(self):
        if self.is_alive():
            self.child.kill()
            self.child.wait()
        for stream in (self.child.stdin, self.child.stdout, self.errors):
            if stream:
                stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Server(Process):
    """A `standfast serve`."""

    def __init__(self, command, **options):
        super().__init__("the server", command, **options)

    def summary(self):
        """The counts of the closing `ended` line: accepted, closed, read, written, and one a reason."""
        for line in reversed(self.log()):
            if " ended " in line:
                pairs = (word.split("=", 1) for word in line.split() if "=" in word)
                return {key: int(value) for key, value in pairs if value.isdigit()}
        raise Failure(f"the server logged no `ended` line: {self.last_words()}")
