"""Clients of a server that is killed again and again: what each service promises of them over a crash, and how it was.

One class a service. `begin` has all that lasts connected and answered once; `probe` goes on until the service has answered;
`finish` ends the clients, and answers the figures. Who lasts must not notice a crash; of who comes and goes the one that was
accepted in the very turn of a crash may be lost, so only those count of which something was echoed.
"""

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress

from trial import BOUND, Failure, build, host_and_port, wait_for
from trial.process import Process
from trial.takeovers import FAULTS, Load

PATIENCE = 3 * BOUND  # the keeper waits up to 5 s before it starts another one, and the machine may be busy
# What takeover-load calls each fault, and this table.
KINDS = {"refused": "dropped", "unanswered": "dropped", "reset": "dropped", "dropped": "dropped", "lost": "lost",
         "doubled": "doubled", "reordered": "wrong", "corrupt": "wrong"}


def pattern(seed, size):
    return random.Random(seed).randbytes(size)


def connected(address):
    client = socket.create_connection(host_and_port(address), timeout=PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def heard(client, size):
    """So many bytes, or fewer with the end of them."""
    got = bytearray()
    while len(got) < size and (piece := client.recv(size - len(got))):
        got += piece
    return bytes(got)


class Passers:
    """Come and go, one after another: each has something echoed, says the last of it with its FIN, reads to the end."""

    def __init__(self, address, seed):
        self.address, self.chance = address, random.Random(seed)
        self.figures, self.over = Counter(), threading.Event()
        self.thread = threading.Thread(target=self.go_on)
        self.thread.start()

    def go_on(self):
        while not self.over.wait(self.chance.random() / 20):
            with suppress(OSError), connected(self.address) as client:
                self.pass_by(client)

    def pass_by(self, client):
        first, last = (pattern(self.chance.random(), 1 + self.chance.randrange(1 << 14)) for _ in range(2))
        try:
            client.sendall(first)
            came = heard(client, len(first))
        except OSError:
            came = b""
        self.figures["bytes"] += len(came)
        if came != first:
            kind = "unproven" if first.startswith(came) else "wrong"
            self.figures[kind] += 1
            return
        self.figures["passing"] += 1
        try:
            client.sendall(last)
            client.shutdown(socket.SHUT_WR)
            came = heard(client, len(last) + 1)
        except OSError:
            self.figures["dropped"] += 1
            return
        self.figures["bytes"] += len(came)
        if came != last:
            self.figures["lost" if last.startswith(came) else "doubled" if came.startswith(last) else "wrong"] += 1

    def finish(self):
        self.over.set()
        self.thread.join()
        return self.figures


class Echo:
    """Not a connection and not a byte is lost, doubled or reordered: `standfast load`, and streams and slow readers."""

    words = ("echo",)
    streams = ("-e", 8, "-p", 50, "-r", 25, "-w", 4, "-t", int(PATIENCE))

    def __init__(self, folder, seed):
        self.folder, self.seed, self.clients = folder, seed, []

    def upstream(self):
        """What is to be there before the server."""

    def begin(self, keeper, connections, program):
        self.probing = connected(keeper.address)
        self.load = subprocess.Popen(
            [keeper.binary, "load", keeper.address, "-c", str(connections), "-r", "4k", "--size", "700", "--pipeline", "4",
             "-T", "1d", "--json", "-q", "--connect-timeout", "60s", "--read-timeout", "60s", "--keepalive", "off"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.streaming = Load(program, keeper.address, *self.streams)
        self.streaming.ask("messages 200")
        lasting = connections + 1 + sum(self.streams[at] for at in (1, 3, 7))
        wait_for("the load", lambda: (keeper.status() or {}).get("open", 0) >= lasting, 60)
        self.lasting = lasting
        self.probe()
        time.sleep(1)  # each of the load has said something by then
        self.passers = Passers(keeper.address, self.seed)

    def probe(self):
        try:
            self.probing.sendall(b"?")
            said = self.probing.recv(2)
        except OSError as error:
            said = error
        if said != b"?":
            raise Failure(f"a connection that lasts had {said!r} in place of its echo")

    def finish(self):
        figures = self.passers.finish()
        self.streaming.tell("finish")
        report = self.streaming.figures(2 * PATIENCE)
        for fault in FAULTS:
            figures[KINDS[fault]] += int(report[fault])
        if any(report[fault] for fault in FAULTS):
            print(self.streaming.last_words())
        figures["bytes"] += int(report["bytes"])
        self.load.send_signal(signal.SIGINT)
        said = self.load.communicate(timeout=90)[0]
        report = [line for line in said.splitlines() if line.startswith("{")]
        if not report:
            raise Failure(f"the load has no report: {said.strip()}")
        load = json.loads(report[-1])
        figures["bytes"] += load["received_bytes"]
        figures["lost"] += load["lost"]
        figures["doubled"] += load["duplicated"]
        figures["wrong"] += load["reordered"] + load["corrupted"]
        figures["dropped"] += load["reconnects"]
        figures["reconnects"] += load["reconnects"]
        self.probing.close()
        return figures

    def close(self):
        if hasattr(self, "passers"):
            self.passers.over.set()
            self.passers.thread.join()
        if hasattr(self, "streaming"):
            self.streaming.close()
        if hasattr(self, "load") and self.load.poll() is None:
            self.load.kill()
            self.load.wait()


class Forward(Echo):
    """The same, of both sockets of a pair: behind it an echo server, which is not killed."""

    def upstream(self):
        self.server = Process("the upstream", [build("echo-server", self.folder), "127.0.0.1:0"])
        self.words = ("forward", self.server.listening())

    def close(self):
        super().close()
        if hasattr(self, "server"):
            self.server.close()


class Exec(Echo):
    """Programs and their connections go on: `cat` for each of them."""

    words = ("exec", "--", "cat")
    streams = ("-e", 4, "-p", 10, "-r", 5, "-w", 2, "-t", int(PATIENCE))

    def begin(self, keeper, connections, program):
        super().begin(keeper, min(connections, 40), program)


class Discard:
    """Not a connection is lost and not a byte, of which the server counts each one once."""

    words = ("discard",)

    def __init__(self, folder, seed):
        self.chance, self.over = random.Random(seed), threading.Event()

    def upstream(self):
        pass

    def begin(self, keeper, connections, _):
        self.keeper, self.figures = keeper, Counter()
        self.clients = {connected(keeper.address): 0 for _ in range(connections)}
        self.probing = next(iter(self.clients))
        self.speaking = threading.Lock()
        self.lasting = connections
        for client in self.clients:
            self.say(client, 1)
        wait_for("the clients", lambda: self.missing() == 0, 60)
        self.thread = threading.Thread(target=self.go_on)
        self.thread.start()

    def say(self, client, size):
        try:
            client.sendall(bytes(size))
            with self.speaking:
                self.clients[client] += size
        except OSError:
            self.figures["dropped"] += 1

    def go_on(self):
        others = list(self.clients)[1:]
        while not self.over.is_set():
            for client in self.chance.sample(others, min(len(others), 20)):
                self.say(client, 1 + self.chance.randrange(1 << self.chance.randrange(17)))
            time.sleep(0.002)

    def counts(self):
        rows = json.loads(self.keeper.ask("list", "--json").stdout)
        return {row["peer"]: row["read"] for row in rows}

    def missing(self):
        counts, (host, port) = self.counts(), self.probing.getsockname()
        return sum(sent - counts.get("{}:{}".format(*client.getsockname()), 0) for client, sent in self.clients.items())

    def probe(self):
        self.say(self.probing, 1)
        name = "{}:{}".format(*self.probing.getsockname())

        def is_counted():
            with suppress(ValueError):
                return self.counts().get(name) == self.clients[self.probing]

        wait_for("a byte that is counted", is_counted, PATIENCE)

    def finish(self):
        self.over.set()
        self.thread.join()
        deadline = time.monotonic() + BOUND
        while self.missing() != 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        counts = self.counts()
        for client, sent in self.clients.items():
            read = counts.get("{}:{}".format(*client.getsockname()))
            self.figures["bytes"] += read or 0
            self.figures["dropped" if read is None else "lost" if read < sent else "doubled"] += read != sent
            client.close()
        return self.figures

    def close(self):
        self.over.set()
        if hasattr(self, "thread"):
            self.thread.join()


def line(speaker, number):
    """Of any length, and nothing but the speaker and the number says which."""
    return f"{speaker} {number} {'x' * (number * 37 % (4000 if number % 50 == 0 else 200))}\n".encode()


class Lines:
    """Speakers of numbered lines, in pieces that are none; and who notes what came of each, in order."""

    speakers = 4

    def __init__(self, folder, seed):
        self.seed, self.figures, self.over = seed, Counter(), threading.Event()
        self.said, self.lock, self.threads = Counter(), threading.Lock(), []

    def upstream(self):
        pass

    def speak(self, client, name):
        chance, unsent = random.Random(f"{self.seed}-{name}"), b""
        while not self.over.is_set() or unsent:
            while len(unsent) < 1500 and not self.over.is_set():
                unsent += line(name, self.said[name])
                self.said[name] += 1
            size = 1 + chance.randrange(1500)
            try:
                client.sendall(unsent[:size])
            except OSError:
                self.figures["dropped"] += 1
                return
            unsent = unsent[size:]
            time.sleep(0.01)  # as fast as what hears it here

    def start(self, work, *words):
        thread = threading.Thread(target=work, args=words)
        thread.start()
        self.threads.append(thread)

    def probe(self):
        number = self.said["probe"]
        try:
            self.probing.sendall(line("probe", number))
        except OSError as error:
            raise Failure(f"a connection that lasts: {error}") from None
        self.said["probe"] += 1
        wait_for("a line that comes", lambda: self.least("probe") > number, PATIENCE)

    def heard(self, came, said):
        """One that came: the number of its speaker's next is in `came`. Answers whether it is a line."""
        self.figures["bytes"] += len(said)
        words = said.split(b" ", 2)
        if len(words) < 3 or not words[1].isdigit() or line(words[0].decode(errors="replace"), int(words[1])) != said:
            return False
        name, number = words[0].decode(), int(words[1])
        if number < came[name]:
            self.figures[self.again] += 1
        else:
            self.figures["lost"] += number - came[name]
            came[name] = number + 1
        return True

    def finish(self):
        self.over.set()
        for thread in self.threads[:self.speakers]:
            thread.join()
        with suppress(Failure):  # what is missing then is counted
            wait_for("all lines", lambda: all(self.least(name) >= count for name, count in self.said.items()))
        for name, count in self.said.items():
            self.figures["lost"] += count - self.least(name) if not self.figures["dropped"] else 0
        return self.figures

    def close(self):
        self.over.set()
        self.done = True
        for client in getattr(self, "clients", []):
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()


class Hub(Lines):
    """Each line comes to each client once, whole, and in its speaker's order. The buffer is so deep that none is slow."""

    words = ("hub", "--buffer", "64M")
    places = ("hub-sent", "served", "hub-stands", "read", "hub-noted", "vault-noted", "vault-record", "vault-begun",
              "vault-chain", "vault-settled")
    again = "doubled"

    def begin(self, keeper, connections, _):
        connections = min(connections, 10)
        self.clients = [connected(keeper.address) for _ in range(connections + self.speakers + 1)]
        self.probing, self.lasting = self.clients[-1], len(self.clients)
        self.came = [Counter() for _ in range(connections)]
        wait_for("the clients", lambda: (keeper.status() or {}).get("open", 0) >= self.lasting, 60)
        for name in range(self.speakers):
            self.start(self.speak, self.clients[connections + name], f"speaker-{name}")
        for listener in range(connections):
            self.start(self.listen, self.clients[listener], self.came[listener])
        # What comes to speakers, too, has to be read.
        for client in self.clients[connections:]:
            self.start(self.listen, client, None)
        self.probe()

    def least(self, name):
        return min(came[name] for came in self.came)

    def listen(self, client, came):
        rest = b""
        client.settimeout(None)
        while True:
            try:
                piece = client.recv(1 << 16)
            except OSError:
                piece = b""
            if not piece:
                if not getattr(self, "done", False):
                    self.figures["dropped"] += came is not None
                return
            if came is None:
                continue
            *lines, rest = (rest + piece).split(b"\n")
            with self.lock:
                for said in lines:
                    self.figures["wrong"] += not self.heard(came, said + b"\n")


class Print(Lines):
    """Each line is printed, in its speaker's order; a few come again after a crash, behind the beginning of one as well.

    What a server that was taken over from has yet to print is lost if it is killed: nobody is killed in a takeover.
    """

    words = ("print",)
    spared = ("takeover",)
    places = ("print-claimed", "served", "print-written", "read", "print-noted", "vault-noted", "vault-record", "vault-begun",
              "vault-chain", "vault-settled")
    again = "again"

    def begin(self, keeper, _, __):
        self.clients = [connected(keeper.address) for _ in range(self.speakers + 1)]
        self.probing, self.lasting = self.clients[-1], len(self.clients)
        for name in range(self.speakers):
            self.start(self.speak, self.clients[name], f"speaker-{name}")
        self.probe()

    came, rest = None, b""

    def least(self, name):
        return self.came[name] if self.came else 0

    def printed(self, piece):
        """By all servers, one after another."""
        self.came = self.came if self.came is not None else Counter()
        *lines, self.rest = (self.rest + piece).split(b"\n")
        for said in lines:
            self.heard(self.came, said + b"\n")


SERVICES = {"echo": Echo, "discard": Discard, "forward": Forward, "exec": Exec, "hub": Hub, "print": Print}
