"""Time of `deepspace predict` on a cohort of small slides: two dask workers against one.

Twelve simulated sections (0.9 mm at 1 um a pixel) are predicted on a grid, with one thread a
process and a feature cache that is empty each time. Times are those of the whole command, starts
of Python, of the scheduler and of its workers included. What two processes can gain on this
machine at this moment is measured beside it: the same matrix products, done by two processes at
once. Half of the slides, with one worker, tell how time grows with their number. All runs must
write the same bytes.

    python benchmarks/cohort.py [--slides 12] [--at grid:40] [--workers 2] [--rounds 1]
                                [--out FILE.json]

Exit status 1 if the gain is below 1.7 with two workers (or 0.85 of what the machine gives), or if
a run wrote other bytes than the first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deepspace.simulate import BlockConfig, simulate_block

SIDE_UM, MPP, MEASURED = 900.0, 1.0, 3
# asked for, with two workers; and as a part of what the machine gives
GAIN, PART = 1.7, 0.85
SETTINGS = (
    '[qc]\nmin_genes = 20\n[encoder]\nfov_um = [150]\n[evaluate]\nmoves = 2\nleak_gap = "none"\n'
)
LOOP = "import numpy as np\na = np.ones((700, 700))\nfor _ in range(150): b = a @ a"


def command(*arguments: object, cache: Path) -> float:
    """Seconds that one call of the program takes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEEPSPACE_CACHE": str(cache)}
    start = time.perf_counter()
    call = [sys.executable, "-m", "deepspace", *map(str, arguments), "--quiet"]
    done = subprocess.run(call, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(call)}\nended with {done.returncode}: {done.stderr}{done.stdout}")
    return time.perf_counter() - start


def machine_gain(workers: int) -> float:
    """How many times as much `workers` processes compute in the time of one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    seconds = []
    for count in (1, workers):
        start = time.perf_counter()
        running = [
            subprocess.Popen([sys.executable, "-c", LOOP], env=environment) for _ in range(count)
        ]
        for process in running:
            process.wait()
        seconds.append(time.perf_counter() - start)
    return workers * seconds[0] / seconds[1]


def digest(folder: Path) -> str:
    """SHA-256 of all predictions in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.h5ad")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def first_rows(sheet: Path, sections: int, name: str) -> Path:
    """A sheet of the first sections, beside that of all."""
    rows = sheet.read_text(encoding="utf-8").splitlines()[: 1 + sections]
    part = sheet.with_name(name)
    part.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return part


def prepare(folder: Path, slides: int) -> tuple[Path, Path]:
    """A model of the three measured sections, and the sheet of all sections."""
    names = [f"S{k + 1}" for k in range(slides)]
    config = BlockConfig.preset(
        "tiny", side_um=SIDE_UM, mpp=MPP, n_sections=slides, unmeasured=tuple(names[MEASURED:])
    )
    sheet = simulate_block(config).write(folder / "block")
    settings, model = folder / "settings.toml", folder / "model"
    settings.write_text(SETTINGS, encoding="utf-8")
    options = ["--genes", "expressed:20", "--config", settings]
    measured = first_rows(sheet, MEASURED, "measured.csv")
    command("train", measured, "--out", model, *options, cache=folder / "cache-train")
    return model, sheet


def measure(folder: Path, at: str, slides: int, workers: int, rounds: int) -> dict[str, Any]:
    """Predict the cohort with one worker and with `workers`, best of `rounds`."""
    model, sheet = prepare(folder, slides)
    ways = {
        "1 worker": ["--executor", "dask", "--workers", 1],
        f"{workers} workers": ["--executor", "dask", "--workers", workers],
    }
    seconds: dict[str, float] = dict.fromkeys(ways, float("inf"))
    working, digests = dict(seconds), set()
    gain = 0.0
    for turn in range(rounds):
        gain = max(gain, machine_gain(workers))
        for number, (way, options) in enumerate(ways.items()):
            out, cache = folder / f"out-{turn}-{number}", folder / f"cache-{turn}-{number}"
            arguments = ["--at", at, "--out", out, "--all-genes", *options]
            taken = command("predict", model, sheet, *arguments, cache=cache)
            report = json.loads((out / "run-report.json").read_text(encoding="utf-8"))
            seconds[way] = min(seconds[way], taken)
            spent = sum(row["seconds"] for row in report["sections"])
            working[way] = min(working[way], spent)
            digests.add(digest(out))
            print(f"{way:>10}: {taken:6.1f} s, {spent:6.1f} s of it in sections", flush=True)
    one, many = seconds["1 worker"], seconds[f"{workers} workers"]
    half = first_rows(sheet, slides // 2, "half.csv")
    arguments = ["--at", at, "--out", folder / "out-half", "--all-genes", *ways["1 worker"]]
    fewer = command("predict", model, half, *arguments, cache=folder / "cache-half")
    return {
        "slides": slides,
        "points": sum(row["points"] for row in report["sections"]),
        "seconds": {way: round(value, 1) for way, value in seconds.items()},
        "seconds_in_sections": {way: round(value, 1) for way, value in working.items()},
        "gain": round(one / many, 2),
        "machine_gain": round(gain, 2),
        "gain_as_part_of_the_machine's": round(one / many / gain, 2),
        "half_the_slides": round(fewer, 1),
        "growth_from_half_to_all": round(one / fewer, 2),
        "same_bytes": len(digests) == 1,
    }


def main() -> int:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=12)
    parser.add_argument("--at", default="grid:40")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.at, options.slides, options.workers, options.rounds)
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    wanted = min(GAIN * options.workers / 2, PART * found["machine_gain"])
    return int(found["gain"] < wanted or not found["same_bytes"])


if __name__ == "__main__":
    sys.exit(main())
