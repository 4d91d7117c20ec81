"""`compat fit`, `validate`, `test` and `predict`, from the command line and from Python."""

from __future__ import annotations

import csv
import inspect
import json
import re
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import transformers
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging

import compat
from compat.arguments.fields import FIELDS
from compat.cli import main
from compat.cli.lightning.handling import HANDLING, Part
from compat.cli.lightning.model import PretrainedModule
from compat.errors import ArgumentError
from tests.parity.record import isolated
from tests.small import Regression, rows

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec",
    "ignore:.*does not have many workers",
    "ignore:.*no `val_dataloader`",
    "ignore:.*will be overridden by",
    "ignore:.*intended to run from within Python",
    # Older releases of datasets leave what they read open.
    "ignore:.*unclosed file:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    # Lightning's command line, under the newest jsonargparse.
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
)


def sentences() -> list[tuple[str, str]]:
    """Real text: what the standard library says of itself, by the module that says it."""
    found = [
        (" ".join(inspect.getdoc(part).split())[:120], name)
        for name, module in (("statistics", statistics), ("wrapping", textwrap))
        for part in [*vars(module).values(), *vars(textwrap.TextWrapper).values()]
        if callable(part) and inspect.getdoc(part) and getattr(part, "__module__", "") == module.__name__
    ]
    return sorted(set(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT, its tokenizer, and files of text."""
    folder: Path = tmp_path_factory.mktemp("fit")
    texts = sentences()
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text for text, _ in texts], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder / "bert")
    fast.save_pretrained(folder / "bert")
    for name, part in (("train", texts[::2]), ("valid", texts[1::2])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("review", "topic"), *part])
    return folder


@pytest.fixture(autouse=True)
def somewhere(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with datasets cached in it."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compat"])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from compat.upstream import process

    monkeypatch.setattr(process, "command", [])
    # Lightning tells the processes that it starts of a seed.
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


COLUMNS = ("--data.text_column", "review", "--data.label_column", "topic")


def words(place: Path, **more: Any) -> list[str]:
    """What most command lines here have in common."""
    given = {
        "model.name": place / "bert",
        "data.train": place / "train.csv",
        "output_dir": "out",
        "max_steps": 2,
        "trainer.enable_model_summary": "false",
        "disable_tqdm": "true",
        **more,
    }
    listed = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*listed, *COLUMNS, "--use_cpu"]


def fails(capsys: Any, *command: str) -> str:
    """What a command that is wrong says."""
    try:
        status = main(list(command))
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    return str(capsys.readouterr().err)


def weights(model: torch.nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def trained_by_hf(place: Path, tmp_path: Path) -> Any:
    """What a script of HF's makes of the same files with the same arguments."""
    from datasets import load_dataset

    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "bert")
    files = {"train": str(place / "train.csv"), "valid": str(place / "valid.csv")}
    data = load_dataset("csv", data_files=files, cache_dir=str(tmp_path / "cache"))
    data = data.map(
        lambda row: {**tokenizer(row["review"], truncation=True), "labels": int(row["topic"] == "wrapping")}
    )
    with isolated(forgiving=True):
        args = transformers.TrainingArguments(
            str(tmp_path / "hf"),
            num_train_epochs=2,
            learning_rate=0.01,
            eval_strategy="epoch",
            save_strategy="no",
            use_cpu=True,
            report_to=[],
        )
        model = BertForSequenceClassification.from_pretrained(place / "bert")
        transformers.Trainer(
            model, args, train_dataset=data["train"], eval_dataset=data["valid"], processing_class=tokenizer
        ).train()
    return model


def test_every_argument_has_a_fate() -> None:
    assert HANDLING.keys() == FIELDS.keys()
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for handling in HANDLING.values():
        assert isinstance(handling.part, Part)
        assert handling.part is not Part.REFUSED or f"`{handling.field}`" in page
        assert handling.part is not Part.REFUSED or handling.note in page


def test_from_a_csv_to_predictions(place: Path, tmp_path: Path, capsys: Any) -> None:
    more = {
        "model.auto": "AutoModelForSequenceClassification",
        "data.validation": place / "valid.csv",
        "max_steps": None,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "epoch",
        "evaluation_strategy": "epoch",
        "save_total_limit": 1,
    }
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        assert main(["fit", *words(place, **more)]) == 0
    said = capsys.readouterr().out
    assert "'eval_accuracy': " in said
    assert "The trained model lies in out." in said
    trained = BertForSequenceClassification.from_pretrained("out")
    assert trained.config.id2label == {0: "statistics", 1: "wrapping"}
    assert weights(trained) == weights(trained_by_hf(place, tmp_path))
    (saved,) = (tmp_path / "out").glob("checkpoint-*.ckpt")

    plain = {"model.name": "out", "data.train": None, "max_steps": None}
    valid = place / "valid.csv"
    assert main(["validate", *words(place, **plain, **{"data.validation": valid})]) == 0
    validated = capsys.readouterr().out
    assert "eval_accuracy" in validated
    other = {**plain, "model.name": place / "bert", "data.test": valid, "ckpt_path": saved}
    assert (
        main(["test", *words(place, **{**other, "model.num_labels": 2, "data.train": place / "train.csv"})])
        == 0
    )
    tested = capsys.readouterr().out
    loss = re.findall(r"_loss\W+([\d.]+)", validated + tested)
    assert loss[-1] == loss[-2]

    assert main(["predict", *words(place, **plain, **{"data.predict": valid})]) == 0
    with open("out/predictions.csv", newline="") as file:
        predicted = list(csv.DictReader(file))
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    texts = [row["review"] for row in predicted]
    with torch.no_grad():
        logits = trained.eval()(**tokenizer(texts, return_tensors="pt", padding=True, truncation=True)).logits
    assert [row["prediction"] for row in predicted] == [
        trained.config.id2label[int(index)] for index in logits.argmax(-1)
    ]
    assert set(predicted[0]) == {"review", "topic", "prediction", "score"}


def test_flags_of_both_worlds(place: Path, tmp_path: Path) -> None:
    (tmp_path / "hf.json").write_text(json.dumps({"learning_rate": 1e-3, "gradient_accumulation_steps": 3}))
    both = {"trainer": {"max_epochs": 4, "limit_train_batches": 2}, "weight_decay": "0.5", "seed": 3}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(both))
    listed = words(place, max_steps=None)
    cli = compat.HFLightningCLI(
        args=[
            *("--config", "hf.json", "--config", "both.yaml", *listed, "--bf16", "--warmup_steps=0.1"),
            *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "train_loss"),
            *("--model.hidden_dropout_prob", "0.3", "--data.validation_split", "0.25"),
        ],
        run=False,
    )
    args, trainer = cli.args, cli.trainer
    assert (args.learning_rate, args.weight_decay, args.seed) == (1e-3, 0.5, 3)
    # A flag of Lightning's is known to HF's arguments, for the sake of schedules.
    assert (args.num_train_epochs, trainer.max_epochs, trainer.limit_train_batches) == (4, 4, 2)
    assert (trainer.accumulate_grad_batches, trainer.precision, trainer.gradient_clip_val) == (
        3,
        "bf16-mixed",
        1,
    )
    assert args.get_warmup_steps(50) == 5
    stopping, flow = trainer.callbacks[:2]
    assert isinstance(stopping, pl.callbacks.EarlyStopping)
    assert [type(each).__name__ for each in flow.callbacks][:1] == ["DefaultFlowCallback"]
    assert isinstance(cli.model, compat.HFModule)
    assert cli.model.model.config.hidden_dropout_prob == 0.3
    assert args.eval_strategy == "epoch"
    assert len(cli.datamodule.eval_dataset) == -(-len(sentences()[::2]) // 4)
    assert trainer.default_root_dir == "out"


WRONG = {
    "--learnin_rate=3": [
        "`--learnin_rate`: `compat fit` has no such argument.",
        "Did you mean `--learning_rate`?",
    ],
    "--trainer.max_epoks=3": ["Did you mean `--trainer.max_epochs`?"],
    "--trainer.max_steps=3": ["`max_steps=2` and `trainer.max_steps=3`: they contradict each other."],
    "--seed_everything=3 --seed=4": ["`seed=4` and `seed_everything=3`"],
    "--data.trian=x": ["Did you mean `--data.train`?"],
    "--data.train=nowhere.csv": ["`data.train=nowhere.csv`: there is no such file"],
    "--data.text_column=reviw": ["There are the columns review, topic. Did you mean `review`?"],
    "--model.num_lables=3": ["`model.num_lables`", "Did you mean `num_labels`?"],
    "--model.auto=AutoModelForSequenceClasification": ["Did you mean `AutoModelForSequenceClassification`?"],
    "--model.auto=AutoModelForTokenClassification": ["data from files is prepared for"],
    "--model.name=nowhere": ["`model.name=nowhere`: cannot be loaded."],
    "--trainer.callbacks+=LearningRateMonitor --report_to=none": [
        "`trainer.callbacks=LearningRateMonitor`: it writes to a logger",
        "by `report_to='none'` there is none",
        "Give `--report_to csv`",
    ],
    "--trainer.callbacks=DeviceStatsMonitor --report_to=csv --trainer.logger=false": [
        "`trainer.callbacks=DeviceStatsMonitor`: it writes to a logger, and by `trainer.logger=False`",
    ],
    "--trainer.callbacks+=EarlyStoping": ["Did you mean `EarlyStopping`?"],
    "--optimizer=AdamW --learning_rate=1": ["`learning_rate=1.0` and `optimizer`"],
    "--fsdp=full_shard --do_train": ["`--trainer.strategy fsdp`", "Give the command itself"],
    "--fp16 --bf16": ["a run computes in one precision"],
    "--max_steps=-1 --num_train_epochs=1.5": ["Lightning counts whole epochs"],
    "--resume_from_checkpoint=true": ["there is no checkpoint-N.ckpt in out"],
    "--config=wrong.yaml": [
        "`learnin_rate`: `compat fit` has no such argument.",
        "Did you mean `--learning_rate`?",
    ],
}


@pytest.mark.parametrize("more", WRONG)
def test_what_is_wrong_is_said(place: Path, tmp_path: Path, capsys: Any, more: str) -> None:
    (tmp_path / "wrong.yaml").write_text("learnin_rate: 1\n")
    said = fails(capsys, "fit", *words(place), *more.split())
    for expected in WRONG[more]:
        assert expected in said
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_command_alone_says_what_it_needs(capsys: Any) -> None:
    assert "`model.name`: no model is named. Give `--model.name MODEL`" in fails(capsys, "fit", "--use_cpu")
    assert "`data`: `compat fit` needs some" in fails(capsys, "fit", "--use_cpu", "--model.name=x")


class Own(pl.LightningModule):
    """Somebody's own module, with its own data."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch["x"]).mean()

    def train_dataloader(self) -> Any:
        return DataLoader(rows(8), batch_size=2)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class OwnOfHF(compat.HFModule):
    """Somebody's own module around a model of HF's style."""

    def __init__(self, args: Any, dropout: float = 0.5) -> None:
        model = Regression()
        model.dropout.p = dropout
        super().__init__(model, args)


class OwnData(compat.HFDataModule):
    """Somebody's own data of HF's style."""

    def __init__(self, args: Any, count: int = 8) -> None:
        super().__init__(args, rows(count), rows(3))


def test_modules_of_ones_own(tmp_path: Path) -> None:
    quiet = ["--output_dir=out", "--use_cpu", "--trainer.enable_model_summary=false"]
    cli = compat.HFLightningCLI(
        OwnOfHF,
        OwnData,
        args=[
            "fit",
            *quiet,
            "--model.dropout=0.25",
            "--data.count=6",
            "--num_train_epochs=2",
            "--save_strategy=no",
        ],
    )
    assert cli.trainer.global_step == 2
    assert cli.model.model.dropout.p == 0.25
    assert len(cli.datamodule.train_dataset) == 6
    assert "eval_loss" in cli.trainer.callback_metrics
    assert (tmp_path / "out" / "model.safetensors").is_file()

    plain = [
        *quiet,
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.enable_progress_bar=false",
    ]
    cli = compat.HFLightningCLI(Own, args=["fit", *plain, "--max_steps=3", "--model.width=4"])
    assert cli.trainer.global_step == 3
    assert cli.trainer.default_root_dir == "out"
    with pytest.raises(
        ArgumentError, match=r"`learning_rate=1.0`: it concerns a `compat.HFModule`, and `model` is a Own"
    ):
        compat.HFLightningCLI(Own, args=["fit", *plain, "--learning_rate=1"])


QUIET = (
    "--output_dir=out",
    "--use_cpu",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
)


@pytest.mark.parametrize("report_to", ["csv", "tensorboard"])
def test_reports_are_loggers_of_lightning(tmp_path: Path, report_to: str) -> None:
    words = ["fit", *QUIET, f"--report_to={report_to}", "--trainer.callbacks+=LearningRateMonitor"]
    words += ["--max_steps=2", "--logging_steps=1", "--learning_rate=0.5", "--save_strategy=no"]
    cli = compat.HFLightningCLI(OwnOfHF, OwnData, args=words)
    (logger,) = cli.trainer.loggers
    assert isinstance(logger, {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[report_to])
    assert cli.trainer.callback_metrics["lr-AdamW/pg1"] == 0.25
    assert (tmp_path / "out" / "config.yaml").is_file()
    assert len(list(tmp_path.rglob("config.yaml"))) == 1
    if report_to == "csv":
        (file,) = tmp_path.rglob("metrics.csv")
        rows_of_run = list(csv.DictReader(file.open(newline="")))
        found = {
            name: [float(row[name]) for row in rows_of_run if row[name]]
            for name in ("lr-AdamW/pg1", "train/learning_rate", "train/loss")
        }
        assert found["lr-AdamW/pg1"] == found["train/learning_rate"] == [0.5, 0.25]
        # What the module logs is written once, under HF's names.
        assert len(found["train/loss"]) == 2
        assert not {"train_loss", "grad_norm", "eval_loss"} & set(rows_of_run[0])


def test_a_trial_run_and_a_logger_of_ones_own(tmp_path: Path) -> None:
    words = ["fit", *QUIET, "--trainer.callbacks+=LearningRateMonitor", "--report_to=none"]
    compat.HFLightningCLI(OwnOfHF, OwnData, args=[*words, "--trainer.fast_dev_run=true"])
    assert not list(tmp_path.rglob("metrics.csv"))
    own = [
        "--trainer.logger=CSVLogger",
        "--trainer.logger.save_dir=own",
        "--max_steps=1",
        "--logging_steps=1",
    ]
    cli = compat.HFLightningCLI(OwnOfHF, OwnData, args=[*words, *own])
    assert [type(one) for one in cli.trainer.loggers] == [CSVLogger]


class Noted(OwnData):
    """Data that is told of the model."""

    def __init__(self, args: Any, count: int = 8, dropout: float = 0.0, rate: float = 0.0) -> None:
        super().__init__(args, count)
        self.noted = (dropout, rate)


class UsualCLI(compat.HFLightningCLI):
    """A subclass as Lightning's pages show it: no `super()` in what is there to be defined."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--notes", default="none")
        parser.link_arguments("model.dropout", "data.dropout")
        parser.link_arguments("learning_rate", "data.rate")

    def before_instantiate_classes(self) -> None:
        self.config.fit.max_steps = 1

    def after_instantiate_classes(self) -> None:
        self.said = [self.config.fit.notes]

    def before_fit(self) -> None:
        self.said.append(f"before {self.trainer.global_step}")

    def after_fit(self) -> None:
        self.said.append(f"after {self.trainer.global_step}")


def test_a_subclass_without_super(tmp_path: Path) -> None:
    words = ["fit", "--output_dir=out", "--use_cpu", "--trainer.enable_model_summary=false"]
    words += ["--model.dropout=0.25", "--save_strategy=no", "--notes=own"]
    cli = UsualCLI(OwnOfHF, Noted, args=[*words, "--learning_rate=0.5", "--num_train_epochs=2"])
    assert (cli.args.learning_rate, cli.args.num_train_epochs, cli.args.max_steps) == (0.5, 2, 1)
    assert cli.datamodule.noted == (0.25, 0.5)
    assert cli.said == ["own", "before 0", "after 1"]
    assert (tmp_path / "out" / "model.safetensors").is_file()

    cli = UsualCLI(OwnOfHF, Noted, args=words)
    assert (cli.args.learning_rate, cli.datamodule.noted) == (5e-5, (0.25, 5e-5))


class Linking(compat.HFLightningCLI):
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.set_defaults({"learning_rate": 0.125})
        parser.link_arguments("per_device_train_batch_size", "model.width")
        parser.link_arguments(
            ("learning_rate", "seed"), "trainer.limit_train_batches", lambda rate, seed: int(8 * rate) + seed
        )


def test_arguments_that_are_linked_may_concern_any_module() -> None:
    words = ["--output_dir=out", "--use_cpu", "--trainer.enable_model_summary=false"]
    cli = Linking(Own, args=words, run=False)
    assert (cli.model.layer.in_features, cli.trainer.limit_train_batches) == (8, 43)
    given = ["--per_device_train_batch_size=5", "--seed=2"]
    cli = Linking(Own, args=[*words, *given], run=False)
    assert (cli.model.layer.in_features, cli.trainer.limit_train_batches) == (5, 3)
    with pytest.raises(ArgumentError, match=r"`weight_decay=0.5`: it concerns a `compat.HFModule`"):
        Linking(Own, args=[*words, "--weight_decay=0.5"], run=False)


class Preset(compat.HFLightningCLI):
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.set_defaults({"trainer.limit_train_batches": 2})


def test_a_commands_own_defaults_of_the_trainer_hold() -> None:
    words = ["--output_dir=out", "--use_cpu", "--trainer.enable_model_summary=false"]
    defaults = {"max_epochs": 7, "accumulate_grad_batches": 3}

    def flags(*more: str) -> tuple[Any, ...]:
        cli = Preset(OwnOfHF, OwnData, args=[*words, *more], run=False, trainer_defaults=defaults)
        trainer, args = cli.trainer, cli.args
        said = (args.num_train_epochs, args.gradient_accumulation_steps)
        return (
            trainer.max_epochs,
            trainer.accumulate_grad_batches,
            trainer.limit_train_batches,
            *said,
        )

    assert flags() == (7, 3, 2, 7, 3)
    # What is given wins over a default, by either name.
    assert flags("--trainer.max_epochs=5", "--trainer.limit_train_batches=4") == (5, 3, 4, 5, 3)
    assert flags("--num_train_epochs=2", "--gradient_accumulation_steps=2") == (2, 2, 2, 2, 2)


def test_a_module_named_in_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "named", sys.modules[__name__])
    (tmp_path / "own.yaml").write_text("model:\n  class_path: named.Own\nmax_steps: 4\n")
    words = ["--config=own.yaml", "--model.width=7", "--use_cpu"]
    cli = compat.HFLightningCLI(args=words, run=False)
    assert (cli.model.layer.in_features, cli.trainer.max_steps, cli.datamodule) == (7, 4, None)


