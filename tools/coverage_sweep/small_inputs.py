"""Arguments for the forward of every architecture in transformers, made by what its parameters are called."""

from __future__ import annotations

import inspect
import re
import traceback
from typing import Any

import torch

from tools.coverage_sweep.small_configs import IMAGE, VOCAB, WIDTH, configs

SEQUENCE, BATCH, N_VARIANTS = 12, 2, 4


def _find(config: Any, *names: str, default: Any = None) -> Any:
    for name in names:
        for each in configs(config):
            value = getattr(each, name, None)
            if value is not None and not isinstance(value, str):
                return value
    return default


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size.get("height", IMAGE)), int(size.get("width", IMAGE))
    return (int(size[0]), int(size[-1])) if isinstance(size, list | tuple) else (int(size), int(size))


class Inputs:
    """Makes arguments for a forward by their names."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.random = torch.Generator().manual_seed(0)
        self.variant = 0
        self.paired = False  # whether an image is one half, and a prompt the other
        self.flat = False  # whether images come as rows of patches, with a grid
        self.resized: dict[str, tuple[int, int]] = {}  # axes of inputs that failures asked to be of another size
        self.n_tokens: dict[str, int] = {}  # how many positions of the text stand for an image, a sound, ...

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random)

    def ids(self, *shape: int, high: int = VOCAB - 40) -> torch.Tensor:
        return torch.randint(3, high, shape, generator=self.random)

    def tokens(self) -> torch.Tensor:
        high = min(VOCAB - 40, int(_find(self.config, "vocab_size", default=VOCAB)))
        places = [self.config_token(name) for name, n in self.n_tokens.items() for _ in range(n)]
        row = torch.tensor(places, dtype=torch.int64).expand(BATCH, -1)
        end = self.ids(BATCH, SEQUENCE, high=high)
        eos = _find(self.config, "eos_token_id")
        if isinstance(eos, int) and 0 <= eos < VOCAB:
            end[:, -1] = eos
        return torch.cat([end[:, :1], row, end[:, 1:]], 1)

    def config_token(self, name: str) -> int:
        return int(_find(self.config, f"{name}_token_id", f"{name}_token_index", default=VOCAB - 1))

    def image(self) -> tuple[int, ...]:
        size = _pair(_find(self.config, "image_size", "img_size", "input_size", default=IMAGE))
        if self.paired:
            size = size[0] // 2, size[1]
        return int(_find(self.config, "num_channels", "in_channels", "in_chans", default=3)), *size

    def make(self, name: str) -> torch.Tensor | None:
        """The value of an argument; none where it is not known."""
        c, h, w = self.image()
        frames = int(_find(self.config, "num_frames", "frames_per_clip", default=4))
        mel = int(_find(self.config, "num_mel_bins", "feature_size", "input_feat_per_channel", default=80))
        time = 2 * int(_find(self.config, "max_source_positions", default=32))
        length = SEQUENCE + sum(self.n_tokens.values())
        grid = torch.tensor([[1, 4, 4]]).expand(BATCH, -1)
        patch = int(_find(self.config, "patch_size", default=8)) if not isinstance(
            _find(self.config, "patch_size", default=8), list | tuple) else 8  # fmt: skip
        flat = c * patch * patch * int(_find(self.config, "temporal_patch_size", default=1))
        lags = _find(self.config, "lags_sequence", default=[0])
        past = int(_find(self.config, "context_length", "prediction_length", default=16)) + max(lags)
        hidden = int(_find(self.config, "hidden_size", "d_model", default=WIDTH))
        codes = int(_find(self.config, "num_codebooks", "num_quantizers", "n_codes_total", default=4))
        decoder = getattr(self.config, "decoder", None)
        books = int(getattr(decoder, "num_codebooks", 1)) if decoder is not None else 1
        known = {
            "input_ids": self.tokens,
            "decoder_input_ids": lambda: self.ids(BATCH * books, 7),
            "pixel_values": lambda: self.floats(
                *(
                    (BATCH * 16, flat)
                    if self.flat
                    else ((BATCH, c, h, w), (BATCH, frames, c, h, w), (BATCH, 16, flat), (BATCH, 2, c, h, w))[
                        self.variant
                    ]
                )
            ),
            "pixel_values_videos": lambda: self.floats(BATCH, frames, c, h, w),
            "flattened_patches": lambda: torch.cat(
                [
                    torch.cartesian_prod(torch.arange(1.0, 5), torch.arange(1.0, 5)).expand(BATCH, -1, -1),
                    self.floats(BATCH, 16, 3 * 256),
                ],
                2,
            ),
            "image_attention_mask": lambda: torch.ones(BATCH, SEQUENCE, frames, dtype=torch.int64),
            "bbox": lambda: torch.tensor([1, 2, 30, 40]).expand(BATCH, length, 4).clone(),
            "input_values": lambda: self.floats(
                *((BATCH, 4000), (BATCH, 1, 4000), (BATCH, int(_find(self.config, "max_length", default=time)), mel))[
                    self.variant % 3
                ]
            ),
            "grid_thw": lambda: grid,
            "image_grid_thw": lambda: grid,
            "pixel_position_ids": lambda: torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(BATCH, -1, -1),
            "input_features_mask": lambda: torch.ones(
                BATCH, self.resized.get("input_features", (0, time))[1], dtype=torch.int64
            ),
            "audio_mel": lambda: self.floats(BATCH, 64, int(_find(self.config, "input_feat_size", default=mel))),
            "audio_mel_mask": lambda: torch.zeros(BATCH, 64, dtype=torch.bool),
            "qformer_input_ids": lambda: self.ids(BATCH, 6),
            "visual_feats": lambda: self.floats(BATCH, 5, int(_find(self.config, "visual_feat_dim", default=WIDTH))),
            "visual_pos": lambda: torch.rand(BATCH, 5, int(_find(self.config, "visual_pos_dim", default=4))),
            "past_values": lambda: self.floats(
                *((BATCH, past), (BATCH, past, int(_find(self.config, "num_input_channels", default=1))))[
                    self.variant % 2 != int(_find(self.config, "num_input_channels", default=0) > 0)
                ]
            ),
            "future_values": lambda: self.floats(BATCH, int(_find(self.config, "prediction_length", default=8))),
            "future_time_features": lambda: self.floats(
                BATCH,
                int(_find(self.config, "prediction_length", default=8)),
                int(_find(self.config, "num_time_features", default=1)),
            ),
            "past_values_padding": lambda: torch.zeros(BATCH, past, dtype=torch.int64),
            "freq": lambda: torch.zeros(BATCH, 1, dtype=torch.int64),
            "static_categorical_features": lambda: torch.zeros(BATCH, 1, dtype=torch.int64),
            "latents": lambda: self.floats(*((BATCH, hidden, 6), (BATCH, 6, hidden))[self.variant % 2]),
            "noise_embeds": lambda: self.floats(BATCH, int(_find(self.config, "block_size", default=8)), hidden),
            "context_hidden_states": lambda: self.floats(
                BATCH, SEQUENCE, hidden * len(_find(self.config, "target_layer_ids", default=[0]))
            ),
            "inputs": lambda: self.floats(BATCH, 4000),
            "query_embeds": lambda: self.floats(BATCH, 8, hidden),
            "audio_codes": lambda: torch.randint(0, 8, (BATCH, codes, 8), generator=self.random),
            "rewards": lambda: self.floats(BATCH, SEQUENCE, 1),
            "prompt_pixel_values": lambda: self.floats(BATCH, c, h, w),
            "prompt_masks": lambda: self.floats(BATCH, c, h, w),
            "task_inputs": lambda: self.ids(BATCH, int(_find(self.config, "task_seq_len", default=8))),
            "merge_sizes": lambda: torch.ones(BATCH, dtype=torch.int64),
            "target_sizes": lambda: torch.tensor([[4, 4]]).expand(BATCH, -1),
            "tgt_sizes": lambda: torch.tensor([[4, 4]]).expand(BATCH, -1),
            "image_embeds_position_mask": lambda: (
                torch.arange(length) < int(_find(self.config, "latent_query_num", default=0))
            ).expand(BATCH, -1),
            "input_points": lambda: torch.rand(BATCH, 1, 2, 2, generator=self.random) * 30,
            "classes_input_ids": lambda: self.ids(BATCH * 3, SEQUENCE),
            "classes_attention_mask": lambda: torch.ones(BATCH * 3, SEQUENCE, dtype=torch.int64),
            "classes_structure": lambda: torch.full((BATCH,), 3),
            "tasks_input_ids": lambda: self.ids(BATCH, SEQUENCE),
            "tasks_attention_mask": lambda: torch.ones(BATCH, SEQUENCE, dtype=torch.int64),
            "image": lambda: self.floats(BATCH, c, h, w),
            "decoder_input_values": lambda: self.floats(BATCH, 20, mel),
            "token_type_ids": lambda: torch.zeros(BATCH, length, dtype=torch.int64),
            "qformer_attention_mask": lambda: torch.ones(BATCH, 6, dtype=torch.int64),
            "padding_mask": lambda: torch.ones(BATCH, 4000, dtype=torch.int64),
            "noise": lambda: self.floats(BATCH, SEQUENCE, 8),
            "embeddings": lambda: self.floats(BATCH, 16, hidden),
            "image_embeddings": lambda: self.floats(BATCH, hidden, 4, 4),
            "marks": lambda: torch.tensor([[4, 8]]),
            "num_options": lambda: torch.tensor([[2, 3]]),
            "question_type_ids": lambda: torch.tensor([[0, 1]]),
            "states": lambda: self.floats(BATCH, SEQUENCE, int(_find(self.config, "state_dim", default=17))),
            "actions": lambda: self.floats(BATCH, SEQUENCE, int(_find(self.config, "act_dim", default=4))),
            "returns_to_go": lambda: self.floats(BATCH, SEQUENCE, 1),
            "timesteps": lambda: torch.arange(SEQUENCE).expand(BATCH, -1),
            "input_features": lambda: self.floats(
                *((BATCH, mel, time), (BATCH, time, mel), (BATCH, mel, 100), (BATCH, 1, 256, mel))[self.variant]
            ),
            "pixel_attention_mask": lambda: torch.ones(BATCH, 16, dtype=torch.int64),
            "spatial_shapes": lambda: torch.tensor([[4, 4]]).expand(BATCH, -1),
            "mm_token_type_ids": lambda: (self.tokens() == self.config_token("image")).long(),
            "past_time_features": lambda: self.floats(
                BATCH, past, int(_find(self.config, "num_time_features", default=1))
            ),
            "past_observed_mask": lambda: torch.ones(BATCH, past),
            "state": lambda: self.floats(BATCH, int(_find(self.config, "max_state_dim", default=8))),
            "attention_mask": lambda: torch.ones(BATCH, length, dtype=torch.int64),
            "encoder_hidden_states": lambda: self.floats(BATCH, SEQUENCE, hidden),
            "inputs_embeds": lambda: self.floats(BATCH, SEQUENCE, hidden),
            "hidden_states": lambda: self.floats(*((BATCH * 16, flat) if self.flat else (BATCH, SEQUENCE, hidden))),
            "spectrogram": lambda: self.floats(BATCH, 20, mel),
        }
        maker = known.get(name)
        value = None if maker is None else maker()
        if value is not None and name in self.resized:
            axis, size = self.resized[name]
            shape = list(value.shape)
            shape[axis] = size
            value = self.floats(*shape)
        return value


_COUNT = re.compile(r"tokens:? (\d+).*?features:? (\d+)", re.IGNORECASE | re.DOTALL)


def small_inputs(model: torch.nn.Module, config: Any) -> dict[str, torch.Tensor]:
    """Arguments with which the forward of a model runs; found by running it.

    Starts from the main input and what has no default; what a failure names (in its message, or in the line that
    raised it) is added, as far as it is known how to make it.

    Raises:
        RuntimeError: No arguments were found; the message is the forward's.
    """
    parameters = inspect.signature(model.forward).parameters
    names = list(parameters)
    required = [
        name for name, p in parameters.items()
        if p.default is inspect.Parameter.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    if type(model).forward is torch.nn.Module.forward:
        raise RuntimeError("its class has no forward of its own")
    inputs = Inputs(config)
    main = getattr(model, "main_input_name", "input_ids")
    inputs.paired = "prompt_pixel_values" in names
    inputs.flat = "grid_thw" in names or "image_grid_thw" in names
    grids = [
        name
        for name in names
        if name in ("grid_thw", "image_grid_thw", "mm_token_type_ids", "image_embeds_position_mask")
    ]
    wanted = [n for n in (main, *required, "input_ids", "pixel_values", "input_features", "bbox") if n in names]
    starts = [[*wanted, *grids], [*wanted, *grids, "decoder_input_ids"], [main, *required], required, ["input_ids"]]
    failures: list[Exception] = []
    for choice, variant in (*((c, v) for v in range(N_VARIANTS) for c in starts[:2]), *((c, 0) for c in starts[2:])):
        inputs.variant, inputs.n_tokens = variant, {}
        made = _grown(model, inputs, list(dict.fromkeys(n for n in choice if n in names)), names, failures)
        if made is not None:
            return made
    told = [error for error in failures if _COUNT.search(str(error))] or failures
    raise RuntimeError(f"no inputs found: {type(told[0]).__name__}: {told[0]}" if told else "no inputs known")


def with_masks(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arguments with masks that hide nothing: what a model makes of absent ones may differ while it is traced."""
    names = inspect.signature(model.forward).parameters
    more = {
        mask: torch.ones(inputs[ids].shape, dtype=torch.int64)
        for mask, ids in (("attention_mask", "input_ids"), ("decoder_attention_mask", "decoder_input_ids"))
        if mask in names and mask not in inputs and ids in inputs
    }
    return {**inputs, **more}


