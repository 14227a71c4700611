"""Architectures of the `transformers` library, built small from random weights, under `check`.

Run: `pip install "gradwell[corpus]"`, then `python benchmarks/transformers_corpus.py --docs` (an hour on one core;
`--only bert,llama` for a few, `--records F` keeps what was measured and goes on from there, `--again` judges the kept
measurements with the rules as they are now).

Each model type of the library is built from its own configuration class with every size made small. It counts when a
forward and a backward pass run without gradwell. Then `check` looks at it in both levels under AdamW, in training mode.
A serious or fatal verdict is confirmed twice without gradwell: the quantity again in float64 by autograd alone, and
trials of 200 steps against a twin with the cause taken out; else it is told as a false alarm.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import dataclasses
import inspect
import json
import math
import multiprocessing
import os
import random
import re
import resource
import sys
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (as the field writes it)
from torch import Tensor, nn

DOCS = Path(__file__).parents[1] / "docs" / "architectures.md"
VOCAB = 256
CLASSES = 10
BATCH = 8
TOKENS = 16
MOST_PARAMETERS = 30_000_000
"""Larger ones are not built: a fallback with the library's own widths can be large."""
SECONDS = 900
MEMORY = 6 << 30

HEADS = (
    "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MASKED_LM", "CAUSAL_LM", "CTC",
    "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION", "SEMANTIC_SEGMENTATION",
    "DEPTH_ESTIMATION", "SEQUENCE_CLASSIFICATION", "TIME_SERIES_PREDICTION", "",
)  # fmt: skip
"""Heads in the order in which they are tried for a model type; "" is the model without a head."""


# Small configurations.


