"""Relays that are measured beside each other: each has one core by turns, and the load, with the server behind, the other.

Imported by `bench/forward` and `bench/tls`. They say which cases there are and how each relay is started, and the load is
a program of theirs: it prints `listening on ADDRESS`, where the relay is to go, reads the relay's port, says `ready`, and
for each further line of its stdin it runs once and prints `done=... seconds=...`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Callable

from trial import Failure, add_binary, build, count, find_binary, need, progress, run_trial, two_cores, wait_for
from trial.process import Process

GOAL = 1.0
SATURATED = 0.95  # of its core: a relay that is less busy was waiting for the load
DISTURBED = 0.10  # of a core lost to other work
INSIDE = "RELAYS_INSIDE"


@dataclass(frozen=True)
class Case:
    load: str  # the words for the load, its slice's length aside
    unit: str  # of a rate
    scale: float  # how much of what is done makes one
    kind: str = ""  # for the relay, where it is started in more than one way

    def is_bulk(self):
        return self.unit == "GB/s"


@dataclass(frozen=True)
class Peer:
    """A relay: its port and command, from the bench, the case, the port to go to and a folder of its own."""

    command: Callable
    tool: str = ""  # none for standfast
    package: str = ""
    version: str = "-v"


class Load(Process):
    def __init__(self, bench, relay, case):
        command = [bench.client, *case.load.split(), "-T", str(bench.slice)]
        super().__init__(f"the load on {relay}", command, bench.load_core, stdin=subprocess.PIPE)

    def begin(self):
        self.port = self.listening().rpartition(":")[2]

    def connect(self, relay):
        self.tell(relay.port)
        self.expect("ready")

    def go(self):
        self.tell("")
        return self.figures()


class Relay(Process):
    def __init__(self, bench, name, case, upstream, directory):
        self.port, command = bench.peers[name].command(bench, case, upstream, directory)
        super().__init__(name, command, bench.relay_core)

    def begin(self):
        self.port = str(self.port or self.listening().rpartition(":")[2])
        wait_for(f"a listener of {self.name} on port {self.port}", self.accepts)

    def accepts(self):
        if not self.is_alive():
            raise Failure(f"{self.name} ended with {self.wait()}: {self.last_words()}")
        rows = (row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return any(local.endswith(f":{int(self.port):04X}") and state == "0A" for _, local, _, state, *_ in rows)


# --- one case ---------------------------------------------------------------------------------


def run_case(bench, name):
    case, slices = bench.cases[name], {relay: [] for relay in bench.peers}
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="standfast-bench-") as top:
        pairs = {}
        for relay in bench.peers:
            directory = Path(top, relay.replace(" ", "-"))
            directory.mkdir()
            to = stack.enter_context(Load(bench, relay, case))
            started = stack.enter_context(Relay(bench, relay, case, to.port, str(directory)))
            to.connect(started)
            to.go()  # code, buffers, and windows that have grown
            pairs[relay] = (started, to)
        relays = list(bench.peers)
        for turn in range(bench.rounds):
            progress(f"{name}: round {turn + 1} of {bench.rounds}")
            order = relays[turn % len(relays):] + relays[:turn % len(relays)]
            for relay in order if turn % 2 == 0 else reversed(order):
                slices[relay].append(one_slice(*pairs[relay]))
    row = {"case": name, "unit": case.unit}
    for relay, rows in slices.items():
        row[relay] = {key: median(one[key] for one in rows) for key in rows[0]}
        row[relay]["rate"] /= case.scale
    others = [relay for relay in bench.peers if relay != "standfast"]
    if "standfast" in slices and others:
        for key, best, what in (("rate", max, "ratio"), ("cpu_ns", min, "cpu_ratio")):
            row[what] = median(slices["standfast"][turn][key] / best(slices[relay][turn][key] for relay in others)
                               for turn in range(bench.rounds))
        row["kept"] = bench.is_kept(row)
    return row


def one_slice(relay, load):
    before, began = relay.ran_and_waited(), time.monotonic()
    told = load.go()
    took = time.monotonic() - began
    cpu, waited = (after - former for after, former in zip(relay.ran_and_waited(), before))
    return {"rate": told["done"] / told["seconds"], "cpu_ns": cpu / told["done"] * 1e9,
            "busy": min(1.0, cpu / max(cpu, took - waited)), "disturbed": waited / took}


def show(bench, row):
    bulk = bench.cases[row["case"]].is_bulk()
    digits = 2 if bulk else 1
    rates = " ".join(f"{row[relay]['rate']:>14.{digits}f}" for relay in bench.peers)
    # For bulk nanoseconds a KiB, else microseconds an operation.
    cost, what = (1024, "ns/KiB") if bulk else (1e-3, "µs each")
    cpus = " ".join(f"{row[relay]['cpu_ns'] * cost:>14.2f}" for relay in bench.peers)
    verdict, ratio, cpu_ratio = "", "", ""
    if "kept" in row:
        verdict = "ok" if row["kept"] else "MISSED"
        ratio, cpu_ratio = f"{row['ratio']:>7.2f}", f"{row['cpu_ratio']:>7.2f}"
    waiting = [relay for relay in bench.peers if row[relay]["busy"] < SATURATED]
    notes = [f"not saturated: {', '.join(waiting)}"] if waiting else []
    disturbed = max(row[relay]["disturbed"] for relay in bench.peers)
    if disturbed > DISTURBED:
        notes.append(f"other work took {disturbed:.0%} of the core")
    bench.say(f"{row['case']:<18} {row['unit']:<8} {rates} {ratio} {verdict:<6}  {'; '.join(notes)}".rstrip())
    bench.say(f"{'':<18} {what:<8} {cpus} {cpu_ratio}".rstrip())


# --- the driver -------------------------------------------------------------------------------


class Bench:
    """What every case needs: the cores, how long, who takes part, and where words go."""

    def __init__(self, options, cores, client, is_kept):
        self.relay_core, self.load_core = cores
        self.rounds, self.slice, self.json = options.rounds, options.slice, options.json
        self.bin, self.cases, self.peers = options.bin, options.cases, options.peers
        self.client, self.is_kept = client, is_kept

    def say(self, text):
        if not self.json:
            print(text, flush=True)


def chosen(among):
    def read(text):
        names = [name for name in among if any(name.startswith(part.strip()) for part in text.split(","))]
        if not names:
            raise argparse.ArgumentTypeError(f"{text!r} begins none of: {', '.join(among)}")
        return {name: among[name] for name in names}
    return read


def version(command):
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return next((line.strip() for line in said.stdout.splitlines() if re.search(r"\d\.\d", line)), "unknown")


def enter_a_namespace():
    """Goes on in a network namespace of its own, if it may."""
    if os.environ.get(INSIDE) or os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return
    prepare = ('ip link set lo up && echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range && exec "$0" "$@"')
    environment = {**os.environ, INSIDE: "1"}
    tried = subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL)
    if tried.returncode == 0:
        os.execvpe("unshare", ["unshare", "--net", "sh", "-c", prepare, sys.executable, *sys.argv], environment)


def measure(about, load, cases, peers, is_kept, libraries=()):
    """The whole of a bench: `load` is the C program's name, `is_kept` whether a row meets the goal."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit: 0 the goal is met in every case, 1 missed in one or a failure, 2 usage or a missing tool")
    add_binary(parser)
    parser.add_argument("--rounds", type=count, metavar="N", help="slices of each relay in a case (default: 11)")
    parser.add_argument("--only", dest="cases", type=chosen(cases), default=cases, metavar="CASES",
                        help="those that begin with one of these words, separated by commas")
    parser.add_argument("--relays", dest="peers", type=chosen(peers), default=peers, metavar="RELAYS",
                        help="as --only, of: " + ", ".join(peers))
    parser.add_argument("--quick", action="store_true",
                        help="3 rounds, short slices: shows that all of it works. Ratios are shown, only a failure exits 1")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, in place of the table")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 11)
    options.slice = 0.1 if options.quick else 0.4

    need(parser, "cc", "gcc")
    for peer in options.peers.values():
        if peer.tool:
            need(parser, peer.tool, peer.package)
    if "standfast" in options.peers:
        options.bin = find_binary(parser, options.bin)
    enter_a_namespace()
    cores = two_cores(parser, "relay")
    run_trial(lambda: run(options, cores, load, libraries, is_kept))


