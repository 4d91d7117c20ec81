"""Trainer methods of Sentence Transformers that a release has renamed, or given other parameters."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Dataset, DatasetDict


class OlderMethods:
    """Methods of the trainers of Sentence Transformers 5.1 that later releases lack.

    In 5.1, prompts and routes are passed from method to method; later releases read them from the arguments.
    """

    args: Any
    loss: Any

    def preprocess_dataset(
        self,
        dataset: Dataset | DatasetDict | None = None,
        *positional: object,
        prompts: Any = None,
        router_mapping: Any = None,
        **named: object,
    ) -> Dataset | DatasetDict:
        """Prepare a dataset for training with several datasets, losses, prompts or routes.

        Mirrors `sentence_transformers.SentenceTransformerTrainer.preprocess_dataset`.

        Args:
            dataset: a dataset, or a dict of datasets.
            positional: parameters of the installed release, for example `dataset_name`.
            prompts: the prompts to prepare for; by default those of the arguments.
            router_mapping: the routes to prepare for; by default those of the arguments.
            named: as `positional`.
        """
        with self._asked_for(prompts=prompts, router_mapping=router_mapping):
            parent: Any = super()
            return parent.preprocess_dataset(dataset, *positional, **named)

    def maybe_add_dataset_name_column(
        self,
        dataset: Dataset | DatasetDict | None,
        prompts: Any = None,
        router_mapping: Any = None,
        dataset_name: str | None = None,
    ) -> Dataset | DatasetDict:
        """Add the dataset name to each sample of a dict of datasets, if a loss, prompt or route needs it.

        Mirrors `sentence_transformers.SentenceTransformerTrainer.maybe_add_dataset_name_column` of 5.1.

        Args:
            dataset: a dataset, or a dict of datasets.
            prompts: the prompts to prepare for; by default those of the arguments.
            router_mapping: the routes to prepare for; by default those of the arguments.
            dataset_name: the name of a single dataset.
        """
        trainer: Any = self
        with self._asked_for(prompts=prompts, router_mapping=router_mapping):
            if not trainer.should_dataset_name_column_be_added(dataset, self.args, self.loss):
                return dataset
        return trainer.add_dataset_name_column(dataset, dataset_name)

    @contextlib.contextmanager
    def _asked_for(self, **asked: Any) -> Iterator[None]:
        """Set arguments for the duration of a call."""
        before = {name: getattr(self.args, name) for name, value in asked.items() if value is not None}
        for name in before:
            setattr(self.args, name, asked[name])
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.args, name, value)
