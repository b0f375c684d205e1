"""A memory cgroup that a trial makes."""

import itertools
import os
import re
import time
from pathlib import Path

from trial import Unusable


class Cgroup:
    """A memory cgroup, of version 2 or else 1 (cgroups(7)), with that limit if one is named. Raises Unusable."""

    NAMES = {2: ("memory.max", "memory.swap.max", "memory.events"),
             1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control")}

    made = itertools.count(1)

    def __init__(self, size=None):
        self.folder, self.version = self.make()
        limit, self.swap, self.events = self.NAMES[self.version]
        self.limit = self.folder / limit
        if size:
            self.narrow(size)
            self.size = int(self.limit.read_text())

    def narrow(self, size):
        self.limit.write_text(size)
        try:
            (self.folder / self.swap).write_text(size if self.version == 1 else "0")
        except OSError:
            pass  # not told apart here

    @staticmethod
    def make():
        refusals, folder = [], f"standfast-lab-{os.getpid()}-{next(Cgroup.made)}"
        with open("/proc/self/mountinfo") as mounts:
            for fields, kind in (line.split(" - ") for line in mounts):
                kind, _, options = kind.split()[:3]
                version = 2 if kind == "cgroup2" else 1 if kind == "cgroup" and "memory" in options.split(",") else None
                if version is None:
                    continue
                root = Path(fields.split()[4])
                try:
                    if version == 2 and "memory" not in (root / "cgroup.controllers").read_text().split():
                        raise OSError(f"{root} has no memory controller")
                    if version == 2 and "memory" not in (root / "cgroup.subtree_control").read_text().split():
                        raise OSError(f"{root} does not hand its memory controller down (cgroup.subtree_control)")
                    (root / folder).mkdir()
                    return root / folder, version
                except OSError as refusal:
                    refusals.append(str(refusal))
        raise Unusable(f"no memory cgroup can be made: {'; '.join(refusals) or 'none is mounted'}")

    def enter(self):
        self.take(os.getpid())

    def take(self, pid):
        (self.folder / "cgroup.procs").write_text(str(pid))

    def kills(self):
        return int(re.search(r"oom_kill (\d+)", (self.folder / self.events).read_text())[1])

    def remove(self):
        end = time.monotonic() + 10
        while True:
            try:
                return self.folder.rmdir()
            except OSError:  # busy until the last of it has gone
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
