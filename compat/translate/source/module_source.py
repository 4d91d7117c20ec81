"""The script's LightningModule: steps, parameter groups, optimizer and schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.translate.source.optimizers import OPTIMIZERS, given_options
from compat.translate.source.recipe import SCHEDULERS_WITH_METRICS, kept, literal

if TYPE_CHECKING:
    from compat.translate.source.recipe import Recipe


TOTAL = "self.trainer.estimated_stepping_batches"
"""The update steps of the whole run, as the script asks for them."""


def module_lines(recipe: Recipe) -> list[str]:
    """The module, and what stands beside it."""
    return [
        *_signature_lines(),
        *_init_lines(recipe),
        *(_window_step_lines(recipe) if recipe.has_windows else _step_lines(recipe)),
        *_item_lines(recipe),
        *(_evaluation_lines(recipe) if recipe.validates else []),
        *_clipping_lines(recipe),
        *_optimizer_lines(recipe),
        *(_group_lines(recipe) if recipe.decays and recipe.values["optim"] in OPTIMIZERS else []),
    ]


def _signature_lines() -> list[str]:
    return [
        "",
        "def forward_parameters(model):",
        '    """The parameters of a model\'s forward, also where PEFT has wrapped it."""',
        '    base = model.get_base_model() if hasattr(model, "get_base_model") else model',
        "    return inspect.signature(base.forward).parameters",
        "",
        "",
    ]


def _init_lines(recipe: Recipe) -> list[str]:
    shifts = (
        "",
        '        is_causal = LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss',
        "        self.shifts_labels = is_causal and not model.config.is_encoder_decoder",
    )
    return kept(
        "class Module(L.LightningModule):",
        '    """A model that takes a batch by name and returns a dictionary with its loss."""',
        "",
        "    def __init__(self, model):",
        "        super().__init__()",
        "        self.model = model",
        "        self.automatic_optimization = False" if recipe.has_windows else None,
        "        takes_any = any(p.kind is p.VAR_KEYWORD for p in forward_parameters(model).values())",
        '        self.averages_over_items = getattr(model, "accepts_loss_kwargs", takes_any)',
        *(shifts[1:] if recipe.is_newest else ()),
        "",
    )


def _step_lines(recipe: Recipe) -> list[str]:
    return kept(
        "    def training_step(self, batch, batch_idx):",
        "        items = self.count_items([batch])",
        f"        loss = {_loss(recipe, '**batch, **items')}",
        f"        {_log(recipe, 'loss')}",
        "        return loss",
        "",
    )


def _window_step_lines(recipe: Recipe) -> list[str]:
    # The newest release divides by the batches that a window has, the others by those it should have.
    size = "len(window)" if recipe.is_newest else f"{recipe.accumulation}"
    clips = f"nn.utils.clip_grad_norm_(self.model.parameters(), {_limit(recipe, literal(recipe.clip))})"
    return kept(
        "    def training_step(self, window, batch_idx):",
        '        """One update step: all its batches, then the optimizer."""',
        "        optimizer, items, total = self.optimizers(), self.count_items(window), 0.0",
        "        for batch in window:",
        f"            loss = {_loss(recipe, '**batch, **items')}",
        f"            loss = loss if items else loss / {size}",
        *_backward_lines(recipe),
        "            total += loss.detach()",
        f"        {clips}  # max_grad_norm" if recipe.clip else None,
        "        optimizer.step()",
        "        optimizer.zero_grad()",
        "        self.lr_schedulers().step()",
        f"        {_log(recipe, 'total')}",
        "",
    )


def _backward_lines(recipe: Recipe) -> list[str]:
    if not recipe.mixed:
        return ["            self.manual_backward(loss)"]
    return [
        "            with torch.autocast(self.device.type, enabled=False):",
        "                self.manual_backward(loss)",
    ]


def _loss(recipe: Recipe, arguments: str) -> str:
    # Half precision ends where the model's own forward does.
    return f'self.model({arguments})["loss"]' + (".float()" if recipe.mixed else "")


def _log(recipe: Recipe, name: str) -> str:
    if recipe.values["logging_strategy"] != "epoch":
        return f'self.log("train_loss", {name})'
    return f'self.log("train_loss", {name}, on_step=False, on_epoch=True, batch_size=1)  # logging_strategy'


def _limit(recipe: Recipe, limit: str) -> str:
    # The scaler takes its scale off again in the optimizer's step.
    return f"{limit} * self.trainer.scaler.get_scale()" if recipe.scales else limit


def _item_lines(recipe: Recipe) -> list[str]:
    targets = [
        "        for batch in batches:",
        '            labels = batch["labels"][..., 1:] if self.shifts_labels else batch["labels"]',
        '            items += batch.get("shift_labels", labels).ne(-100).sum()',
        '        return {"num_items_in_batch": items}',
    ]
    older = [
        '        return {"num_items_in_batch": sum(batch["labels"].ne(-100).sum() for batch in batches)}'
    ]
    return [
        "    def count_items(self, batches):",
        '        """How many labels an update step has, for models that average their loss over them."""',
        '        if not self.averages_over_items or "labels" not in batches[0]:',
        "            return {}",
        *(["        items = 0", *targets] if recipe.is_newest else older),
        "",
    ]