def small(config_class: Any, recipe: str, given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments that make a configuration small, with those of its parts."""
    made: dict[str, Any] = dict(given or {})
    defaults = {f.name: _default(f) for f in dataclasses.fields(config_class) if f.init}
    defaults.update(made)
    for name, value in defaults.items():
        smaller = _smaller(name, value, defaults, recipe)
        if smaller is not None:
            made[name] = smaller
    if "mrope_section" in getattr(config_class, "ignore_keys_at_rope_validation", ()):
        made["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    for name, spec in getattr(config_class, "sub_configs_defaults", {}).items():
        part = _class_of(spec)
        if part is None or getattr(spec, "optional", False):
            continue
        made[name] = small(part, recipe, dict(getattr(spec, "init_kwargs", {})))
        model_type = getattr(part, "model_type", "")
        if model_type:
            made[name]["model_type"] = model_type
    return made


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _class_of(spec: Any) -> Any:
    """The configuration class of a part: the spec is the class itself or names it."""
    if inspect.isclass(spec):
        return spec if dataclasses.is_dataclass(spec) else None
    try:
        return type(spec.default_config)
    except Exception:
        return None


LAYERS = re.compile(
    r"(num|n)_(hidden_|encoder_|decoder_|text_|backbone_|prediction_|mtp_)*(layers?|blocks)$|^depth$|_layers$|"
    r"^n_layers?$|^num_blocks$|layer_num$|^num_hidden_groups$|_depth$"
)
HEADS_NAME = re.compile(r"(num|n)_(\w+_)*heads?$|_heads$|^num_heads$|^heads$|^n_head$")
WIDTH = re.compile(
    r"hidden_size|hidden_dim|d_model|n_embd|embed_dim|^dim$|_dim$|embedding_size|^width$|proj_size|hidden_channels|"
    r"_width$|_channels$|_units$|_hidden$|d_inner|adapter_size|expansion_dim|embd_size|emb_dim|_size$"
)
MOST = tuple(
    (re.compile(pattern), most)
    for pattern, most in (
        (r"^(?!.*(type|codebook)).*vocab_size", VOCAB),
        (r"experts_per_tok|top_k$|moe_topk|num_selected|expert_top_k", 2),
        (r"^(?!.*per)(?=.*((num|n)_\w*experts$|num_experts|n_routed_experts))", 4),
        (r"^n_group$|^topk_group$", 1),
        (r"^patch_size$", 8),
        (r"^max_length$", 64),
        (r"head_dim$|qk_nope|v_head|^d_kv$|attention_head_size|^rotary_dim$|_rank$", 16),
        (r"intermediate|ffn_dim|d_ff|ff_dim|ffn_hidden|feedforward|n_inner|mlp_dim|ffn_size|inner_dim|ff_size", 128),
    )
)
"""The most that a number of such a name may be; the first pattern counts."""
MISSING = {"vocab_size": VOCAB, "pad_token_id": 0}
SPECIAL = re.compile(r"token_id$|token_index$|_token_ids$|bos_id$|eos_id$|pad_id$")
KEPT = re.compile(
    r"image_size|patch|kernel|vocab|window|chunk|block_size|num_|stride|type_|batch|max_|buffer|pool|grid|merge|sample|"
    r"position|context|in_channels|group|conv|state_size|ssm|bucket|temporal|rotary|rope|frame|stack|vision_feature|hop|"
    r"_id$|mel|n_fft|codebook|relative|tubelet|out_dim|bins|crop|downsample|upsample|spatial|cache|lag|input_size|span|"
    r"memory_size|clip|scale|n_classes|down|expand|length"
)


def _smaller(name: str, value: Any, siblings: dict[str, Any], recipe: str) -> Any:
    """A small value in place of a default; None leaves it."""
    if name in MISSING and value is None:
        return MISSING[name]
    if isinstance(value, bool) or value is None or name.startswith("_"):
        return None
    if SPECIAL.search(name):
        return _token(value)
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return _smaller_list(name, list(value), siblings)
    return _smaller_number(name, value, siblings, recipe) if type(value) is int else None


def _token(value: Any) -> Any:
    """Special tokens above the small vocabulary move to its upper end, equal ones to equal places."""
    if isinstance(value, (list, tuple)):
        return [_token(v) for v in value]
    return value if not isinstance(value, int) or value < 8 else VOCAB - 1 - value % 61


def _smaller_number(name: str, value: int, siblings: dict[str, Any], recipe: str) -> int | None:
    if name == "image_size" or (name == "input_size" and value >= 96):
        return 64 if siblings.get("patch_size") is None else 32
    if name == "window_size" and "depths" in siblings:
        return 2
    most = _most(name, value, siblings, recipe)
    if most is None and WIDTH.search(name) and not KEPT.search(name):
        heads = siblings.get("num_heads") or siblings.get("num_attention_heads")
        most = 16 * heads[0] if isinstance(heads, (list, tuple)) else 64
    return None if most is None else min(value, most)


def _most(name: str, value: int, siblings: dict[str, Any], recipe: str) -> int | None:
    """The most that a number of this name may be, as far as the name tells."""
    if LAYERS.search(name) and not name.startswith(("first_k", "skip", "max_window")):
        return 8 if recipe == "eight layers" else 4
    if HEADS_NAME.search(name):
        grouped = "kv" in name or ("key_value" in name and value != siblings.get("num_attention_heads"))
        return 2 if grouped else 4
    return next((most for pattern, most in MOST if pattern.search(name)), None)


def _smaller_list(name: str, value: list[int], siblings: dict[str, Any]) -> list[int] | None:
    if name == "out_indices":
        return list(range(1, len(value) + 1))
    if re.search(r"depths?$|num_layers|layers_per|num_blocks|block_repeats|_layers$", name):
        return [min(v, 2) for v in value]
    if name == "image_size" or (name == "input_size" and min(value) >= 96):
        return [64] * len(value)
    wide = re.search(r"hidden_sizes|width", name) or (WIDTH.search(name) and not KEPT.search(name))
    if not wide or HEADS_NAME.search(name) or max(value) <= 64:
        return None
    heads = siblings.get("num_heads") or siblings.get("num_attention_heads")
    if isinstance(heads, (list, tuple)) and len(heads) == len(value):
        return [16 * h for h in heads]
    factor = max(1, max(value) // 128)
    return [max(8, v // factor // 8 * 8) for v in value]


RECIPES = ("all", "eight layers")


# Models and what goes into them.


def seed(number: int) -> None:
    """Every generator that a model may draw from."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


class Headed(nn.Module):
    """A model without a loss of its own, and a linear read-out that a user would put on it."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.classify = model, nn.Linear(width, CLASSES)

    def forward(self, **inputs: Any) -> Tensor:
        return self.classify(features(self.model(**inputs)))


def features(outputs: Any) -> Tensor:
    """One vector a sample from a model's outputs."""
    x = _first(outputs)
    x = x.float()
    if x.dim() >= 4:  # (B, C, ...)
        return x.flatten(2).mean(2)
    if x.dim() == 3:  # unequal weights: a plain mean would make twins of a sub-pixel layer's copies
        return (x * torch.linspace(0.5, 1.5, x.shape[1])[:, None]).mean(1)
    return x


def _first(outputs: Any) -> Tensor:
    """The output that a user would build on: logits, then pooled, then the last hidden state, then what comes first."""
    named = dict(outputs) if hasattr(outputs, "keys") else dict(enumerate(_flat(outputs)))
    for key in ("logits", "pooler_output", "last_hidden_state", *named):
        for value in _flat(named.get(key)):
            if value.is_floating_point() and value.requires_grad and value.dim() >= 2 and value.shape[0] % BATCH == 0:
                return value.reshape(BATCH, -1, value.shape[-1]) if value.shape[0] != BATCH else value
    raise ValueError("no output with a gradient")


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    elif hasattr(value, "values"):
        yield from _flat(list(value.values()))


def tokens(rows: int = BATCH, length: int = TOKENS) -> Tensor:
    """Zipf-distributed tokens, as in text; the upper end of the vocabulary is left to special ones."""
    weights = 1 / torch.arange(1, 181, dtype=torch.float32)
    return 10 + torch.multinomial(weights, rows * length, replacement=True).reshape(rows, length)


def _get(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these settings that the configuration or one of its parts has."""
    for name in names:
        for part in _parts(config):
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


def _parts(config: Any) -> list[Any]:
    below = [v for v in vars(config).values() if hasattr(v, "model_type")]
    return [config, *(p for part in below for p in _parts(part))]


def _side(config: Any) -> tuple[int, int]:
    size = _get(config, "image_size", "input_size", default=64)
    if isinstance(size, dict):
        size = size.get("height", 64)
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[-1])
    return int(size), int(size)


def image(config: Any, side: int | None = None) -> Tensor:
    """Standardised images with some structure: noise of several scales."""
    height, width = (side, side) if side else _side(config)
    channels = _get(config, "num_channels", "in_channels", "in_chans", default=3)
    coarse = F.interpolate(torch.randn(BATCH, channels, 4, 4), size=(height, width), mode="bilinear")
    x = coarse + 0.3 * torch.randn(BATCH, channels, height, width)
    return x / x.std()


def inputs_of(model: nn.Module, config: Any) -> Iterator[dict[str, Any]]:
    """Candidate inputs, the likeliest first."""
    wants = inspect.signature(model.forward).parameters
    yield from _with_tokens_of(model, config, "image", wants)
    yield from _with_tokens_of(model, config, "audio", wants)
    choices: dict[str, list[Any]] = {}
    text = tokens()
    mel = int(_get(config, "num_mel_bins", "n_mels", "num_mel", "feature_size", "input_feat_per_channel", default=80))
    if "pixel_values" in wants:
        frames = int(_get(config, "num_frames", default=4))
        x = image(config)
        choices["pixel_values"] = [x, image(config, 64), x[:, None].repeat(1, frames, 1, 1, 1)]
    for name in ("pixel_values_videos", "video", "videos"):
        if name in wants and "pixel_values" not in wants:
            frames = int(_get(config, "num_frames", "frames_per_clip", default=4))
            choices[name] = [image(config)[:, None].repeat(1, frames, 1, 1, 1)]
    if "input_features" in wants:
        frames = 2 * int(_get(config, "max_source_positions", default=50))
        lengths = [frames, 64, 128] if frames <= 400 else [64, 128, frames]
        choices["input_features"] = [
            *(torch.randn(BATCH, mel, n) for n in lengths), *(torch.randn(BATCH, n, mel) for n in lengths)
        ]  # fmt: skip
    if "input_values" in wants:
        length = int(_get(config, "max_length", default=128))
        choices["input_values"] = [
            torch.randn(BATCH, *shape) for shape in ((2000,), (length, mel), (1, 2000), (4000,))
        ]  # fmt: skip
    if "input_ids" in wants:
        choices["input_ids"] = [text]
    if "bbox" in wants:
        low = torch.randint(0, 400, (BATCH, TOKENS, 2))
        choices["bbox"] = [torch.cat([low, low + torch.randint(1, 400, (BATCH, TOKENS, 2))], -1)]
    if "decoder_input_ids" in wants:
        choices["decoder_input_ids"] = [tokens()]
    width = int(_get(config, "hidden_size", "d_model", default=64))
    required = {n for n, p in wants.items() if p.default is inspect.Parameter.empty and p.kind not in (2, 4)}
    required -= {"kwargs", "args"}
    for name in required - set(choices):
        made = _required(name, config, width)
        if made is not None:
            choices[name] = [made]
    if not choices and "inputs_embeds" in wants:
        choices["inputs_embeds"] = [torch.randn(BATCH, TOKENS, width)]
    yield from _combinations(choices, wants)


def _with_tokens_of(model: nn.Module, config: Any, sense: str, wants: Any) -> Iterator[dict[str, Any]]:
    """Text with images or sounds in it: as many special tokens as the model makes features of one."""
    features_of = getattr(model, f"get_{sense}_features", None)
    token = _get(config, f"{sense}_token_id", f"{sense}_token_index")
    if features_of is None or token is None or "input_ids" not in wants:
        return
    takes = inspect.signature(features_of).parameters
    for given in _seen(config, takes) if sense == "image" else _heard(config, takes):
        try:
            with torch.no_grad():
                rows = sum(x.numel() // x.shape[-1] for x in _features(features_of(**given)))
        except Exception:
            continue
        many = rows // BATCH
        ids = torch.cat([tokens(length=4), torch.full((BATCH, many), token), tokens(length=TOKENS)], 1)
        special = ids == token
        made = {"input_ids": ids, **given, "labels": ids.masked_fill(special, -100)}
        if "mm_token_type_ids" in wants:
            made["mm_token_type_ids"] = special.long()
        yield {k: v for k, v in made.items() if k in wants}
        yield {k: v for k, v in made.items() if k in wants} | {"attention_mask": torch.ones_like(ids)}


def _features(outputs: Any) -> list[Tensor]:
    pooled = getattr(outputs, "pooler_output", None)
    return list(_flat(outputs if pooled is None else pooled))


def _seen(config: Any, takes: Any) -> Iterator[dict[str, Any]]:
    """Pictures in the shapes that models take."""
    if "image_grid_thw" in takes:
        patch, time_patch = _get(config, "patch_size", default=8), _get(config, "temporal_patch_size", default=1)
        channels = _get(config, "in_channels", "in_chans", "num_channels", default=3)
        patches = torch.randn(BATCH * 16, channels * time_patch * patch * patch)
        yield {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * BATCH)}
        return
    x = image(config)
    sizes = {"image_sizes": torch.tensor([list(x.shape[-2:])] * BATCH)} if "image_sizes" in takes else {}
    for pixels in (x, x[:, None], x[:, None].repeat(1, 2, 1, 1, 1)):
        yield {"pixel_values": pixels, **sizes}


def _heard(config: Any, takes: Any) -> Iterator[dict[str, Any]]:
    mel = int(_get(config, "num_mel_bins", "n_mels", default=80))
    frames = 2 * int(_get(config, "max_source_positions", default=50))
    for n in (frames, 64):
        given = {"input_features": torch.randn(BATCH, mel, n)}
        for name in ("input_features_mask", "feature_attention_mask"):
            if name in takes:
                given[name] = torch.ones(BATCH, n, dtype=torch.long)
        yield given


def _combinations(choices: dict[str, list[Any]], wants: Any) -> Iterator[dict[str, Any]]:
    most = max((len(values) for values in choices.values()), default=0)
    for n in range(most):
        chosen = {name: values[min(n, len(values) - 1)] for name, values in choices.items()}
        yield chosen
        if "attention_mask" in wants and "input_ids" in chosen:
            yield {**chosen, "attention_mask": torch.ones_like(chosen["input_ids"])}
        if "decoder_input_ids" in chosen:
            yield {k: v for k, v in chosen.items() if k != "decoder_input_ids"}
    for name in ("input_ids", "pixel_values", "input_features"):
        if name in choices and len(choices) > 1:
            yield {name: choices[name][0]}


def _required(name: str, config: Any, width: int) -> Any:
    """An input that has no default, by its name."""
    if name in ("hidden_states", "inputs_embeds", "encoder_hidden_states", "query_embeds", "x"):
        patch = _get(config, "patch_size", default=8)
        temporal = _get(config, "temporal_patch_size")
        if temporal is not None and isinstance(patch, int):
            channels = _get(config, "in_channels", "in_chans", "num_channels", default=3)
            return torch.randn(BATCH * 16, channels * temporal * patch * patch)
        return torch.randn(BATCH, TOKENS, width)
    if name in ("grid_thw", "image_grid_thw"):
        return torch.tensor([[1, 4, 4]] * BATCH)
    if name == "attention_mask":
        return torch.ones(BATCH, TOKENS, dtype=torch.long)
    if name in ("past_values", "past_observed_mask"):
        length = int(_get(config, "context_length", default=32))
        channels = int(_get(config, "num_input_channels", "input_size", default=1))
        made = torch.randn(BATCH, length, channels)
        return made if name == "past_values" else torch.ones_like(made)
    return None


def labels_of(model: nn.Module, inputs: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Labels that the model's own loss could take."""
    if "labels" not in inspect.signature(model.forward).parameters:
        return
    if "labels" in inputs:
        yield {}
        return
    name = type(model).__name__
    if "Classification" in name:
        yield {"labels": torch.randint(0, CLASSES, (BATCH,))}
    if "SemanticSegmentation" in name:
        side = inputs["pixel_values"].shape[-1]
        yield {"labels": torch.randint(0, CLASSES, (BATCH, side, side))}
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        yield {"labels": tokens()}
    if "input_ids" in inputs:
        yield {"labels": inputs["input_ids"]}
    if "CTC" in name:
        yield {"labels": torch.randint(5, 30, (BATCH, 3))}
    yield {"labels": tokens()}


@dataclasses.dataclass
class Case:
    """One architecture that runs: the model, its batch and loss as a user would write them."""

    name: str
    model_type: str
    model: nn.Module
    batch: dict[str, Any]
    loss_fn: Callable[[nn.Module, dict[str, Any]], Tensor]
    recipe: str
    task: str


def own_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return model(**batch).loss


def read_out_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    inputs = {k: v for k, v in batch.items() if k != "classes"}
    return F.cross_entropy(model(**inputs), batch["classes"])


def classes_of(model_type: str) -> list[str]:
    """The names of a model type's classes, in the order of `HEADS`."""
    from transformers.models.auto import modeling_auto as auto

    found: list[str] = []
    for head in HEADS:
        table = getattr(auto, f"MODEL_FOR_{head}_MAPPING_NAMES" if head else "MODEL_MAPPING_NAMES", {})
        names = table.get(model_type, ())
        found += [names] if isinstance(names, str) else list(names)
    return list(dict.fromkeys(found))


def build(model_type: str, known: dict[str, Any] | None = None) -> Case:
    """The first class, recipe and input of a model type that run forward and backward in plain torch.

    `known`: a record that says which class and recipe did so before; they are tried alone.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    reasons: list[str] = []
    names = classes_of(model_type)
    if not names:
        raise LookupError("no model class of its own")
    config_class = CONFIG_MAPPING[model_type]
    recipes: tuple[str, ...] = RECIPES
    if known and "architecture" in known:
        names, recipes = [known["architecture"]], (known["recipe"],)
    for recipe in recipes:
        try:
            config = _config(config_class, recipe)
        except Exception as error:
            reasons.append(f"{recipe}: configuration: {_line(error)}")
            continue
        for name in names:
            try:
                return _running(name, model_type, config, recipe)
            except Exception as error:
                reasons.append(f"{recipe}: {name}: {_line(error)}")
    raise LookupError("; ".join(reasons))


def _config(config_class: Any, recipe: str) -> Any:
    config = config_class(**small(config_class, recipe))
    if not hasattr(config, "is_composition"):
        for part in _parts(config):
            part._attn_implementation = "eager"
            part._experts_implementation = "eager"
    with contextlib.suppress(Exception):  # a composite that has none
        config.num_labels = CLASSES
    return config


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200]


def _running(name: str, model_type: str, config: Any, recipe: str) -> Case:
    import transformers

    model_class = getattr(transformers, name)
    _affordable(model_class, config)
    seed(0)
    model = model_class(config).train()
    reasons: list[str] = []
    for inputs in inputs_of(model, config):
        for labels in labels_of(model, inputs):
            case = Case(name, model_type, model, {**inputs, **labels}, own_loss, recipe, "its own loss")
            if (reason := _fails(case)) is None:
                return case
        alone = {k: v for k, v in inputs.items() if k != "labels"}
        try:
            seed(0)
            width = features(model(**alone)).shape[-1]
        except Exception as error:
            reasons.append(_line(error))
            continue
        batch = {**alone, "classes": torch.arange(BATCH) % CLASSES}
        case = Case(name, model_type, Headed(model, width).train(), batch, read_out_loss, recipe, "linear read-out")
        if (reason := _fails(case)) is None:
            return case
        reasons.append(reason)
    raise LookupError(" | ".join(dict.fromkeys(reasons)) or "no inputs known")


def _fails(case: Case) -> str | None:
    """Why forward and backward do not run; None where they do."""
    try:
        seed(1)
        loss = case.loss_fn(case.model, case.batch)
        if loss is None or loss.dim() != 0 or not loss.requires_grad or not torch.isfinite(loss):
            return f"no usable loss: {None if loss is None else loss.detach()}"
        loss.backward()
        reached = [p.grad is not None and bool(p.grad.count_nonzero()) for p in case.model.parameters()]
        return None if any(reached) else "no gradient"
    except Exception as error:
        return _line(error)
    finally:
        case.model.zero_grad(set_to_none=True)


def _affordable(model_class: Any, config: Any) -> None:
    """Count the parameters without memory; models that cannot be built so are built and counted."""
    try:
        with torch.device("meta"):
            model = model_class(copy.deepcopy(config))
    except Exception:
        return
    count = sum(p.numel() for p in model.parameters())
    if count > MOST_PARAMETERS:
        raise LookupError(f"{count / 1e6:.0f} million parameters")


# Confirmation without gradwell.

STEPS = 200
RATES = (1e-3, 3e-3, 3e-4)
SOONER = {"serious": 5.0, "fatal": 20.0}
"""How much sooner the cured twin has to reach the target (docs/calibration.md)."""


def site_gradients(case: Case, wanted: set[str], dtype: torch.dtype = torch.float64) -> dict[tuple[str, int], float]:
    """|dLoss/d(output)| of each call of the named modules, by autograd alone: a zero is added to each output."""
    twin, batch = _wide(case, dtype)
    zeros: dict[tuple[str, int], Tensor] = {}
    for name, module in twin.named_modules():
        if name in wanted:
            _add_zero(name, module, zeros)
    seed(1)
    loss = case.loss_fn(twin, batch)
    gradients = torch.autograd.grad(loss, list(zeros.values()), allow_unused=True)
    return {key: float(g.norm()) for key, g in zip(zeros, gradients, strict=True) if g is not None}


def _wide(case: Case, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
    """Model and batch in float64; as they are where that changes the loss (random depth draws other numbers)."""
    try:
        twin, batch = copy.deepcopy(case.model).to(dtype), _cast(case.batch, dtype)
        same = math.isclose(_loss(case, twin, batch), _loss(case, case.model, case.batch), rel_tol=1e-6)
    except RuntimeError:  # a part that knows single precision only
        same = False
    return (twin, batch) if same else (copy.deepcopy(case.model), case.batch)


def _add_zero(name: str, module: nn.Module, zeros: dict[tuple[str, int], Tensor]) -> None:
    forward = module.forward

    def with_zero(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        call = sum(known == name for known, _ in zeros)
        zeros[name, call] = torch.zeros_like(out, requires_grad=True)
        return out + zeros[name, call]

    module.forward = with_zero  # type: ignore[method-assign]


def _cast(batch: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in batch.items()}


def compared(case: Case, diagnosis: Any) -> dict[str, Any]:
    """The profile against float64 autograd: how many sites were compared, and the largest difference in decades."""
    measured = [row for row in diagnosis.profile if row.delta_norm and math.isfinite(row.delta_norm)]
    rows = [row for row in measured if row.kind != "Identity"]  # its output is its input, with other readers too
    outputs = [row for row in rows if row.log10_gain == 0]
    if not outputs:
        return {"sites": 0}
    try:
        exact = site_gradients(case, {row.site for row in rows})
    except Exception as error:
        return {"sites": 0, "error": _line(error)}
    if (outputs[-1].site, outputs[-1].call) not in exact:
        return {"sites": 0, "error": f"the output {outputs[-1].site} is no module"}
    base = exact[outputs[-1].site, outputs[-1].call]
    known = [(row, exact[row.site, row.call]) for row in rows if exact.get((row.site, row.call))]
    apart = [(abs(row.log10_gain - math.log10(value / base)), row.site) for row, value in known]
    largest, site = max(apart, default=(0.0, ""))
    return {"sites": len(known), "largest": round(largest, 4), "site": site, "far": sum(d > 0.05 for d, _ in apart)}


def confirmed(case: Case) -> list[dict[str, Any]]:
    """Each serious or fatal finding of `check` measured again without gradwell, and tried."""
    diagnosis = _diagnosis(_measured(case, "flow"))
    bad = [f for f in diagnosis.findings if f.severity != "mild"]
    tried = trial(case) if any(f.symptom != "unreached_parameter" for f in bad) else None
    return [
        {"symptom": f.symptom, "severity": f.severity, "again": _again(case, f, diagnosis)}
        | ({"trial": tried} if f.symptom != "unreached_parameter" else {})
        for f in bad
    ]


def holds(row: dict[str, Any]) -> bool | None:
    """Whether the trial says so too: the twin needs less than a fifth (fatal: a twentieth) of the steps; None where its
    steps do not suffice to tell.
    """
    tried = row.get("trial")
    if tried is None:
        return True
    if tried["twin"] is None:
        return None if tried["as built"] is None else False
    long_enough = (tried["as built"] or STEPS) >= SOONER[row["severity"]] * tried["twin"]
    return long_enough or (None if tried["as built"] is None else False)


def _again(case: Case, finding: Any, diagnosis: Any) -> dict[str, Any]:
    """The finding's quantity by plain torch."""
    site = finding.where[0].site if finding.where else ""
    if finding.symptom == "unreached_parameter":
        case.loss_fn(case.model, case.batch).backward()
        parameters = [p for p in case.model.parameters() if p.requires_grad]
        without = sum(p.numel() for p in parameters if p.grad is None)
        case.model.zero_grad(set_to_none=True)
        return {"share": without / sum(p.numel() for p in parameters), "said": finding.evidence[0].value}
    if finding.symptom in ("exploding_gradient", "vanishing_gradient"):
        rows = {row.site: row for row in diagnosis.profile}
        output = [row for row in diagnosis.profile if row.log10_gain == 0][-1]
        exact = site_gradients(case, {site, output.site})
        here = exact.get((site, rows[site].call)) if site in rows else None
        base = exact.get((output.site, output.call))
        said = rows[site].log10_gain if site in rows else None
        return {"decades": math.log10(here / base) if here and base else None, "said": said}
    if finding.symptom == "symmetric_units":
        return _twins_again(case, site, finding)
    return {"said": finding.evidence[0].value}


def _twins_again(case: Case, site: str, finding: Any) -> dict[str, Any]:
    twin = copy.deepcopy(case.model).double()
    seed(1)
    case.loss_fn(twin, _cast(case.batch, torch.float64)).backward()
    weight = dict(twin.named_modules())[site].weight
    both = torch.cat([weight.detach().flatten(1), weight.grad.flatten(1)], 1)
    rows = len(torch.unique(both, dim=0))
    return {"different rows": rows, "rows": len(both), "said": finding.evidence[0].value}


def trial(case: Case) -> dict[str, Any]:
    """Steps to half the first loss on the batch, as built and cured (the faster twin), each at its best rate."""
    case = telling(case)
    cured = twins(case.model)
    first = [_loss(case, model, case.batch) for model in (case.model, *cured)]
    target = 0.5 * min(first)
    twin: int | None = None
    for model in cured:
        twin = _steps(case, model, target, (twin or STEPS + 1) - 1) or twin
    enough = STEPS if twin is None else min(STEPS, math.ceil(twin * SOONER["fatal"]))
    return {"target": target, "first": first, "twin": twin, "as built": _steps(case, case.model, target, enough)}


def twins(model: nn.Module) -> list[nn.Module]:
    """With weights drawn again; and, where batch norm or a large dropout makes the gradient grow, without these too."""
    drawn = copy.deepcopy(model)
    reinitialise(drawn)
    calm = copy.deepcopy(drawn)
    return [drawn, calm] if calmed(calm) else [drawn]


def calmed(model: nn.Module) -> bool:
    """Take out what lets gradients grow beside the weights: group norm (one group) for batch norm, no large dropout."""
    found = False
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout) and child.p > 0.5:
                child.p, found = 0.0, True
            elif isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                setattr(parent, name, nn.GroupNorm(1, child.num_features))
                found = True
    return found


def telling(case: Case) -> Case:
    """The same model on a task that needs its pictures, where it has text too: one text for all, a class to tell."""
    if not {"pixel_values", "input_ids"} <= case.batch.keys():
        return case
    batch = {k: v for k, v in case.batch.items() if k not in ("labels", "classes")}
    batch["input_ids"] = batch["input_ids"][:1].expand_as(batch["input_ids"]).clone()
    model = case.model.model if isinstance(case.model, Headed) else case.model
    seed(0)
    headed = Headed(model, features(model(**batch)).shape[-1])
    batch["classes"] = torch.arange(BATCH) % CLASSES
    return dataclasses.replace(case, model=headed, batch=batch, loss_fn=read_out_loss)


def _steps(case: Case, model: nn.Module, target: float, most: int) -> int | None:
    """Steps to the target at the best of the rates; None where no rate gets there in `most`."""
    best: int | None = None
    for rate in RATES:
        found = _steps_to(case, model, rate, target, (best or most + 1) - 1)
        best = found or best
    return best


def _loss(case: Case, model: nn.Module, batch: dict[str, Any]) -> float:
    model = copy.deepcopy(model)  # running means of a normalisation stay as they are
    seed(1)
    return float(case.loss_fn(model, batch).detach())


def _steps_to(case: Case, model: nn.Module, rate: float, target: float, most: int) -> int | None:
    """Steps until the smoothed loss is below the target; None where `most` do not suffice."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    smooth = math.nan
    seed(2)
    for step in range(1, most + 1):
        optimizer.zero_grad(set_to_none=True)
        loss = case.loss_fn(model, case.batch)
        loss.backward()
        optimizer.step()
        value = float(loss.detach())
        smooth = value if step == 1 else 0.7 * smooth + 0.3 * value
        if not math.isfinite(value):
            return None
        if smooth < target:
            return step
    return None


def reinitialise(model: nn.Module) -> None:
    """Weights of variance 1 / fan_in, embeddings of variance 1; constants that a norm follows become random too."""
    seed(3)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.is_floating_point() or parameter.dim() < 2:
                    continue
                embedding = isinstance(module, nn.Embedding) or re.search(r"token|position|embed|query|latent", name)
                fan_in = 1 if embedding else parameter[0].numel()
                parameter.normal_(0, 1 / math.sqrt(fan_in))


# One architecture in a process of its own.


def examine(model_type: str, levels: tuple[str, ...], known: dict[str, Any] | None) -> dict[str, Any]:
    """What `check` says of a model type, as a record; without levels a known record's findings are confirmed."""
    started = time.perf_counter()
    try:
        case = build(model_type, known)
    except LookupError as reason:
        return {"model_type": model_type, "left_out": str(reason)}
    if known is not None and not levels:
        return {**known, "confirmed": confirmed(case)}
    parameters = [p for p in case.model.parameters() if p.requires_grad]
    record: dict[str, Any] = {
        "model_type": model_type, "architecture": case.name, "recipe": case.recipe, "task": case.task,
        "inputs": [k for k in case.batch if k not in ("labels", "classes")],
        "parameters": sum(p.numel() for p in parameters), "build_s": round(time.perf_counter() - started, 2),
    }  # fmt: skip
    for level in levels:
        record[level] = checked(case, level)
    return record


def checked(case: Case, level: str) -> dict[str, Any]:
    """Verdict and findings of one level; the error where there was one."""
    before = _loss(case, case.model, case.batch)
    started = time.perf_counter()
    try:
        run = _measured(case, level)
        said = judged(run)
    except Exception as error:
        return {"error": _line(error), "traceback": traceback.format_exc()}
    took = time.perf_counter() - started
    after = _loss(case, case.model, case.batch)
    return {
        **said,
        "run": packed(run),
        "compared": compared(case, _diagnosis(run)) if level == "flow" else None,
        "traceless": before == after and all(p.grad is None for p in case.model.parameters()),
        "check_s": round(took, 3),
    }  # fmt: skip


def _measured(case: Case, level: str) -> Any:
    """What `check` measures; `check` is this and `_diagnosis`."""
    from gradwell.journeys.check import measure

    optimizer = torch.optim.AdamW([p for p in case.model.parameters() if p.requires_grad], lr=1e-3)
    seed(1)
    return measure(case.model, case.batch, case.loss_fn, optimizer, level=level)


def _diagnosis(run: Any) -> Any:
    from gradwell.journeys.diagnose import diagnose

    return diagnose(run)


def judged(run: Any) -> dict[str, Any]:
    """What the rules say of a measurement."""
    diagnosis = _diagnosis(run)
    return {
        "verdict": diagnosis.verdict,
        "findings": [
            {"symptom": f.symptom, "severity": f.severity, "summary": f.summary, "where": [w.site for w in f.where]}
            for f in diagnosis.findings
        ],
        "not_checked": {n.symptom: n.reason for n in diagnosis.not_checked},
        "notes": list(diagnosis.notes),
        "sites": len(diagnosis.profile),
        "text": str(diagnosis),
    }


def packed(run: Any) -> str:
    """A measurement as text, to be judged again."""
    import msgspec

    return base64.b85encode(zlib.compress(json.dumps(msgspec.to_builtins(run)).encode())).decode()


def unpacked(text: str) -> Any:
    import msgspec

    from gradwell.records.run import Run

    return msgspec.convert(json.loads(zlib.decompress(base64.b85decode(text))), Run)


def judged_again(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what the rules as they are now say of its measurements; what is bad only now is untried."""
    levels = {level: record[level] for level in ("flow", "deep") if "run" in record.get(level, ())}
    made = {**record, **{level: {**kept, **judged(unpacked(kept["run"]))} for level, kept in levels.items()}}
    known = {row["symptom"]: row for row in made.pop("confirmed", ())}
    bad = {f["symptom"]: f["severity"] for f in made.get("flow", {}).get("findings", ()) if f["severity"] in SOONER}
    if bad and bad.keys() <= known.keys():
        made["confirmed"] = [{**known[name], "severity": severity} for name, severity in bad.items()]
    return made


def _child(model_type: str, levels: tuple[str, ...], known: dict[str, Any] | None, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    quiet()
    try:
        record = examine(model_type, levels, known)
    except BaseException as error:
        record = {"model_type": model_type, "crash": _line(error), "traceback": traceback.format_exc()}
    pipe.send(record)
    pipe.close()


def quiet() -> None:
    """The library's own warnings are not ours to print."""
    import logging

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def examined(
    model_types: list[str], levels: tuple[str, ...], workers: int, known: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The records as they come; a model type that crashes or takes too long costs itself only."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(model_types)), {}
    while waiting or running:
        while waiting and len(running) < workers:
            model_type = waiting.pop()
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_child, args=(model_type, levels, known.get(model_type), theirs), daemon=True
            )
            process.start()
            theirs.close()
            running[model_type] = (process, mine, time.monotonic())
        for model_type, (process, pipe, started) in list(running.items()):
            record = _answer(model_type, process, pipe, started)
            if record is not None:
                del running[model_type]
                yield record
        time.sleep(0.02)


def _answer(model_type: str, process: Any, pipe: Any, started: float) -> dict[str, Any] | None:
    if pipe.poll():
        try:
            record = pipe.recv()
        except EOFError:
            record = {"model_type": model_type, "crash": f"the process ended with {process.exitcode}"}
        process.join()
        return record
    if time.monotonic() - started > SECONDS:
        process.kill()
        process.join()
        return {"model_type": model_type, "crash": f"took more than {SECONDS} s"}
    return None


def preload() -> None:
    """Import once, before the processes part."""
    import transformers.modeling_layers
    import transformers.models.llama.modeling_llama
    import transformers.models.vit.modeling_vit  # noqa: F401

    import gradwell

    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    gradwell.check(net, torch.randn(8, 4), lambda m, x: m(x).square().mean(), torch.optim.AdamW(net.parameters()))


def model_types() -> list[str]:
    """Every model type of the library that has a model class."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [name for name in CONFIG_MAPPING_NAMES if classes_of(name)]


def read_records(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["model_type"]: row for row in rows}


# The page.

PAGE = """# Architectures

`python benchmarks/transformers_corpus.py --docs` wrote this page with {versions}. It builds model
types of the `transformers` library from their own configuration classes with every size made small (random weights as
the library draws them, {batch} samples, text of {tokens} tokens with a Zipf distribution, images of coarse and fine
noise), and runs `check` under AdamW (1e-3) in training mode, in both levels. A model type counts where a forward and a
backward pass run without gradwell. The loss is the model's own where it has one, else cross-entropy on a linear
read-out.{again}

{summary}

## Serious and fatal verdicts

Each was confirmed twice without gradwell: the quantity again in float64 by autograd alone (a zero is added to the
output of the layer, and its gradient is taken), and trials of {steps} steps on the batch under AdamW at three learning
rates, as built and as a cured twin: all weights drawn again with variance 1 / fan-in and, if that is faster, group norm
(one group) for batch norm and no dropout above a half. Tried is how many steps half of the first loss takes. The
verdict holds where the twin needs less than a fifth (fatal: a twentieth) of the steps. A parameter that no gradient
reaches needs no trial. Where a model takes pictures and text, the task is to tell the pictures apart.

{confirmed}

## What this list has mended

{mended}

## The list

The number of sites is that of level `flow`; "by autograd" are those whose gain was compared with float64 autograd.

{table}

## Left out

{left_out}
"""
MENDED = """False alarms that came up here, and the rule that ended each.

- **What a normalisation reads** was told as exploding, by up to 4.5 decades: class tokens that start at zero in front
  of a layer norm (audio-spectrogram-transformer, deit, dpt, flava), small branch outputs in front of one (exaone4,
  flex_olmo), a stem of small weights (canary). The gradient is that large, but a normalisation divides by the scale of
  what it reads; where it was tried (audio-spectrogram-transformer, deit, exaone4, layoutlmv3) the twin was 1.7 to 2.7
  times faster. `exploding_gradient` counts nothing from a weight layer on to the next normalisation.
- **A signal that fades and is given back further on** (chmv2, whose depths are divided by their sum; mobilevit and
  mobilevitv2, whose normalisations' weights are drawn small too) was told as exploding, by up to 5.2 decades; the
  twin was 1.3 to 1.8 times faster. What only makes up for a loss on the way forward does not count.
- **One normalisation on several taps** (tipsv2_dpt reads its residual stream at four depths) was not seen in front of
  the stream's small outputs: fatal, 4.5 decades. As built it takes 375 steps to half of its twin's first loss, the twin
  170. Calls side by side count together. Now mild.
- **Weights so small that one step multiplies them** (got_ocr2 draws its vision tower with a standard deviation of
  1e-10) were told as vanishing by 11.9 decades, fatal. They grow out of it: the twin was 3.9 times faster. Now mild.
- **The gradient of a vector** (dac's factors of a Snake activation) was below what Adam's eps lets through, which put
  the whole net under the bounds of SGD. Only weights that are no vectors are compared with eps (no trial of dac ended).
- **Layers that are fed with zeros** (dab-detr's queries, swinv2's position table of a window of one) were told as dead.
- **ReLU6** (mobilenet_v1, mobilenet_v2): its zeros counted as saturated. They are ReLU's; only the ceiling counts.
- **A router whose weights start at zero** (afmoe): the experts that it has not chosen have weights and gradients of
  zero and were told as copies of each other. Such rows are idle.
- **A branch that the batch does not use** (gradium_phonon_tts multiplies it with a mask of zeros) was told as
  underflow. An exact zero below a site that sends on a gradient of ordinary size is a mask.

mobilenet_v1 is no false alarm: 1.7 of its decades are the dropout of 99.9 % in front of its head, the default of its
configuration, with which neither it nor a twin that keeps it and batch norm halves its loss in {steps} steps."""


AGAIN = """ All verdicts here are those of the rules as they are now, read from what was measured (`--again`); some of
the measurements were made before the last of the rules, and trials were made for what is serious or fatal now."""


def page(records: dict[str, dict[str, Any]], *, again: bool) -> str:
    """docs/architectures.md; `again`: the records were judged again."""
    import transformers

    ran = {name: row for name, row in sorted(records.items()) if "flow" in row}
    left = {name: row for name, row in sorted(records.items()) if "flow" not in row}
    rows = [(name, row, found) for name, row in ran.items() for found in row.get("confirmed", ())]
    untried = [name for name, row in ran.items() if _is_bad(row)]
    return PAGE.format(
        versions=f"transformers {transformers.__version__} and torch {torch.__version__.partition('+')[0]}",
        batch=BATCH, tokens=TOKENS, steps=STEPS, summary=_summary(ran, left, rows), mended=MENDED.format(steps=STEPS),
        confirmed=_confirmed_table(rows, untried), table=_table(ran), left_out=_left_out(left),
        again=AGAIN if again else "",
    )  # fmt: skip


def _summary(ran: dict[str, Any], left: dict[str, Any], rows: list[Any]) -> str:
    unreached = len(set(model_types()) - ran.keys() - left.keys())
    lines = [
        f"- {len(ran)} model types of {len(ran) + len(left)} that were tried run; {len(left)} are left out. "
        f"{unreached} more that the library knows were not reached."
    ]
    for level in ("flow", "deep"):
        verdicts = [row[level].get("verdict", "error") for row in ran.values() if level in row]
        said = ", ".join(
            f"{verdicts.count(v)} {v}" for v in ("healthy", "mild", "serious", "fatal", "undecided", "error")
        )
        lines.append(f"- Level `{level}`: {len(verdicts)} checked; {said}.")
    compared = [row["flow"]["compared"] for row in ran.values() if (row["flow"].get("compared") or {}).get("sites")]
    sites, far = sum(c["sites"] for c in compared), sum(c["far"] for c in compared)
    lines.append(
        f"- The gains of {sites:,} sites in {len(compared)} architectures were taken again by autograd: "
        f"{sites - far:,} agree within 0.05 decades. The site of an `nn.Identity` is the tensor that it "
        "passes on, with all its readers, and cannot be compared so."
    )
    traceless = sum(
        all(row[v]["traceless"] for v in ("flow", "deep") if "traceless" in row.get(v, ())) for row in ran.values()
    )
    lines.append(
        f"- In {traceless} the loss of the next pass is the same to the last bit and no gradient stays behind."
    )
    tried = [found for _, _, found in rows if "trial" in found]
    lines.append(
        f"- {len(rows) - len(tried)} findings of parameters without a gradient, all so by autograd; of {len(tried)} "
        f"other serious or fatal ones that were tried {sum(holds(found) is True for found in tried)} hold."
    )
    return "\n".join(lines)


def _confirmed_table(rows: list[Any], untried: list[str]) -> str:
    lines = [
        "| model type | symptom | severity | said | in float64 | as built, steps | twin, steps | holds |",
        "|---|" + "---|" * 7,
    ]
    for name, _, found in rows:
        again, tried = found["again"], found.get("trial") or {}
        known = [v for k, v in again.items() if k != "said" and v is not None]
        steps = [tried.get(k) or (f">{STEPS}" if tried else "-") for k in ("as built", "twin")]
        held = {True: "yes", False: "no: a false alarm", None: "open: the steps do not suffice to tell"}[holds(found)]
        lines.append(
            f"| {name} | {found['symptom']} | {found['severity']} | {_short(again['said'])} | "
            f"{', '.join(map(_short, known)) or '-'} | {steps[0]} | {steps[1]} | {held} |"
        )
    if untried:
        lines += ["", f"No trial came to its end, so open: {', '.join(untried)}."]
    return "\n".join(lines) if rows or untried else "There was none."


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(ran: dict[str, Any]) -> str:
    lines = [
        "| model type | architecture | loss | parameters | sites | by autograd | flow | deep |",
        "|---|" + "---|" * 7,
    ]
    for name, row in ran.items():
        flow, deep = row["flow"], row.get("deep", {})
        said = [level.get("verdict", "error" if "error" in level else "-") for level in (flow, deep)]
        sites = (flow.get("compared") or {}).get("sites", 0)
        lines.append(
            f"| {name} | {row['architecture']} | {row['task']} | {row['parameters']:,} | {flow.get('sites', '-')} | "
            f"{sites} | {said[0]} | {said[1]} |"
        )
    return "\n".join(lines)


def _left_out(left: dict[str, Any]) -> str:
    lines = ["Not built by these general rules, or not with these inputs; gradwell had no part in it.", ""]
    return "\n".join([*lines, ", ".join(left) + "."])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--records", type=Path, help="a JSON-lines file: what it holds is not measured again")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--docs", action="store_true", help="write docs/architectures.md instead of printing it")
    parser.add_argument("--page", action="store_true", help="measure nothing: the page from the records")
    parser.add_argument("--again", action="store_true", help="judge what was measured with the rules as they are now")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    known = read_records(options.records)
    if options.again:
        known = {name: judged_again(record) for name, record in known.items()}
    if not options.page:
        preload()
        wanted = options.only.split(",") if options.only else model_types()
        _measure([name for name in wanted if name not in known], ("flow", "deep"), known, options)
        _measure([name for name in wanted if _is_bad(known.get(name, {}))], (), known, options)
    text = page(known, again=options.again)
    if options.docs:
        DOCS.write_text(text)
    else:
        print(text, end="")


def _is_bad(record: dict[str, Any]) -> bool:
    return record.get("flow", {}).get("verdict") in SOONER and "confirmed" not in record


def _measure(wanted: list[str], levels: tuple[str, ...], known: dict[str, Any], options: argparse.Namespace) -> None:
    for record in examined(wanted, levels, options.workers, known):
        name = record["model_type"]
        known[name] = record if "flow" in record or name not in known else {**known[name], "unconfirmed": record}
        if options.records:
            with options.records.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
        print(name, record.get("architecture"), record.get("flow", {}).get("verdict"), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
