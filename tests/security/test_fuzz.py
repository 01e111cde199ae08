"""A fixed sample of what ``tools/fuzz`` tries, and that it notices each thing that must not be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}


def fuzz(*words: str) -> dict[str, object]:
    """In a process without the threads of other tests, since it forks."""
    command = [sys.executable, "-W", "ignore", "-m", "tools.fuzz", "--json", *words]
    return json.loads(subprocess.run(command, capture_output=True, check=False, env=ENVIRONMENT, text=True).stdout)


def test_models_from_strangers() -> None:
    assert fuzz("--kinds", "onnx", "--count", "20", "--first", "100") == {"trials": 20, "problems": []}


def test_other_files_from_strangers() -> None:
    kinds = "plan,profile,statistics,arrays,images,text,code,option"
    assert fuzz("--kinds", kinds, "--count", "16") == {"trials": 16, "problems": []}


def test_recipes_from_strangers() -> None:
    assert fuzz("--kinds", "recipe", "--count", "6") == {"trials": 6, "problems": []}


PLANTED: dict[str, tuple[str, list[str]]] = {
    "right": ("print('{}')", []),
    "refused": ("sys.stderr.write('error: no\\n'); sys.exit(2)", []),
    "raises": ("1 / 0", ["status 70", "internal error"]),
    "crashes": ("os.kill(os.getpid(), 11)", ["status -11"]),
    "status": ("sys.exit(1)", ["status 1"]),
    "two lines": ("sys.stderr.write('error: a\\nb\\n'); sys.exit(2)", ["not one line"]),
    "noise": ("print('{}'); sys.stderr.write('warned')", ["noise"]),
    "no JSON": ("print('hello {}')", ["no JSON"]),
    "control": ("print(chr(27) + '[2J')", ["control characters", "no JSON"]),
    "memory": ("x = b'1' * (400 << 20); print('{}')", ["MB"]),
    "time": ("[0 for _ in iter(lambda: time.process_time() < 3.2, False)]; print('{}')", ["s"]),
    "outside": ("open('../outside/canary.bin').read(); print('{}')", ["read outside the folder"]),
    "secret": (
        "open('out', 'wb').write(open('link.bin', 'rb').read()); print('{}')",
        ["read outside the folder", "the secret is in an output"],
    ),
    "leftover": ("open('.a.graphprune-1-2', 'w'); print('{}')", ["leftovers"]),
    "half": (
        "open('out.onnx', 'w'); sys.stderr.write('error: no\\n'); sys.exit(2)",
        ["an output in spite of the error"],
    ),
}
JUDGE = """
import json, os, sys, tempfile, time
from pathlib import Path
import fuzz_trials as trials
trials.SECONDS, trials.MEGABYTES = 3, 300
bodies, found = json.loads(sys.argv[1]), {}
for name, body in bodies.items():
    def made(self, rng, number, kind, folder):
        return trials.Trial(0, kind, '', '', ('prune', '--json'), lambda: exec(body, globals()))
    trials.Bench._made = made
    with tempfile.TemporaryDirectory() as folder:
        found[name] = trials.Bench(Path(folder)).trial(0, 0, ('planted',))[1].problems
print(json.dumps(found))
"""


def test_planted_faults_are_noticed() -> None:
    bodies = json.dumps({name: body for name, (body, _) in PLANTED.items()})
    command = [sys.executable, "-W", "ignore", "-c", JUDGE, bodies]
    done = subprocess.run(command, capture_output=True, check=False, env=ENVIRONMENT, text=True)
    assert done.stdout, done.stderr
    found = {
        name: [each.split()[-1] if each.split()[0].isdigit() else each for each in problems]
        for name, problems in json.loads(done.stdout).items()
    }
    assert found == {name: problems for name, (_, problems) in PLANTED.items()}