def test_it_resumes_where_it_was(place: Path, tmp_path: Path) -> None:
    more = {"save_steps": 1, "max_steps": 3}
    assert main(["fit", *words(place, **more)]) == 0
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    for number in (2, 3):
        (tmp_path / "out" / f"checkpoint-{number}.ckpt").unlink()
    assert main(["fit", *words(place, **more), "--resume_from_checkpoint=auto"]) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole
    assert (tmp_path / "out" / "checkpoint-2.ckpt").is_file()


def test_what_is_damaged_is_passed_over(place: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    more = {"save_steps": 1, "max_steps": 3}
    assert main(["fit", *words(place, **more)]) == 0
    whole = (tmp_path / "out" / "model.safetensors").read_bytes()
    last, second, first = (tmp_path / "out" / f"checkpoint-{number}.ckpt" for number in (3, 2, 1))
    last.write_bytes(last.read_bytes()[:-300])
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1
    second.write_bytes(content)
    # What a process that was killed has left is none.
    (tmp_path / "out" / "_partial-checkpoint-4.ckpt").write_bytes(b"")
    logging.get_logger("transformers.trainer").propagate = True
    resumed = [*words(place, **more), "--resume_from_checkpoint=auto"]
    with caplog.at_level("WARNING"):
        assert main(["fit", *resumed]) == 0
    told = [entry.message for entry in caplog.records if "passed over" in entry.message]
    assert len(told) == 2
    for message, file in zip(told, (last, second), strict=True):
        assert f"{file.name}`: " in message
        assert f"going on from `{Path('out', first.name)}`" in message
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole

    capsys.readouterr()
    for file in (last, second, first):
        file.write_bytes(file.read_bytes()[:500])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    for word in ("auto", "true"):
        assert main(["fit", *words(place, **more), f"--resume_from_checkpoint={word}"]) == 2
        assert "no checkpoint-N.ckpt in out is whole: `" in capsys.readouterr().err
    for option in ("--resume_from_checkpoint", "--ckpt_path"):
        assert main(["fit", *words(place, **more), f"{option}={second}"]) == 2
        assert re.search(rf"{second.name}`: empty, cut short.* whole", capsys.readouterr().err)
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {name for name in before if before[name] != after[name]} <= {"config.yaml"}


def test_help_fits_a_screen(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    for group, expected in (("hf", "--label_smoothing_factor"), ("trainer", "--trainer.profiler")):
        with pytest.raises(SystemExit):
            main(["fit", "--help", group])
        assert expected in capsys.readouterr().out


def test_a_token_is_in_no_settings(place: Path, tmp_path: Path, capsys: Any) -> None:
    token = "hf_" + "abc" * 9
    told = [*words(place, **{"model.kwargs.token": token}), f"--hub_token={token}"]
    with pytest.raises(SystemExit):
        main(["fit", *told, "--print_config"])
    out = capsys.readouterr().out
    assert token not in out
    shown = yaml.safe_load(out)
    assert shown["max_steps"] == 2
    assert "hub_token" not in shown
    compat.HFLightningCLI(args=["fit", *told[:-1]])
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_settings_are_shown_and_read_again(
    place: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("COMPAT_FIT__LEARNING_RATE", "0.25")
    with pytest.raises(SystemExit):
        main(["fit", *words(place), "--bf16", "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["bf16"], shown["learning_rate"], shown["max_steps"]) == (True, 0.25, 2)
    assert shown["model"]["class_path"].endswith(PretrainedModule.__name__)
    shown = {name: value for name, value in shown.items() if name not in {"ckpt_path", "weights_only"}}
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(shown))
    monkeypatch.delenv("COMPAT_FIT__LEARNING_RATE")
    cli = compat.HFLightningCLI(args=["--config", "shown.yaml", "--max_steps", "5"], run=False)
    assert (cli.args.learning_rate, cli.args.bf16, cli.trainer.max_steps) == (0.25, True, 5)
