"""The libraries of the zoo, as data."""

from __future__ import annotations

from dataclasses import dataclass

LENDERS = {
    "newest": ".venv",
    "trackers": ".venv",
    "colpali": ".venv",
    "gliner": ".venv",
    "pylate": ".venv",
    "llamafactory": ".venv",
    "swift": ".venv",
    "adapters": ".venv-4.53",
}
"""A group of packages that get along (`groups/NAME.txt`) → the environment that it borrows the rest from."""


@dataclass(frozen=True)
class Library:
    """A library, and the script that trains with it.

    Attributes:
        name: on PyPI.
        group: the packages it is installed with.
        ran: what the script runs.
        resumes: the checkpoint that a second run goes on from, in the middle of an epoch.
        note: what its users are to know.
        passing: files with names or numbers of the moment (patterns as in `Path.match`), not compared.
    """

    name: str
    group: str
    ran: str
    resumes: str = "out/checkpoint-3"
    note: str = ""
    passing: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name of its script and of its result."""
        return key(self.name)


def key(name: str) -> str:
    """Turn the name of a library into one for files.

    Args:
        name: on PyPI.
    """
    return name.lower().replace("-", "_")


LIBRARIES = (
    Library("chronos-forecasting", "newest", "`Chronos2Trainer`, `Chronos2Pipeline.fit` with LoRA"),
    Library("be-great", "newest", "`GReaT.fit`, which makes a `GReaTTrainer`"),
    Library("gliclass", "newest", "`Trainer` with elastic weight consolidation"),
    Library(
        "trl",
        "newest",
        "`SFTTrainer` with packing, `DPOTrainer`, `GRPOTrainer`",
        note="Its count `num_tokens` is not saved, and begins anew on resuming.",
    ),
    Library(
        "sentence-transformers",
        "newest",
        "`SentenceTransformerTrainer` (pretrained MiniLM), `CrossEncoderTrainer`",
    ),
    Library("setfit", "newest", "`Trainer`"),
    Library(
        "mlflow",
        "newest",
        '`mlflow.transformers.autolog`, `mlflow.pytorch.autolog`, `report_to="mlflow"`',
        passing=("tracking.db", "mlruns/*"),
    ),
    Library("wandb", "trackers", '`report_to="wandb"`, offline', passing=("wandb/*",)),
    Library(
        "comet-ml",
        "trackers",
        '`report_to="comet_ml"`, offline, its own logging of PyTorch',
        passing=("comet/*",),
    ),
    Library(
        "clearml",
        "trackers",
        '`report_to="clearml"`, offline, its own logging of PyTorch and Lightning',
        passing=("clearml/*",),
    ),
    Library("adapters", "adapters", "`AdapterTrainer`: bottlenecks, and their fusion"),
    Library("span-marker", "adapters", "`Trainer`"),
    Library(
        "realtabformer",
        "adapters",
        "`REaLTabFormer.fit`, which makes a `ResumableTrainer`",
        note="Under transformers 5 it fails by itself (`overwrite_output_dir`), and runs under `compat`.",
    ),
    Library(
        "flagembedding",
        "adapters",
        "`EncoderOnlyEmbedderRunner`",
        note="Its import fails under transformers 5.24 (a module is gone). Its checkpoints name weights "
        "otherwise than its model does, so that neither Trainer can load them.",
    ),
    Library("gliner", "gliner", "`Trainer`"),
    Library("colpali-engine", "colpali", "`ContrastiveTrainer`", note="It bounds peft below 0.21."),
    Library(
        "llamafactory",
        "llamafactory",
        "`run_exp`: SFT with LoRA+, DPO with LoRA",
        note="It bounds accelerate by 1.11, `compat` needs 1.15: set `DISABLE_VERSION_CHECK=1`.",
    ),
    Library(
        "ms-swift",
        "swift",
        "`sft_main`: `Seq2SeqTrainer` with LoRA",
        passing=("*/args.json",),
        note="It writes `repr(args)` into `args.json`, which shows the fields that ours have more.",
    ),
    Library(
        "pylate",
        "pylate",
        "`SentenceTransformerTrainer` with `ColBERT`, `losses.Contrastive` and an evaluator",
        note="It pins sentence-transformers and bounds transformers by 5.3; its index is not installed.",
    ),
    Library("peft", "newest", "`Trainer` with DoRA, with prefix tuning"),
)

ABSENT = {
    ("argilla", "2.8.0"): "No trainer any more; `ArgillaTrainer` of argilla 1 asks for numpy 1.",
    ("autotrain-advanced", "0.8.36"): "Pins transformers 4.48, below the oldest that `compat` supports.",
    ("axolotl", "0.21.0"): "Asks for Python 3.12.",
    ("finetrainers", "0.2.0"): "Its trainers are not subclasses of `transformers.Trainer`.",
    ("granite-tsfm", "0.3.2"): "Uses `transformers.Trainer` as it is.",
    ("happytransformer", "3.0.1"): "Asks for datasets 2.",
    ("llm2vec", "0.2.3"): "Asks for transformers 4.44, below the oldest that `compat` supports.",
    ("llmcompressor", "0.14.0.1"): "No trainer any more.",
    ("lm-polygraph", "0.7.0"): "Does not train.",
    (
        "neptune",
        "1.14.0.post2",
    ): "Transformers' `NeptuneCallback` asks its server for the run's name, also offline.",
    ("nncf", "3.4.0"): "Does not use `transformers.Trainer`.",
    ("optimum", "2.3.0"): "No trainer any more.",
    ("pyreft", "0.1.0"): "Pins transformers 4.45.1, below the oldest that `compat` supports.",
    ("simpletransformers", "0.70.8"): "Trains in loops of its own.",
    ("small-text", "1.4.1"): "Trains in loops of its own.",
    ("tevatron", "0.1.0"): "Its `compute_loss` lacks an argument that transformers gives since 4.46.",
    ("tner", "0.2.4"): "Asks for allennlp, which asks for torch 1.",
    ("unsloth", "2026.10.9"): "Needs a GPU.",
    ("weave", "0.54.0"): "Does not instrument trainers.",
    ("vec2text", "0.0.13"): "Loads its metrics from the hub.",
}
"""Libraries that cannot be run, with their newest release → why."""
