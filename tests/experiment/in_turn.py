"""Several trainings in the processes that share them, one after another, each on its own port.

    python in_turn.py '[[port, ["--adapter", "lora", ...]], ...]'       with RANK and WORLD_SIZE set
"""

import json
import os
import sys

import train
from experiment import cli

for port, words in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"], sys.argv = str(port), ["train.py", *words]
    cli.run(train.main)                                    # ends the process if it is refused