def _grown(
    model: torch.nn.Module, inputs: Inputs, chosen: list[str], names: list[str], failures: list[Exception]
) -> dict[str, torch.Tensor] | None:
    """Runs the forward on the chosen arguments, and on more or other ones as long as failures say which."""
    dropped: set[str] = set()
    inputs.resized = {}
    for _ in range(10):
        made = {name: value for name in chosen if (value := inputs.make(name)) is not None}
        if not made:
            return None
        try:
            with torch.no_grad():
                model(**made)
            return made
        except Exception as failure:  # noqa: BLE001  (whatever the forward raises)
            failures.append(failure)
            text = " ".join(str(failure).split())
            counted = _COUNT.search(text)
            if counted is not None and not inputs.n_tokens and int(counted[1]) < int(counted[2]):
                kind = next((kind for kind in ("image", "audio") if kind in text.lower()), "video")
                inputs.n_tokens = {kind: int(counted[2]) // BATCH}
                continue
            both = re.search(r"both (\w+) and (\w+)|exactly one of (\w+) (?:or|and) (\w+)", text)
            spare = [name for name in (both.groups() if both else ()) if name in chosen]
            if len(spare) == 2:
                chosen = [name for name in chosen if name != spare[1]]
                dropped.add(spare[1])
                continue
            sizes = _wanted(text, made)
            if sizes and any(inputs.resized.get(name) != how for name, how in sizes.items()):
                inputs.resized.update(sizes)
                continue
            more = [name for name in asked_for(failure, names) if name not in chosen and name not in dropped]
            more = [name for name in more if inputs.make(name) is not None]
            if not more:
                return None
            chosen = [*chosen, more[0]]
    return None


_SIZES = (
    (r"mat1 and mat2 shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<want>\d+)x\d+\)", (-1,)),
    (r"to have (?P<want>\d+) channels, but got (?P<got>\d+) channels", (1, 2)),
    (r"must match except in dimension \d+\. Expected size (?P<got>\d+) but got size (?P<want>\d+)", (1, -1, -2)),
    (r"normalized_shape=\[(?P<want>\d+)\].*size\[.*?(?P<got>\d+)\]", (-1,)),
    (r"tensor a \((?P<got>\d+)\) must match the size of tensor b \((?P<want>\d+)\)", (-1,)),
    (r"multiple of .*?(?P<want>\d+)\)?, but got (?P<got>\d+)", (-1, -2)),
    (r"length (?P<got>\d+) is not a multiple of (?P<want>\d+)", (-1, -2)),
)
"""Messages that say which size an input has and which it should have, and the axes that may be meant."""


def _wanted(text: str, made: dict[str, torch.Tensor]) -> dict[str, tuple[int, int]]:
    """Axis and size of the inputs that a message says are of another size than wanted."""
    for pattern, axes in _SIZES:
        if found := re.search(pattern, text):
            got, want = int(found["got"]), int(found["want"])
            for name, value in made.items():
                for axis in axes:
                    if value.is_floating_point() and -value.dim() <= axis < value.dim() and value.shape[axis] == got:
                        return {name: (axis, want)}
    return {}


def asked_for(failure: Exception, names: list[str]) -> list[str]:
    """Arguments that a failure is about: words of its message, and of the lines of code that it came through."""
    found = [word for word in re.findall(r"\w+", str(failure)) if word in names]
    if isinstance(failure, AttributeError | TypeError | ValueError | AssertionError | UnboundLocalError):
        frames = [f for f in traceback.extract_tb(failure.__traceback__) if "/torch/" not in f.filename]
        lines = [frame.line or "" for frame in reversed(frames)]
        found += [word for line in lines[:3] for word in re.findall(r"\w+", line) if word in names]
    return list(dict.fromkeys(found))
