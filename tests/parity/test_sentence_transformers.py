"""Sentence Transformers' trainers: the same script on HF's Trainer and on ours, compared to the bit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from datasets import DatasetDict
from transformers import TrainerCallback

import compat
from tests.parity.bench import ALWAYS
from tests.parity.parts.embeddings import (
    WIDTH,
    classes,
    pairs,
    saved_berts,
    scored,
    sentences,
    texts,
    tokenizer,
    triplets,
)
from tests.parity.plain import plain
from tests.parity.record import assert_equal, isolated, record_files, record_trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

library = pytest.importorskip("sentence_transformers", reason="needs the extra [sentence-transformers]")

from sentence_transformers import (  # noqa: E402 (after it is known to be there)
    CrossEncoder,
    InputExample,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base.modules import Router, Transformer  # noqa: E402
from sentence_transformers.cross_encoder import evaluation as cross_evaluation  # noqa: E402
from sentence_transformers.cross_encoder import losses as cross_losses  # noqa: E402
from sentence_transformers.sentence_transformer import evaluation, losses  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding  # noqa: E402
from sentence_transformers.sparse_encoder import evaluation as sparse_evaluation  # noqa: E402
from sentence_transformers.sparse_encoder import losses as sparse_losses  # noqa: E402
from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling  # noqa: E402

from compat import sentence_transformers as ours  # noqa: E402

# transformers, accelerate and torch warn of their own doings; what they warn of is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")

EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}
SAVES = {"save_strategy": "steps", "save_steps": 2}
# The card takes evaluations ahead of training off its time, which may leave less than nothing.
LASTING = re.compile(r"-?[\d.]+ (seconds|minutes)")

Ranking = losses.MultipleNegativesRankingLoss


@pytest.fixture(autouse=True)
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 requires a newer PEFT than the newest published one, and runs without it."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.15")


# Models, from the folder that has the BERTs.


def bert(folder: Path) -> SentenceTransformer:
    encoder = Transformer(str(folder / "encoder"), max_seq_length=12)
    return SentenceTransformer(modules=[encoder, Pooling(WIDTH)], device="cpu")


def routed(folder: Path) -> SentenceTransformer:
    """Queries by a table of vectors, documents by BERT."""
    static = StaticEmbedding(tokenizer(), embedding_dim=WIDTH)
    router = Router.for_query_document(query_modules=[static], document_modules=list(bert(folder)))
    return SentenceTransformer(modules=[router], device="cpu")


def adapted(folder: Path) -> SentenceTransformer:
    peft = pytest.importorskip("peft", reason="needs peft")
    model = bert(folder)
    model.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["query", "value"]))
    return model


def cross(folder: Path) -> CrossEncoder:
    return CrossEncoder(str(folder / "encoder"), num_labels=1, device="cpu", max_length=20)


def splade(folder: Path) -> SparseEncoder:
    masked = MLMTransformer(str(folder / "masked"), max_seq_length=12)
    return SparseEncoder(modules=[masked, SpladePooling("max")], device="cpu")


def late_interaction(folder: Path) -> Any:
    return library.MultiVectorEncoder(str(folder / "encoder"), device="cpu")


# Losses.


def matryoshka(model: Any) -> Any:
    cached = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    return losses.MatryoshkaLoss(model, cached, [WIDTH, 8])


def regularized(model: Any) -> Any:
    ranking = sparse_losses.SparseMultipleNegativesRankingLoss(model)
    return sparse_losses.SpladeLoss(
        model, ranking, document_regularizer_weight=0.03, query_regularizer_weight=0.05
    )


def cached_late_interaction(model: Any) -> Any:
    from sentence_transformers.multi_vector_encoder.losses import (
        CachedMultiVectorMultipleNegativesRankingLoss,
    )

    return CachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=2)


class Components(torch.nn.Module):
    """A loss of two parts and a weight of its own, which the model does not have."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.ranking = Ranking(model)
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, features: Any, labels: Any) -> dict[str, torch.Tensor]:
        ranking = self.ranking(features, labels)
        return {"ranking": ranking, "weighted": ranking * self.weight}


# Evaluators.


def retrieval(kind: Any = evaluation.InformationRetrievalEvaluator) -> Any:
    queries, documents = (dict(enumerate(sentences(6, seed))) for seed in (5, 6))
    at = {
        "mrr_at_k": [5],
        "ndcg_at_k": [5],
        "accuracy_at_k": [1],
        "precision_recall_at_k": [1],
        "map_at_k": [5],
    }
    named = [{str(number): text for number, text in rows.items()} for rows in (queries, documents)]
    return kind(*named, {str(number): {str(number)} for number in queries}, name="ir", **at)


