"""Checkpoints larger than memory: what planning and streaming them takes, and what killing it leaves.

Checkpoints of the shapes of well-known models are made on the disk, with random weights, and pruned without loading
them (``graphprune prune FOLDER -o SMALL --stream``). The peak of anonymous memory (pages of mapped files do not count:
the kernel drops them when it likes) is polled from the kernel while a process of its own works.

    python -m tools.bench.streaming [--only NAME ...] [--folder FOLDER] [--json streaming.jsonl]
    python -m tools.bench.streaming --kill 20

With ``--kill``, a small checkpoint is written again and again by a process that is killed (``SIGKILL``) at random
moments until one comes to its end; the folder has to be the same, byte by byte, as that of a run that nobody killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.bench.runner import parser_of

LLAMA: dict[str, Any] = {"vocab_size": 32_000, "pad_token_id": 0, "max_position_embeddings": 4096}
CASES: dict[str, dict[str, Any]] = {
    "3-gb": LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 64_000},
    "14-gb": LLAMA | {"hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32},
    "70b-plan": LLAMA | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
BOUNDS = {"3-gb": 1e9, "14-gb": 2e9, "70b-plan": 1e9}
"""Bytes of anonymous memory at the most."""
SMALL = LLAMA | {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 2048}  # fmt: skip

_PLAN = """
import sys, time, torch, transformers
import graphprune as gp
config = transformers.LlamaConfig(**{config!r}, dtype="bfloat16")
with torch.device("meta"):
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
begun = time.process_time()
result = gp.prune(model, {{"input_ids": torch.zeros(1, 64, dtype=torch.int64)}}, target={{"params": 0.7}},
    layout="stock", allocation="uniform", criterion="random", verify=False)
result.plan.save({path!r})
print(time.process_time() - begun)
"""


def make(folder: Path, config: dict[str, Any], *, shard: int = 2_000_000_000) -> int:
    """Writes a checkpoint of random bfloat16, tensor by tensor; its bytes."""
    import numpy as np
    import torch
    import transformers

    folder.mkdir(parents=True)
    whole = transformers.LlamaConfig(**config, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    whole.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {n: tuple(v.shape) for n, v in transformers.LlamaForCausalLM(whole).state_dict().items()}
    parts: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if parts[-1] and held + size > shard:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(1 << 22).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    weight_map, total = {}, 0
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        header, at = {}, 0
        for name in part:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [at, at + size]}
            weight_map[name] = file
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in part:
                left = int(np.prod(shapes[name]))
                scale = np.roll(noise, int(rng.integers(noise.size)))
                while left:
                    out.write(scale[:left].tobytes())
                    left -= min(left, scale.size)
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def watched(command: list[str]) -> dict[str, float]:
    """Runs a command: seconds, processor seconds, and bytes of anonymous memory at the most."""
    begun, peak, cpu = time.perf_counter(), 0, 0.0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    status, stat = Path(f"/proc/{process.pid}/status"), Path(f"/proc/{process.pid}/stat")
    ticks = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
            peak = max(peak, *(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
            words = stat.read_text().rpartition(")")[2].split()
            cpu = (int(words[11]) + int(words[12])) / ticks
        except (OSError, ValueError, IndexError):
            pass
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - begun, "cpu_seconds": cpu, "anonymous": peak}


def prune(folder: Path, output: Path, *more: str) -> list[str]:
    """The command of a streamed prune."""
    return [
        *(sys.executable, "-m", "graphprune", "prune", str(folder), "-o", str(output), "--stream", "--criterion", "l2"),
        *("--target", "params=0.7", "--allocation", "uniform", *more),
    ]


def measure(name: str, root: Path) -> dict[str, Any]:
    """One case."""
    bound, folder, small = BOUNDS[name], root / name, root / f"{name}-small"
    if name == "70b-plan":
        found = watched([sys.executable, "-c", _PLAN.format(config=CASES[name], path=str(root / "plan.json"))])
        return {"name": name, "bound": bound, "plan": (root / "plan.json").stat().st_size, **found}
    total = make(folder, CASES[name])
    found = watched(prune(folder, small))
    written = sum(path.stat().st_size for path in small.glob("*.safetensors"))
    shutil.rmtree(small)
    begun = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        shutil.copyfile(path, root / "copy")
        with (root / "copy").open("rb") as file:
            os.fsync(file.fileno())
    copied = time.perf_counter() - begun
    (root / "copy").unlink()
    shutil.rmtree(folder)
    return {"name": name, "bound": bound, "bytes": total, "written": written, "copy_seconds": copied, **found}


def digests(folder: Path) -> dict[str, str]:
    """A hash of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def killed(times: int, root: Path) -> int:
    """How many of so many runs that were killed until they came through have ended in other bytes."""
    import graphprune as gp
    from graphprune.hosts.checkpoint import streaming

    make(root / "whole", SMALL, shard=1_000_000)
    result = gp.prune(
        str(root / "whole"), stream=True, target={"params": 0.7}, criterion="l2", layers=1, layout="stock", verify=False
    )
    job = streaming.job_of(result.state.original, result.state, shard=400_000)

    def run(output: Path, after: float | None) -> bool:
        process = os.fork()
        if not process:
            try:
                beside = {"plan.json": result.plan.save}
                streaming.stream(job, output, None, beside, lambda done, total: time.sleep(0.02))
                os._exit(0)
            finally:
                os._exit(1)
        if after is not None:
            time.sleep(after)
            os.kill(process, signal.SIGKILL)
        return os.waitpid(process, 0)[1] == 0

    begun = time.perf_counter()
    run(root / "once", None)
    expected, rng, wrong, taken = digests(root / "once"), random.Random(0), 0, time.perf_counter() - begun
    print(f"once: {len(expected)} files, {taken:.1f} s", flush=True)
    for i in range(times):
        output, n = root / f"small-{i}", 0
        while not run(output, rng.uniform(0, taken / 2) if n < 2 else None):
            n += 1
        same = digests(output) == expected and not (root / f"small-{i}.streaming").exists()
        wrong += not same
        print(f"{i + 1}: killed {n} times, {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
        shutil.rmtree(output)
    return wrong


def main() -> int:
    """Runs the cases and prints what they took; 1 if one is above its bound, or ended in other bytes."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are made: a disk with room for twice the largest"
    )
    parser.add_argument("--json", type=Path, help="records are appended to it")
    parser.add_argument("--kill", type=int, metavar="N", help="kill N prunes at random moments instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.kill:
            return int(killed(options.kill, Path(name)) > 0)
        above = 0
        for case in options.only:
            record = measure(case, Path(name))
            above += record["anonymous"] > record["bound"]
            print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in record.items()}), flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
