"""`make soak`: kills studies at random moments, time and again, and compares what they end with bit for bit.

Every other study is a job of two processes, one of which is killed.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.experiments import commands

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many, at least")
    parser.add_argument("--minutes", type=float, default=15, help="begin no new study after so long")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    began, kills, wrong = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as root:
        code, _, stderr = commands.run(*commands.STUDY, f"--workdir={root}/undisturbed")
        if code:
            sys.exit(stderr)
        want = commands.tables(Path(root, "undisturbed"))
        dice, studies = random.Random(options.seed), 0
        while kills < options.kills and time.monotonic() - began < 60 * options.minutes:
            folder = Path(root, f"killed-{studies}")
            num_processes = 1 + studies % 2
            stages = commands.kill_until_finished(folder, dice, most=12, num_processes=num_processes)
            studies, kills = studies + 1, kills + len(stages)
            same = commands.tables(folder) == want
            wrong += not same
            for stage in stages:
                print(f"  killed with {stage}", flush=True)
            outcome = "the same bits" if same else "OTHER NUMBERS"
            print(f"study {studies}, {num_processes} processes: {len(stages)} kills, {outcome}", flush=True)
    print(f"{kills} kills, {studies} studies, {wrong} with other numbers, {time.monotonic() - began:.0f} s")
    sys.exit(1 if wrong or kills < options.kills else 0)
