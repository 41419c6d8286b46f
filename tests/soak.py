"""`make soak`: kills studies repeatedly at random moments, and compares their results bit for bit.

Every other study is a job of two processes, one of which is killed. Kills must have hit compilation, training and saving.
"""

import argparse
import collections
import os
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
    began, wrong, hit = time.monotonic(), 0, collections.Counter()
    with tempfile.TemporaryDirectory() as root:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{root}/programs"
        code, _, stderr = commands.run(*commands.STUDY, f"--workdir={root}/undisturbed")
        if code:
            sys.exit(stderr)
        want = commands.tables(Path(root, "undisturbed"))
        rng, studies = random.Random(options.seed), 0
        while hit.total() < options.kills and time.monotonic() - began < 60 * options.minutes:
            folder = Path(root, f"killed-{studies}")
            num_processes = 1 + studies % 2
            stages = commands.kill_until_finished(folder, rng, most=12, num_processes=num_processes)
            studies += 1
            hit.update(stages)
            same = commands.tables(folder) == want
            wrong += not same
            outcome = "the same bits" if same else "OTHER NUMBERS"
            print(f"study {studies}, {num_processes} processes: killed at {', '.join(stages)}; {outcome}", flush=True)
    counts = ", ".join(f"{count} at {stage}" for stage, count in hit.most_common())
    seconds = time.monotonic() - began
    print(f"{hit.total()} kills ({counts}), {studies} studies, {wrong} with other numbers, {seconds:.0f} s")
    missed = {"compile", "train", "save"} - hit.keys()
    sys.exit(1 if wrong or missed or hit.total() < options.kills else 0)