def likeness() -> Any:
    rows = scored(6, 8)
    return evaluation.EmbeddingSimilarityEvaluator(rows["first"], rows["second"], rows["score"], name="sim")


def reranking() -> Any:
    rows = zip(*(sentences(5, seed) for seed in (5, 6, 7)), strict=True)
    samples = [{"query": query, "positive": [good], "negative": [bad]} for query, good, bad in rows]
    return cross_evaluation.CrossEncoderRerankingEvaluator(samples, name="rank", show_progress_bar=False)


# What a script does.


def trains(make: Callable[..., Any]) -> Any:
    trainer = make()
    return [trainer], trainer.train().metrics


def evaluates(make: Callable[..., Any]) -> Any:
    trainer = make()
    before = trainer.evaluate()
    trainer.train()
    trainer.save_model()
    return [trainer], [before, trainer.evaluate()]


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 2


def resumes(make: Callable[..., Any]) -> Any:
    first, second = make(callbacks=[Stop()]), make()
    first.train()
    return [first, second], second.train(resume_from_checkpoint=True).metrics


@dataclass(frozen=True)
class Setup:
    """One script, to be run on HF's Trainer and on ours.

    Args:
        name: `kind of model/what it shows`.
        model: builds the model from the folder of BERTs.
        train: builds the training data.
        loss: builds the loss, or one for each dataset, from the model; the trainer's own where None.
        eval: builds the evaluation data.
        evaluator: builds the evaluators.
        args: further arguments.
        script: what is done.
        trainer: the first part of the names of the trainer and its arguments.
    """

    name: str
    model: Callable[[Path], Any] = bert
    train: Callable[[], Any] = pairs
    loss: Any = Ranking
    eval: Callable[[], Any] | None = None
    evaluator: Callable[[], Any] | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    script: Callable[..., Any] = trains
    trainer: str = "SentenceTransformer"

    def run(self, names: Any, folder: Path, home: Path) -> Any:
        """Do it, and return the trainers and the result.

        Args:
            names: the module that has the trainer and its arguments.
            folder: has the BERTs.
            home: where the run writes.
        """

        def make(**more: Any) -> Any:
            torch.manual_seed(1)
            model = self.model(folder)
            loss = (
                {name: of(model) for name, of in self.loss.items()} if isinstance(self.loss, dict) else None
            )
            args = getattr(names, f"{self.trainer}TrainingArguments")
            return getattr(names, f"{self.trainer}Trainer")(
                model=model,
                args=args(output_dir=str(home), **{**ALWAYS, **self.args}),
                train_dataset=self.train(),
                eval_dataset=self.eval and self.eval(),
                loss=loss or (self.loss and self.loss(model)),
                evaluator=self.evaluator and self.evaluator(),
                **more,
            )

        return self.script(make)


