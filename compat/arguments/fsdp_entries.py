"""`fsdp` and `fsdp_config` as data: words and entries of both generations, and checks of them."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compat.arguments.fields import shown, value_of_unknown
from compat.arguments.files import entries, is_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping

    from transformers import TrainingArguments

NEWEST_FSDP = 2
VERSIONS = (1, NEWEST_FSDP)

SHARDS = {"full_shard": True, "shard_grad_op": False}
"""Sharding strategies of both versions → `reshard_after_forward`, the equivalent in version 2."""

OF_FIRST = ("hybrid_shard", "hybrid_shard_zero2", "no_shard")
"""Sharding strategies that only version 1 has."""

BESIDE = ("offload", "auto_wrap")
"""Words of `fsdp` that can be combined with a sharding strategy."""


@dataclass(frozen=True)
class Entry:
    """How one entry of `fsdp_config` is handled.

    Attributes:
        key: the entry, without the prefix `fsdp_` that it may have.
        first: the option of FSDPStrategy (version 1); empty if there is none.
        second: what implements it under ModelParallelStrategy (version 2); empty if nothing does.
        note: why, or how.
        xla: what implements it with torch_xla; empty if nothing does.
    """

    key: str
    first: str
    second: str
    note: str
    xla: str = ""


CHOSEN = "the strategy"
"""What an entry acts on that decides which strategy it is."""

FSDP_CONFIG: dict[str, Entry] = {
    entry.key: entry
    for entry in (
        Entry("version", CHOSEN, CHOSEN, "2 where it is not given"),
        Entry(
            "reshard_after_forward",
            "sharding_strategy",
            "fully_shard(reshard_after_forward)",
            "whether parameters are gathered again for the backward",
        ),
        Entry("cpu_offload", "cpu_offload", "fully_shard(offload_policy)", "parameters wait on the CPU"),
        Entry("offload_params", "cpu_offload", "fully_shard(offload_policy)", "parameters wait on the CPU"),
        Entry("auto_wrap_policy", "auto_wrap_policy", "which modules are sharded", "by class, or by size"),
        Entry(
            "transformer_layer_cls_to_wrap",
            "auto_wrap_policy",
            "which modules are sharded",
            "the model's `_no_split_modules` where it is not given",
            xla="auto_wrap_policy",
        ),
        Entry(
            "min_num_params",
            "auto_wrap_policy",
            "which modules are sharded",
            "parameters of a wrapped module",
            xla="auto_wrap_policy",
        ),
        Entry("backward_prefetch", "backward_prefetch", "", "version 2 prefetches by itself"),
        Entry("forward_prefetch", "forward_prefetch", "", "version 2 prefetches by itself"),
        Entry("limit_all_gathers", "limit_all_gathers", "", "version 2 limits them by itself"),
        Entry("use_orig_params", "use_orig_params", "", "version 2 always does"),
        Entry("sync_module_states", "sync_module_states", "", "version 2 loads rank by rank"),
        Entry(
            "cpu_ram_efficient_loading",
            "sync_module_states",
            "loading of the weights",
            "one process loads, the others receive",
        ),
        Entry(
            "activation_checkpointing",
            "activation_checkpointing_policy",
            "checkpointing of the sharded modules",
            "activations are computed again in the backward",
        ),
        Entry(
            "activation_checkpointing_offload",
            "",
            "checkpointing of the sharded modules",
            "activations wait on the CPU; of version 2 alone",
        ),
        Entry("ignored_modules", "ignored_modules", "fully_shard(ignored_params)", "modules left whole"),
        Entry("state_dict_type", "state_dict_type", "save_distributed_checkpoint", "form of a checkpoint"),
        Entry("mixed_precision_policy", "mixed_precision", "fully_shard(mp_policy)", "types of the shards"),
        Entry("xla", CHOSEN, CHOSEN, "whether torch_xla shards", xla=CHOSEN),
        Entry("xla_fsdp_v2", "", "", "torch_xla's SPMD; acts where `xla` is on", xla="SPMD's FSDP"),
        Entry(
            "xla_fsdp_grad_ckpt", "", "", "acts where `xla` is on", xla="checkpointing of the sharded modules"
        ),
        Entry("xla_fsdp_settings", "", "", "acts where `xla` is on", xla="XlaFullyShardedDataParallel({})"),
    )
}
"""Every entry of `fsdp_config`, of both versions."""

OF_ACCELERATE = {
    "backward_prefetch_policy": "backward_prefetch",
    "fully_shard": "reshard_after_forward",
    "sharding_strategy": "reshard_after_forward",
    "transformer_cls_names_to_wrap": "transformer_layer_cls_to_wrap",
    "transformer_cls_to_wrap": "transformer_layer_cls_to_wrap",
}
"""accelerate's name of an entry → HF's name, if the names are not similar."""


CHOICES = {
    "auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"),
    "backward_prefetch": ("BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH"),
    "state_dict_type": ("FULL_STATE_DICT", "LOCAL_STATE_DICT", "SHARDED_STATE_DICT"),
}
"""Entries with a fixed set of values."""


def words(fsdp: object) -> tuple[str, ...]:
    """Return the words of `fsdp` in any of its forms; none if it is True.

    Args:
        fsdp: True or False, text, or a list of text or of HF's enum.
    """
    if isinstance(fsdp, str):
        return tuple(fsdp.split())
    return (
        tuple(str(getattr(word, "value", word)) for word in fsdp) if isinstance(fsdp, (list, tuple)) else ()
    )


def config_of(fsdp: object, given: object) -> dict[str, Any]:
    """`fsdp_config` with the words of `fsdp` among its entries, and without prefixes.

    Version 1 is added if a sharding strategy is requested that only version 1 has.

    Args:
        fsdp: the argument.
        given: `fsdp_config`: entries, JSON, or a file.

    Raises:
        ValueError: the file or the JSON cannot be read.
    """
    config = {key.removeprefix("fsdp_"): value for key, value in entries(given).items()}
    ways = {way for way in (*words(fsdp), config.get("reshard_after_forward")) if isinstance(way, str)}
    if "version" not in config and ways & set(OF_FIRST):
        config["version"] = 1
    for word in words(fsdp):
        if word == "offload":
            config.setdefault("cpu_offload", True)
        elif word in SHARDS or word in OF_FIRST:
            # Version 2 has a boolean where version 1 has the name of a strategy.
            by_name = str(config.get("version", NEWEST_FSDP)) == "1"
            config.setdefault("reshard_after_forward", word if by_name else SHARDS.get(word, word))
    return config


def is_first(fsdp: object, given: object) -> bool:
    """Whether version 1 is requested, by its number or by a word that only it has.

    Args:
        fsdp: the argument.
        given: `fsdp_config`; `problems` reports one that cannot be read.
    """
    try:
        return str(config_of(fsdp, given).get("version")) == "1"
    except ValueError:
        return False


def take_fsdp(values: MutableMapping[str, Any]) -> None:
    """Set version 1 in `fsdp_config` if a sharding strategy is requested that only version 1 has.

    Every release then accepts such a word. An unreadable configuration does not change.

    Args:
        values: all arguments; changed in place.
    """
    if not values.get("fsdp"):
        return
    given = values.get("fsdp_config")
    with contextlib.suppress(ValueError):
        version = config_of(values["fsdp"], given).get("version")
        if version is not None and not _names_version(given):
            values["fsdp_config"] = {**entries(given), "version": version}


def _names_version(given: object) -> bool:
    return "version" in {key.removeprefix("fsdp_") for key in entries(given)}


def wrap_by_size(args: TrainingArguments) -> None:
    """Wrap modules by size if only a size is set, which transformers 5 would ignore.

    Args:
        args: initialized HF arguments.
    """
    told: dict[str, Any] | None = getattr(args, "fsdp_plugin_args", None)
    size = args.fsdp_config.get("min_num_params") if told else None
    if told and size and not {"auto_wrap_policy", "transformer_layer_cls_to_wrap"} & args.fsdp_config.keys():
        told.update(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=size)


def warn_of_first(given: Mapping[str, Any]) -> None:
    """Warn that version 1 is used because it is implied.

    Args:
        given: the arguments as they were passed.
    """
    of_first = [word for word in words(given.get("fsdp")) if word in OF_FIRST]
    if of_first and not _names_version(given.get("fsdp_config")):
        warnings.warn(
            f"`fsdp={of_first[0]!r}`: version 1 of FSDP alone has it, so this run takes version 1. "
            "Give fsdp_config={'version': 1} to say so, or 'full_shard' for version 2.",
            stacklevel=2,
        )


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of `fsdp` and `fsdp_config`, and their conflicts.

    Args:
        values: the arguments by today's names.
    """
    fsdp, given = values.get("fsdp"), values.get("fsdp_config")
    if not fsdp:
        return
    yield from _word_problems(fsdp)
    try:
        config = config_of(fsdp, given)
    except ValueError as error:
        yield f"`{shown('fsdp_config', given)}`: {error}"
        return
    yield from (*_unknown(config), *_unlisted(config), *_two_policies(config))
    if is_on(config.get("xla")):
        return
    version = config.get("version", NEWEST_FSDP)
    if str(version) not in map(str, VERSIONS):
        yield f"`fsdp_config={{'version': {version!r}}}`: there are versions 1 and 2. Give one of them."
    else:
        yield from _of_version(config, int(version))
    yield from _beside_other_arguments(values, config)