def run(options, cores, load, libraries, is_kept):
    with tempfile.TemporaryDirectory(prefix="standfast-bench-") as directory:
        bench = Bench(options, cores, build(load, directory, *libraries), is_kept)
        asked = {peer.tool or options.bin: peer.version if peer.tool else "--version" for peer in bench.peers.values()}
        versions = [version([tool, flag]) for tool, flag in asked.items()]
        bench.say("; ".join(versions) + f"\nrelay on core {cores[0]}, load on core {cores[1]}; "
                  f"{bench.rounds} slices of {bench.slice} s each, medians")
        if options.bin and "/debug/" in options.bin:
            bench.say("a debug build: its ratios mean nothing")
        bench.say(f"\n{'':<18} {'':<8} " + " ".join(f"{relay:>14}" for relay in bench.peers)
                  + ("   ratio to the best" if len(bench.peers) > 1 else ""))
        rows = []
        for name in bench.cases:
            rows.append(run_case(bench, name))
            show(bench, rows[-1])
    missed = [row for row in rows if not row.get("kept", True)]
    if options.json:
        print(json.dumps({"versions": versions, "rounds": bench.rounds, "missed": len(missed), "cases": rows}))
    if any("kept" in row for row in rows):
        bench.say("\n" + (f"the goal is missed in {len(missed)} case(s)" if missed else "the goal is met in every case")
                  + (": a quick run proves nothing" if options.quick else ""))
    sys.exit(1 if missed and not options.quick else 0)