SETUPS = (
    Setup(
        "sentence/evaluators-and-the-best-model",
        train=scored,
        loss=losses.CoSENTLoss,
        eval=partial(scored, 6, 7),
        evaluator=lambda: [retrieval(), likeness()],
        args={
            **EVALUATES,
            **SAVES,
            "load_best_model_at_end": True,
            "metric_for_best_model": "ir_cosine_mrr@5",
        },
    ),
    Setup(
        "sentence/datasets-losses-prompts",
        train=lambda: DatasetDict(a=pairs(), b=scored(9, 4)),
        eval=lambda: {"a": pairs(5, 7), "b": scored(5, 8)},
        loss={"a": Ranking, "b": losses.CosineSimilarityLoss},
        args={
            "prompts": {"a": {"anchor": "bar: "}, "b": {"second": "dos: "}},
            "multi_dataset_batch_sampler": "round_robin",
            "batch_sampler": "no_duplicates",
            **EVALUATES,
        },
        evaluator=likeness,
    ),
    Setup(
        "sentence/matryoshka-of-a-cached-loss-with-a-short-window",
        train=partial(triplets, 22),
        loss=matryoshka,
        args={"gradient_accumulation_steps": 3, "max_grad_norm": 0.3, "bf16": True},
    ),
    Setup(
        "sentence/parts-and-parameters-of-a-loss",
        loss=Components,
        eval=partial(pairs, 6, 7),
        args={"gradient_accumulation_steps": 2, "learning_rate_mapping": {"^weight$": 0.1}, **EVALUATES},
    ),
    Setup(
        "sentence/router",
        model=routed,
        args={
            "router_mapping": {"anchor": "query", "positive": "document"},
            "learning_rate_mapping": {r"sub_modules\.query": 0.001},
            "warmup_ratio": 0.5,
            **SAVES,
        },
    ),
    Setup("sentence/adapter", model=adapted, args={"num_train_epochs": 1, **SAVES}),
    Setup(
        "sentence/groups-of-labels",
        train=partial(texts, "sentence", 18, label=lambda row: row % 3),
        loss=losses.BatchAllTripletLoss,
        args={"batch_sampler": "group_by_label", "per_device_train_batch_size": 6},
    ),
    Setup("sentence/resumed-in-an-epoch", script=resumes, args=SAVES),
    Setup(
        "sentence/evaluated-before-and-after", script=evaluates, eval=partial(pairs, 6, 7), evaluator=likeness
    ),
    Setup(
        "cross/evaluator-and-the-best-model",
        trainer="CrossEncoder",
        model=cross,
        train=partial(classes, kinds=2),
        loss=None,
        eval=partial(classes, 6, 7, 2),
        evaluator=reranking,
        args={**EVALUATES, **SAVES, "load_best_model_at_end": True, "metric_for_best_model": "rank_ndcg@10"},
    ),
    Setup(
        "cross/cached-loss",
        trainer="CrossEncoder",
        model=cross,
        train=triplets,
        loss=partial(cross_losses.CachedMultipleNegativesRankingLoss, mini_batch_size=2),
        args={"gradient_accumulation_steps": 2},
    ),
    Setup(
        "sparse/regularizers-by-schedule",
        trainer="SparseEncoder",
        model=splade,
        train=triplets,
        loss=regularized,
        eval=partial(triplets, 6, 7),
        evaluator=partial(retrieval, sparse_evaluation.SparseInformationRetrievalEvaluator),
        args={**EVALUATES, "save_strategy": "epoch"},
    ),
    Setup(
        "multi-vector/cached-loss",
        trainer="MultiVectorEncoder",
        model=late_interaction,
        train=triplets,
        loss=cached_late_interaction,
        eval=partial(triplets, 6, 7),
        args={"max_length": {"query": 6, "document": 8}, **EVALUATES, **SAVES},
    ),
)


def record(setup: Setup, names: Any, berts: Path, home: Path) -> dict[str, Any]:
    """Run a set-up as if in a process of its own, and record it, model cards included."""
    home.mkdir()
    with isolated(forgiving=names is library):
        trainers, result = setup.run(names, berts, home)
    cards = {
        str(path.relative_to(home)): LASTING.sub("a while", path.read_text().replace(str(home), ""))
        for path in sorted(home.rglob("README.md"))
    }
    return {
        "result": plain(result, home),
        "trainers": [record_trainer(trainer, [], home) for trainer in trainers],
        "losses": [
            {name: value.tolist() for name, value in trainer.loss.state_dict().items()}
            for trainer in trainers
            if not isinstance(trainer.loss, dict)
        ],
        "files": record_files(home),
        "cards": cards,
    }


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_berts(tmp_path_factory.mktemp("berts"))


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_equal(setup: Setup, berts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(library, f"{setup.trainer}Trainer"):
        pytest.skip(f"this release has no {setup.trainer}Trainer")
    monkeypatch.chdir(tmp_path)
    theirs = record(setup, library, berts, tmp_path / "theirs")
    assert_equal(record(setup, ours, berts, tmp_path / "ours"), theirs)
    saves = "save_strategy" in setup.args or setup.script is evaluates
    assert bool(theirs["cards"]) == saves


def test_the_older_fit_runs_on_ours_once_it_is_installed(
    berts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(home: Path) -> Any:
        home.mkdir()
        monkeypatch.chdir(home)
        torch.manual_seed(1)
        model = bert(berts)
        rows = [InputExample(texts=[row["anchor"], row["positive"]]) for row in pairs()]
        loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)
        model.fit(
            [(loader, Ranking(model))],
            evaluator=likeness(),
            evaluation_steps=2,
            warmup_steps=1,
            optimizer_params={"lr": 0.01},
            output_path=str(home / "model"),
            show_progress_bar=False,
        )
        weights = {name: value.tolist() for name, value in model.state_dict().items()}
        return weights, record_files(home / "model"), (home / "model" / "README.md").read_text()

    with isolated():
        theirs = fitted(tmp_path / "theirs")
    compat.install()
    try:
        with isolated():
            found = fitted(tmp_path / "ours")
    finally:
        compat.uninstall()
    assert found[:2] == theirs[:2]
    assert LASTING.sub("", found[2]) == LASTING.sub("", theirs[2])
