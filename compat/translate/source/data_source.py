"""The script's LightningDataModule, its order of samples and its windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compat.translate.source.recipe import kept, literal

if TYPE_CHECKING:
    from compat.translate.source.recipe import Recipe

OPTIONS = {
    "dataloader_num_workers": ("num_workers", 0),
    "dataloader_persistent_workers": ("persistent_workers", False),
    "dataloader_prefetch_factor": ("prefetch_factor", None),
    "dataloader_in_order": ("in_order", True),
    "dataloader_multiprocessing_context": ("multiprocessing_context", None),
    "dataloader_drop_last": ("drop_last", False),
}
"""Argument → the DataLoader's, with its default there."""


def data_lines(recipe: Recipe) -> list[str]:
    """The data module, and what stands beside it."""
    return [
        *(_sampler_lines(recipe) if recipe.shuffles else []),
        *_loader_lines(recipe),
        *_module_lines(recipe),
    ]


def _sampler_lines(recipe: Recipe) -> list[str]:
    name = "seed" if recipe.get("data_seed") is None else "data_seed"
    return [
        "",
        "",
        "class Shuffled(Sampler):",
        '    """A new order in each epoch, drawn from the seed and the number of the epoch."""',
        "",
        "    def __init__(self, dataset):",
        "        self.dataset, self.epoch = dataset, 0",
        "",
        "    def set_epoch(self, epoch):  # called by Lightning",
        "        self.epoch = epoch",
        "",
        "    def __iter__(self):",
        f"        generator = torch.Generator().manual_seed({recipe.get(name)} + self.epoch)  # {name}",
        "        yield from torch.randperm(len(self.dataset), generator=generator).tolist()",
        "",
        "    def __len__(self):",
        "        return len(self.dataset)",
    ]


def _loader(recipe: Recipe) -> str:
    """The class of the script's train dataloader."""
    if recipe.has_windows:
        return "Windows"
    # Workers have random numbers of their own.
    return "DataLoader" if recipe.get("dataloader_num_workers") else "Ahead"


def _loader_lines(recipe: Recipe) -> list[str]:
    if _loader(recipe) == "DataLoader":
        return []
    return ["", "", *(_window_lines(recipe) if recipe.has_windows else _ahead_lines())]


def _ahead_lines() -> list[str]:
    return [
        "class Ahead(DataLoader):",
        '    """Fetches one batch ahead, as HF does: random collators and dropout share a generator."""',
        "",
        "    def __iter__(self):",
        "        for batch, _ in itertools.pairwise(itertools.chain(super().__iter__(), [None])):",
        "            yield batch",
    ]


def _window_lines(recipe: Recipe) -> list[str]:
    size = recipe.accumulation
    why = "        # One ahead, as HF does: random collators and dropout share a generator."
    ahead = "(batch for batch, _ in itertools.pairwise(itertools.chain(super().__iter__(), [None])))"
    has_workers = bool(recipe.get("dataloader_num_workers"))
    return kept(
        "class Windows(DataLoader):",
        '    """All batches of an update step at once, so that their labels are counted beforehand."""',
        "",
        "    def __iter__(self):",
        None if has_workers else why,
        f"        batches = {'super().__iter__()' if has_workers else ahead}",
        f"        while window := list(itertools.islice(batches, {size})):  # gradient_accumulation_steps",
        "            yield window",
        "",
        "    def __len__(self):",
        f"        return math.ceil(super().__len__() / {size})",
    )


def _option_lines(recipe: Recipe) -> list[str]:
    options = [
        f"            {there}={literal(recipe.get(name))},  # {name}"
        for name, (there, default) in OPTIONS.items()
        if recipe.get(name, default) != default
    ]
    # Memory is pinned for the way to a device.
    if recipe.get("dataloader_pin_memory") and recipe.plan.flags["accelerator"] != "cpu":
        options.append("            pin_memory=True,  # dataloader_pin_memory")
    return options


def _module_lines(recipe: Recipe) -> list[str]:
    evaluates, filters = recipe.validates, recipe.values["remove_unused_columns"]
    datasets = ["train_dataset", *(["eval_dataset"] if evaluates else [])]
    others = ["collate_fn", *(["columns"] if filters else [])]
    return [
        "",
        "",
        "class Data(L.LightningDataModule):",
        f"    def __init__(self, {', '.join([*datasets, *others])}):",
        "        super().__init__()",
        *(f"        self.{', self.'.join(names)} = {', '.join(names)}" for names in (datasets, others)),
        "",
        *_train_loader_lines(recipe),
        *(_eval_loader_lines(recipe) if evaluates else []),
        *(_collate_lines() if filters else []),
    ]


def _train_loader_lines(recipe: Recipe) -> list[str]:
    seeds = f"functools.partial(seed_worker, num_workers={recipe.get('dataloader_num_workers')}, rank=0)"
    stream = "None if isinstance(self.train_dataset, IterableDataset) else "
    return kept(
        "    def train_dataloader(self):",
        f"        return {_loader(recipe)}(",
        "            self.train_dataset,",
        _batch_size_line(recipe, "train"),
        f"            sampler={stream if recipe.max_steps else ''}Shuffled(self.train_dataset),"
        if recipe.shuffles
        else None,
        *_shared_lines(recipe),
        f"            worker_init_fn={seeds}," if recipe.get("dataloader_num_workers") else None,
        "        )",
    )


def _eval_loader_lines(recipe: Recipe) -> list[str]:
    return [
        "",
        "    def val_dataloader(self):",
        "        return DataLoader(",
        "            self.eval_dataset,",
        _batch_size_line(recipe, "eval"),
        *_shared_lines(recipe),
        "        )",
    ]


def _batch_size_line(recipe: Recipe, part: str) -> str:
    # Releases that have the old name still let it rule.
    old, new = f"per_gpu_{part}_batch_size", f"per_device_{part}_batch_size"
    name = old if recipe.get(old) else new
    return f"            batch_size={recipe.get(name)},  # {name}"


def _shared_lines(recipe: Recipe) -> list[str]:
    collate = "self.collate" if recipe.values["remove_unused_columns"] else "self.collate_fn"
    return [f"            collate_fn={collate},", *_option_lines(recipe)]


def _collate_lines() -> list[str]:
    return [
        "",
        "    def collate(self, rows):",
        "        if isinstance(rows[0], dict):  # remove_unused_columns",
        "            rows = [{key: row[key] for key in row if key in self.columns} for row in rows]",
        "        return self.collate_fn(rows)",
    ]
