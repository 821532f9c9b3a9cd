"""Mutants of a model file and of a published file: refused with our error or read, quickly and in little memory.

    python tests/properties/fuzz_files.py --mutants 10000 --seed 0

Prints one line of JSON: mutants of each kind, how many were read, the longest time for one in s, and how far the memory
of the process rose in MB. Any exception but ModelFileError ends the script.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ensembles import random_potential
from test_published_files import dump, fields

from neuralil_ase.errors import ModelFileError
from neuralil_ase.files.model_file import load_potential, save_potential
from neuralil_ase.files.published_files import import_published

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 845_688_680)
OPERATIONS = b"(.)0123FGIJKLMNPQRSTUVXabcdefghijlopqrstu}]" + bytes(range(0x80, 0x99))


def mutant(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes, most of them near the start, where the structure of a file is."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        limit = max(1, len(changed) if rng.random() < 0.3 else min(len(changed), 3000))
        place, length = int(rng.integers(limit)), int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            changed[place : place + 4] = int(rng.choice(EXTREMES)).to_bytes(4, "little")
        elif kind == 2:
            changed[place : place + 1] = bytes([OPERATIONS[rng.integers(len(OPERATIONS))]])
        elif kind == 3:
            changed[place:place] = changed[place : place + length] * int(rng.choice([1, 2, 200]))
        elif kind == 4:
            del changed[place : place + length]
        elif kind == 5:
            del changed[place:]
        else:
            nested = rng.choice([b"h\x00\x86\x94", b"\x85", b"(", b"h\x01h\x01\x86\x94", b"}\x94"])
            changed[place:place] = bytes(nested) * int(rng.choice([1, 30, 5000]))
    return bytes(changed)


def fuzz(content: bytes, read: Callable[[Path], object], count: int, seed: int) -> dict[str, float]:
    """Read so many mutants of a file."""
    rng, readable, longest = np.random.default_rng(seed), 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant"
        for _ in range(count):
            path.write_bytes(mutant(content, rng))
            began = time.process_time()
            try:
                read(path)
                readable += 1
            except ModelFileError:
                pass
            longest = max(longest, time.process_time() - began)
    return {"mutants": count, "read": readable, "longest_s": round(longest, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=10_000, help="of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        save_potential(random_potential(), path)
        model = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "published": fuzz(dump(fields()), import_published, options.mutants, options.seed),
        "model": fuzz(model, load_potential, options.mutants, options.seed),
    }
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps(found | {"memory_rise_MB": round(rise)}))


if __name__ == "__main__":
    main()
