"""The libraries of the zoo, as data."""

from __future__ import annotations

from dataclasses import dataclass

LENDERS = {
    "newest": ".venv",
    "colpali": ".venv",
    "gliner": ".venv",
    "llamafactory": ".venv",
    "swift": ".venv",
    "adapters": ".venv-4.53",
    "tsfm": ".venv-4.53",
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
        return self.name.lower().replace("-", "_")


LIBRARIES = (
    Library("chronos-forecasting", "newest", "`Chronos2Trainer`, `Chronos2Pipeline.fit` with LoRA"),
    Library("be-great", "newest", "`GReaT.fit`, which makes a `GReaTTrainer`"),
    Library("gliclass", "newest", "`Trainer` with elastic weight consolidation"),
    Library("trl", "newest", "`SFTTrainer` with packing, `DPOTrainer`, `GRPOTrainer`"),
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
        note="Fails to import under transformers 5.24 (a module is gone). Its checkpoints name weights otherwise "
        "than its model does, so that neither Trainer can load them.",
    ),
    Library("gliner", "gliner", "`Trainer`"),
    Library("colpali-engine", "colpali", "`ContrastiveTrainer`", note="It bounds peft below 0.21."),
    Library(
        "llamafactory",
        "llamafactory",
        "`run_exp`: SFT with LoRA+, DPO with LoRA",
        note="It bounds accelerate by 1.11, `compat` needs 1.15: set `DISABLE_VERSION_CHECK=1`.",
    ),
    Library("ms-swift", "swift", "`sft_main`: `Seq2SeqTrainer` with LoRA"),
    Library("peft", "newest", "`Trainer` with DoRA, with prefix tuning"),
)