def _word_problems(fsdp: object) -> Iterator[str]:
    said = words(fsdp)
    known = (*SHARDS, *OF_FIRST, *BESIDE)
    for word in said:
        if word.lower() in {"true", "false"}:
            yield f"`{shown('fsdp', fsdp)}`: text. Give 'full_shard', or leave it out."
        elif word not in known:
            yield f"`{shown('fsdp', fsdp)}`: {word!r} is none of its words. {_guess(word, known)}"
    ways = [word for word in dict.fromkeys(said) if word in known and word not in BESIDE]
    if len(ways) > 1:
        yield f"`{shown('fsdp', fsdp)}`: {' and '.join(ways)} exclude each other. Give one of them."
    if said == ("offload",):
        yield f"`{shown('fsdp', fsdp)}`: alone it does not say how to shard. Give 'full_shard offload'."


def _two_policies(config: Mapping[str, Any]) -> Iterator[str]:
    by_class, size = config.get("transformer_layer_cls_to_wrap"), config.get("min_num_params")
    if by_class and size and "auto_wrap_policy" not in config:
        yield (
            f"`fsdp_config={{'min_num_params': {size!r}, 'transformer_layer_cls_to_wrap': {by_class!r}}}`: "
            "modules are wrapped by size or by class. Give one of them."
        )