def _evaluation_lines(recipe: Recipe) -> list[str]:
    # Earlier releases leave the average to the model here.
    items = ", **self.count_items([batch])" if recipe.is_newest else ""
    return [
        "    def validation_step(self, batch, batch_idx):",
        f"        loss = {_loss(recipe, f'**batch{items}')}",
        '        self.log("eval_loss", loss, batch_size=len(next(iter(batch.values()))))',
        "",
    ]


def _clipping_lines(recipe: Recipe) -> list[str]:
    if not recipe.clip or recipe.has_windows or not (recipe.decays or recipe.is_fused):
        return []
    return kept(
        "    def configure_gradient_clipping(self, optimizer, gradient_clip_val, **algorithm):",
        "        # Lightning itself would not clip for a fused optimizer." if recipe.is_fused else None,
        "        # In the model's order: that of the groups would change the norm's last digit."
        if recipe.decays
        else None,
        f"        nn.utils.clip_grad_norm_(self.model.parameters(), {_limit(recipe, 'gradient_clip_val')})",
        "",
    )


def _optimizer_lines(recipe: Recipe) -> list[str]:
    start = "    def configure_optimizers(self):"
    for name, known in (
        ("optim", recipe.values["optim"] in OPTIMIZERS),
        ("lr_scheduler_type", _scheduled(recipe)),
    ):
        if not known:
            problem = literal(f"{name}={recipe.values[name]!r}")
            return [start, f"        raise NotImplementedError({problem})"]
    return [start, *_make_optimizer_lines(recipe), *_schedule_lines(recipe)]


def _scheduled(recipe: Recipe) -> bool:
    return recipe.values["lr_scheduler_type"] not in SCHEDULERS_WITH_METRICS


def _make_optimizer_lines(recipe: Recipe) -> list[str]:
    values, optimizer = recipe.values, OPTIMIZERS[recipe.values["optim"]]
    # Earlier releases read `optim_args` for other optimizers alone.
    options = given_options(optimizer, values["optim_args"]) if recipe.is_newest else {}
    if not recipe.decays and optimizer.decay:
        options["weight_decay"] = 0.0
    parameters = "self.parameter_groups()" if recipe.decays else "self.model.parameters()"
    lines = [(text.format(**values), argument) for text, argument in optimizer.lines]
    named = [
        (f"{name}={value!r}", "" if name == "weight_decay" else "optim_args")
        for name, value in options.items()
    ]
    return [
        f"        optimizer = {optimizer.name}(",
        f"            {parameters},",
        f"            lr={values['learning_rate']!r},  # learning_rate",
        *(f"            {text},{argument and f'  # {argument}'}" for text, argument in (*lines, *named)),
        "        )",
    ]


def _schedule_lines(recipe: Recipe) -> list[str]:
    values = recipe.values
    kwargs, warm_up, total = values["lr_scheduler_kwargs"], _warm_up(recipe), TOTAL
    define = None
    if "steps)" in warm_up:
        define, total = f"        steps = {TOTAL}", "steps"
    schedule = '"lr_scheduler": {"scheduler": scheduler, "interval": "step"}'
    return kept(
        define,
        "        scheduler = get_scheduler(",
        f"            {literal(values['lr_scheduler_type'])},  # lr_scheduler_type",
        "            optimizer,",
        f"            num_warmup_steps={warm_up}",
        f"            num_training_steps={total},",
        f"            scheduler_specific_kwargs={literal(kwargs)},  # lr_scheduler_kwargs"
        if kwargs
        else None,
        "        )",
        f'        return {{"optimizer": optimizer, {schedule}}}',
    )


def _warm_up(recipe: Recipe) -> str:
    steps, ratio = recipe.values["warmup_steps"], recipe.get("warmup_ratio") or 0
    if steps >= 1 or not (steps or ratio):
        return f"{int(steps)},  # warmup_steps"
    return f"math.ceil({steps or ratio} * steps),  # {'warmup_steps' if steps else 'warmup_ratio'}"


def _group_lines(recipe: Recipe) -> list[str]:
    decay = f'"weight_decay": {recipe.values["weight_decay"]!r}'
    return [
        "",
        "    def parameter_groups(self):",
        '        """Weights decay; biases and the parameters of norms do not."""',
        "        parts = self.model.named_modules()",
        '        inside_norms = tuple(f"{name}." for name, part in parts if isinstance(part, nn.LayerNorm))',
        "        groups = {True: [], False: []}",
        "        for name, parameter in self.model.named_parameters():",
        "            if parameter.requires_grad:",
        "                spared = name.startswith(inside_norms) or NO_DECAY.search(name.lower())",
        "                groups[not spared].append(parameter)",
        "        return [",
        f'            {{"params": groups[True], {decay}}},  # weight_decay',
        '            {"params": groups[False], "weight_decay": 0.0},',
        "        ]",
    ]
