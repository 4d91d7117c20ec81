"""Prepares a task and a model for the guides: sentences of real documentation, and a small untrained BERT.

The sentences come from the docstrings of two installed packages; which of the two a sentence is about is what
a model can learn. Writes `train.csv`, `validation.csv` and the folder `tiny-bert`, model and tokenizer, into
the folder that it is given, the current one otherwise.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import random
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

PACKAGES = ("numpy", "pandas")
SENTENCES = 600
VALIDATION = 200
VOCABULARY = 2000
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


def docstrings(package: str) -> list[str]:
    """Returns the docstrings of a package's modules, classes and functions, without importing it."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = []
    for file in sorted(folder.glob("*/*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return found


def sentences(package: str) -> list[str]:
    """Returns sentences of prose, none of which names the package."""
    found = {
        " ".join(sentence.split())
        for text in docstrings(package)
        for sentence in re.findall(r"[A-Z][a-z]+ [^.`>|:=_\[\]]{30,200}\.", text)
    }
    names = re.compile("|".join(PACKAGES), re.IGNORECASE)
    return sorted(sentence for sentence in found if not names.search(sentence))


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Returns a tokenizer in BERT's way whose vocabulary is learnt from the text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, learner)
    ends = {name: tokenizer.token_to_id(SPECIAL[name]) for name in ("cls", "sep")}
    tokenizer.post_processor = processors.BertProcessing(
        (SPECIAL["sep"], ends["sep"]), (SPECIAL["cls"], ends["cls"])
    )
    tokens = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **tokens)


def build_model(tokenizer: PreTrainedTokenizerFast) -> BertForSequenceClassification:
    """Returns an untrained BERT of about 200,000 parameters."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=len(PACKAGES),
        id2label=dict(enumerate(PACKAGES)),
        label2id={package: number for number, package in enumerate(PACKAGES)},
    )
    return BertForSequenceClassification(config)


def write(path: Path, rows: list[tuple[str, int]]) -> None:
    """Writes sentences with the number of their package."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def main(folder: Path) -> None:
    """Writes the task and the model.

    Args:
        folder: where.
    """
    set_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, package in enumerate(PACKAGES):
        texts = sentences(package)
        rows += [(text, number) for text in random.sample(texts, SENTENCES)]
    random.shuffle(rows)
    write(folder / "train.csv", rows[VALIDATION:])
    write(folder / "validation.csv", rows[:VALIDATION])
    tokenizer = build_tokenizer([text for text, _ in rows[VALIDATION:]])
    tokenizer.save_pretrained(folder / "tiny-bert")
    build_model(tokenizer).save_pretrained(folder / "tiny-bert")
    print(f"{len(rows) - VALIDATION} sentences to learn from, {VALIDATION} to try, a model: {folder}")


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]))