def _unlisted(config: Mapping[str, Any]) -> Iterator[str]:
    for key, known in CHOICES.items():
        value = config.get(key)
        if isinstance(value, str) and not value.isdigit() and value.upper() not in known:
            yield f"`fsdp_config={{{key!r}: {value!r}}}`: not known. {_guess(value.upper(), known)}"


def _guess(name: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean `{close[0]}`?" if close else f"Give {', '.join(known)}."


def _unknown(config: Mapping[str, Any]) -> Iterator[str]:
    for key in config:
        if key in FSDP_CONFIG:
            continue
        said = OF_ACCELERATE.get(key)
        guess = f"HF calls it `{said}`." if said else _guess(key, tuple(FSDP_CONFIG))
        given = f"{{{key!r}: {value_of_unknown(key, config[key])}}}"
        yield f"`fsdp_config={given}`: no such entry, and HF would pass over it. {guess}"


def _of_version(config: Mapping[str, Any], version: int) -> Iterator[str]:
    """Yield a problem for each entry that this version does not take."""
    way = config.get("reshard_after_forward")
    if version == NEWEST_FSDP and isinstance(way, str) and way.lower() not in {"true", "false"}:
        said = f"`fsdp_config={{'version': 2}}` with `{way}`"
        if way.lower() in OF_FIRST:
            yield f"{said}: version 1 alone has it. Give fsdp_config={{'version': 1}}, or 'full_shard'."
        else:
            meant = SHARDS.get(way.lower(), True)
            yield f"{said}: version 2 takes yes or no. Give 'reshard_after_forward': {meant}."
    if version == 1 and way is not None and str(way).lower() not in {*SHARDS, *OF_FIRST}:
        yield (
            f"`fsdp_config={{'reshard_after_forward': {way!r}}}` with version 1: it takes the name of a way "
            f"to shard. Give one of {', '.join((*SHARDS, *OF_FIRST))}."
        )
    if is_on(config.get("activation_checkpointing_offload")):
        if version == 1:
            yield (
                "`fsdp_config={'activation_checkpointing_offload': True}`: version 2 alone has it. Remove "
                "it, or give 'version': 2."
            )
        elif not is_on(config.get("activation_checkpointing")):
            yield (
                "`fsdp_config={'activation_checkpointing_offload': True}`: there is nothing to offload. Give "
                "'activation_checkpointing': True as well."
            )


def _beside_other_arguments(values: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    if is_on(config.get("activation_checkpointing")):
        for name in ("activation_checkpointing", "gradient_checkpointing"):
            if values.get(name):
                yield (
                    f"`{name}=True` and `fsdp_config={{'activation_checkpointing': True}}`: activations are "
                    f"computed again once. Remove {name}: FSDP's own saves gathering parameters twice."
                )
                break
    if values.get("save_only_model") and "SHARDED" in str(config.get("state_dict_type")).upper():
        kind = config["state_dict_type"]
        yield (
            f"`save_only_model=True` with `fsdp_config={{'state_dict_type': {kind!r}}}`: shards are not a "
            "model that can be loaded by itself. Give 'FULL_STATE_DICT', or remove save_only_model."
        )
