"""The script's `train`: seeds, Lightning's Trainer with its flags, and the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.translate.source.recipe import FLAGS, kept, literal

if TYPE_CHECKING:
    from compat.translate.source.recipe import Recipe


SHARDING = {"fsdp", "model_parallel", "deepspeed", "xla"}
"""Strategies of which a script knows no more than the name."""


def train_lines(recipe: Recipe) -> list[str]:
    """The function that trains."""
    name = "full_determinism" if recipe.get("full_determinism") else "seed"
    seeds = {"full_determinism": "enable_full_determinism", "seed": "set_seed"}[name]
    return [
        "",
        "",
        "def train(model, train_dataset, eval_dataset=None, collate_fn=None):",
        '    """Train the model in place and return the Lightning Trainer."""',
        f"    {seeds}({recipe.get('seed')})  # {name}",
        "    model.train()  # Lightning leaves it in the mode it comes in",
        *_checkpointing_lines(recipe),
        *_data_lines(recipe),
        *_steps_lines(recipe),
        *_refusal_lines(recipe),
        "    trainer = L.Trainer(",
        *(f"        {line}" for line in _flag_lines(recipe)),
        "    )",
        *(f"    {line}" for line in _run_lines(recipe)),
        "    return trainer",
    ]


def _checkpointing_lines(recipe: Recipe) -> list[str]:
    """Activations that are computed again in the backward, by the name that the release has for it."""
    name = "activation_checkpointing" if recipe.is_newest else "gradient_checkpointing"
    if not recipe.get(name):
        return []
    kwargs = recipe.get(f"{name}_kwargs")
    if recipe.is_newest and kwargs:
        own = {key: kwargs[key] for key in ("every_n_layers", "offload") if key in kwargs}
        kwargs = {key: value for key, value in kwargs.items() if key not in own}
        given = [f"{name}_kwargs={literal(kwargs)}"] if kwargs else []
        given += [f"{key}={literal(value)}" for key, value in own.items()]
    else:
        given = [f"{name}_kwargs={literal(kwargs)}"] if kwargs else []
    return [f"    model.{name}_enable({', '.join(given)})  # {name}"]


def _data_lines(recipe: Recipe) -> list[str]:
    evaluates, filters = recipe.validates, recipe.values["remove_unused_columns"]
    given = ["train_dataset", *(["eval_dataset"] if evaluates else []), "collate_fn or default_data_collator"]
    return kept(
        '    columns = {*forward_parameters(model), "label", "label_ids"}' if filters else None,
        f"    data = Data({', '.join([*given, *(['columns'] if filters else [])])})",
    )


def _steps_lines(recipe: Recipe) -> list[str]:
    """The number of update steps, where flags need it and the arguments alone do not tell."""
    epochs = recipe.values["num_train_epochs"]
    text = "".join([*_flag_lines(recipe), *_run_lines(recipe)])
    if "steps)" not in text and "max_steps=steps" not in text:
        return []
    length = f"{_number(epochs)} * len(data.train_dataloader())"
    return [f"    steps = {length if epochs % 1 == 0 else f'math.ceil({length})'}  # num_train_epochs"]


def _number(value: float) -> str:
    return repr(int(value) if value % 1 == 0 else value)


def _flag_lines(recipe: Recipe) -> list[str]:
    flags = recipe.plan.flags
    return kept(
        f"accelerator={literal(flags['accelerator'])},",
        f"devices={literal(flags['devices'])},",
        f"num_nodes={flags['num_nodes']}," if flags["num_nodes"] != 1 else None,
        _strategy(recipe),
        _precision(recipe),
        _extent(recipe),
        f"gradient_clip_val={recipe.clip!r},  # max_grad_norm"
        if recipe.clip and not recipe.has_windows
        else None,
        *_evaluation_flags(recipe),
        *_logging_flags(recipe),
        *_saving_flags(recipe),
        "enable_progress_bar=False,  # disable_tqdm" if recipe.get("disable_tqdm") else None,
        *(f"{name}={literal(flags[name])}," for name in FLAGS if recipe.has_flag(name)),
    )


def _refusal_lines(recipe: Recipe) -> list[str]:
    """Strategies that take more than a flag: where parameters are sharded, the module is another one."""
    if recipe.plan.strategy not in SHARDING:
        return []
    return [f"    raise NotImplementedError({literal(f'strategy={recipe.plan.strategy!r}')})"]


def _precision(recipe: Recipe) -> str | None:
    if not recipe.mixed:
        return None
    return f'precision="{recipe.plan.precision}",  # {"bf16" if recipe.get("bf16") else "fp16"}'


def _strategy(recipe: Recipe) -> str | None:
    strategy = recipe.plan.flags["strategy"]
    if strategy in ("single_device", "auto") or not recipe.has_flag("strategy"):
        return None
    return f"strategy={literal(strategy)},"


def _extent(recipe: Recipe) -> str:
    if recipe.max_steps:
        return f"max_steps={recipe.max_steps},  # max_steps"
    if recipe.ends_within_epoch:
        return "max_steps=steps,  # num_train_epochs"
    return f"max_epochs={_number(recipe.values['num_train_epochs'])},  # num_train_epochs"


def _evaluation_flags(recipe: Recipe) -> list[str]:
    if recipe.evaluation == "no":
        return []
    by_steps = recipe.evaluation == "steps"
    return kept(
        f"val_check_interval={recipe.interval('eval_steps')},  # eval_steps" if by_steps else None,
        "check_val_every_n_epoch=None,  # eval_steps go on from epoch to epoch" if by_steps else None,
        "num_sanity_val_steps=0,",
    )


def _logging_flags(recipe: Recipe) -> list[str]:
    strategy = recipe.values["logging_strategy"]
    if strategy == "no":
        return ["logger=False,  # logging_strategy"]
    return kept(
        f"log_every_n_steps={recipe.interval('logging_steps')},  # logging_steps; the loss of that step alone"
        if strategy == "steps"
        else None,
        "logger=CSVLogger(OUTPUT_DIR),",
    )


def _saving_flags(recipe: Recipe) -> list[str]:
    if recipe.saving == "no":
        return ["enable_checkpointing=False,  # save_strategy"]
    limit = recipe.get("save_total_limit")
    every = f"every_n_train_steps={recipe.interval('save_steps')},  # save_steps"
    options = kept(
        "dirpath=OUTPUT_DIR,",
        'filename="checkpoint-{step}",',
        "auto_insert_metric_name=False,",
        every if recipe.saving == "steps" else "save_on_train_epoch_end=True,  # save_strategy",
        "save_weights_only=True,  # save_only_model" if recipe.get("save_only_model") else None,
        f"save_top_k={limit},  # save_total_limit" if limit else "save_top_k=-1,",
        *(('monitor="step",', 'mode="max",') if limit else ()),
    )
    return ["callbacks=ModelCheckpoint(", *(f"    {line}" for line in options), "),"]


def _run_lines(recipe: Recipe) -> list[str]:
    validate = "trainer.validate(module, data, verbose=False)"
    first = [f"{validate}  # eval_on_start"] if recipe.get("eval_on_start") else []
    last = _last_evaluation_lines(recipe, validate)
    if first or last:
        run = ["module = Module(model)", *first, "trainer.fit(module, data)", *last]
    else:
        run = ["trainer.fit(Module(model), data)"]
    return kept(*run, _last_checkpoint(recipe))


def _last_evaluation_lines(recipe: Recipe, validate: str) -> list[str]:
    """The evaluation after the last step, where no interval ends with it."""
    if recipe.evaluation == "steps" and recipe.is_newest:
        every = recipe.interval("eval_steps")
    elif recipe.evaluation == "epoch" and recipe.ends_within_epoch:
        every = "len(data.train_dataloader())"
    else:
        return []
    if recipe.max_steps and every.isdigit():
        return [validate] if recipe.max_steps % int(every) else []
    return [f"if trainer.global_step % {every}:", f"    {validate}"]


def _last_checkpoint(recipe: Recipe) -> str | None:
    """The checkpoint after the last step, where no interval ends with it."""
    every = recipe.interval("save_steps")
    if recipe.saving != "steps" or (recipe.max_steps and not recipe.max_steps % int(every)):
        return None
    return 'trainer.save_checkpoint(f"{OUTPUT_DIR}/checkpoint-{trainer.global_step}.ckpt")  # save_strategy'
