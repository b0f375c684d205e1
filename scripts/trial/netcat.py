"""The netcats that serve a trial as clients, each with its own habits."""

import os
import shutil
import subprocess
from dataclasses import dataclass

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


def add_netcat(parser):
    parser.add_argument("--netcat", metavar="NAME",
                        help=f"nc, {', '.join(FLAVOURS)} (default: the first of these that is installed)")


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
