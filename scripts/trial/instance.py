"""A `standfast serve` that is asked at its control socket how it is."""

import json
import subprocess

from trial import BOUND
from trial.process import Process


class Instance(Process):
    def __init__(self, binary, name, control, *words, **options):
        self.binary, self.control = binary, control
        super().__init__(name, [binary, "serve", "--control", control, *words], **options)

    def begin(self):
        self.address = self.listening()

    def ask(self, *words, bound=BOUND):
        asked = [self.binary, *words, "--control", self.control]
        return subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=bound)

    def status(self):
        said = self.ask("status", "--json")
        said.check_returncode()
        return json.loads(said.stdout)
