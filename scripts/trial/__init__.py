"""What every lab and bench does: finds its binary and tools, reads numbers, builds its load, fails in one line.

Imported by the scripts in the folders beside it; it runs nothing by itself.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
BOUND = 10.0  # seconds any single step may take before it counts as hung


class Failure(Exception):
    """An expectation that did not hold; its text is the one line the user reads."""

    code = 1


class Unusable(Failure):
    """Something is missing without which nothing can be tried."""

    code = 2


# --- the command line -------------------------------------------------------------------------

def add_binary(parser):
    parser.add_argument("--bin", metavar="PATH",
                        help="the standfast binary (default: $STANDFAST_BIN, else target/release, else target/debug)")


def find_binary(parser, named):
    """The absolute path of the standfast to be tried."""
    target = SCRIPTS.parent / "target"
    wanted = named or os.environ.get("STANDFAST_BIN")
    places = [Path(wanted)] if wanted else [target / "release/standfast", target / "debug/standfast"]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place.resolve())
    parser.error(f"no standfast binary at {' or '.join(map(str, places))}: cargo build --release, or --bin PATH")


def need(parser, tool, package):
    if not shutil.which(tool):
        parser.error(f"{tool} not found: apt-get install {package}")


def two_cores(parser, whose):
    """The core of what is measured, and that of its load. This process goes to the second, off what is measured."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error(f"needs two cores, one for the {whose} and one for the load; this process may use one")
    os.sched_setaffinity(0, {cores[1]})
    return cores


def count(text):
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


# --- the trial --------------------------------------------------------------------------------

def run_trial(trial):
    """Turns the end of a trial into the exit code, its clean-up run in every case."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # an exception, so that `finally` runs
    try:
        trial()
    except (Failure, OSError, subprocess.SubprocessError) as failure:
        sys.stdout.flush()  # the table stands above the verdict, also in a file
        print(f"{name()}: failed: {failure}", file=sys.stderr)
        sys.exit(getattr(failure, "code", 1))
    except KeyboardInterrupt:
        sys.exit(130)


def name():
    """This script's, with its folder: `labs/memory`."""
    return "/".join(Path(sys.argv[0]).resolve().parts[-2:])


def progress(text):
    """What is under way, in a line that the next one replaces; empty at the end."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}\r", end="", file=sys.stderr, flush=True)


def build(load, directory, *libraries):
    """Compiles scripts/bench/LOAD.c; the program's path."""
    program = os.path.join(directory, load)
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SCRIPTS / f"bench/{load}.c"]
    said = subprocess.run([*command, *(f"-l{name}" for name in libraries)], stderr=subprocess.PIPE, text=True)
    if said.returncode != 0:
        raise Failure(f"cc cannot build {load}.c: {said.stderr.strip()}")
    return program


def wait_for(what, done, bound=BOUND):
    """Looks until it is so, for what announces itself to nobody."""
    deadline = time.monotonic() + bound
    while not done():
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {bound:.0f} s")
        time.sleep(0.01)


def host_and_port(address):
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]
