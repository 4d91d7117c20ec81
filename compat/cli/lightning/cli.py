"""`HFLightningCLI`: a LightningCLI that also takes Hugging Face's arguments."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from datetime import timedelta
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

import transformers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.model_helpers import is_overridden
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy
from typing_extensions import override

from compat.arguments.fields import shown
from compat.arguments.seq2seq import Seq2SeqTrainingArguments
from compat.callbacks import to_lightning
from compat.callbacks.loggers import reporting, shared_logger
from compat.checkpoint.convert.checking import refuse_damage
from compat.checkpoint.io import keep_files_whole
from compat.cli.lightning.data_options import DataFiles, Source
from compat.cli.lightning.handling import HANDLING, Part
from compat.cli.lightning.help import show_help
from compat.cli.lightning.model import Pretrained, PretrainedModule
from compat.cli.lightning.parser import HFArgumentParser, as_words, files_in, split, typed
from compat.cli.lightning.predictions import write_predictions
from compat.cli.lightning.reconcile import (
    arguments_given,
    clashes,
    flags_given,
    lacks_logger,
    preset_flags,
    refused,
    said_by_flags,
)
from compat.cli.lightning.resuming import chosen
from compat.cli.terminal import say
from compat.engine.any_device import DDPStrategy, trainer_flags
from compat.engine.logs import HandedOnConnector, without_loggers_of_hf
from compat.engine.loops import own_warnings
from compat.errors import ArgumentError, CompatError
from compat.modules.hf_datamodule import HFDataModule
from compat.modules.hf_module import HFModule
from compat.planning import plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import lightning.pytorch as pl
    from jsonargparse import Namespace

    from compat.translate import LightningPlan


class Settings(SaveConfigCallback):
    """Saves the settings in the folder of the run, wherever the loggers of `report_to` write."""

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        with without_loggers_of_hf(trainer):
            super().setup(trainer, pl_module, stage)


COMMANDS = ("fit", "validate", "test", "predict")


class HFLightningCLI(LightningCLI):
    """A LightningCLI that reads Hugging Face's flat arguments beside Lightning's groups.

    Without a custom class, `--model.auto` and `--model.name` select a model of transformers, and
    `--data.train` and similar options read data from files. An explicit Lightning flag takes precedence over
    HF's arguments; one that contradicts an HF argument that is also passed is an error.

    Args:
        model_class: as in `lightning.pytorch.cli.LightningCLI`, and so are all other arguments.
        datamodule_class: as in `lightning.pytorch.cli.LightningCLI`.
        seed_everything_default: False, because HF's `seed` applies.

    Attributes:
        args: HF's arguments.
        plan: how they are handled.
        trainer: the Lightning Trainer.
        model: the module.
        datamodule: the data module, None where there is none.
    """

    args: Seq2SeqTrainingArguments
    plan: LightningPlan

    def __init__(self, model_class: Any = None, datamodule_class: Any = None, **kwargs: Any) -> None:
        defaults = {
            "seed_everything_default": False,
            "parser_class": HFArgumentParser,
            "save_config_callback": Settings,
            "save_config_kwargs": {"overwrite": True},
        }
        super().__init__(model_class, datamodule_class, **{**defaults, **kwargs})

    # Parsing.

    # `add_arguments_to_parser`, `before_…`, `after_…` are left to subclasses, which call no `super()` there.

    @override
    def add_core_arguments_to_parser(self, parser: Any) -> None:
        super().add_core_arguments_to_parser(parser)
        parser.add_hf_arguments()

    @override
    def parse_arguments(self, parser: Any, args: list[str] | dict[str, Any] | Namespace | None) -> None:
        if args is not None and not isinstance(args, (list, tuple)):
            self.config = parser.parse_object(args)
            return
        words = list(sys.argv[1:] if args is None else args)
        show_help(self, words)
        command = words[:1] if hasattr(self, "_subcommand_parsers") and words[:1] != [] else []
        command = command if command and command[0] in COMMANDS else []
        parser.asked = self._subcommand_parsers[command[0]] if command else None
        hf, rest = split(words[len(command) :])
        given = typed(hf, " ".join(["compat", *command]))
        if "lightning" in given:
            msg = "`lightning`: the flags of Lightning are at hand. Give `--trainer.FLAG VALUE`."
            raise ArgumentError(msg)
        words = [*command, *self._defaults(rest), *self._loose(rest), *as_words(given)]
        # Lightning's own warns of words beside those of the process, which the command has taken.
        self.config = parser.parse_args(words)

    def _defaults(self, words: Sequence[str]) -> Iterator[str]:
        """The classes that stand for models and data where none is named."""
        if self.model_class is None:
            yield f"--model={PretrainedModule.__module__}.{PretrainedModule.__qualname__}"
        if self.datamodule_class is None and _is_about_files(words):
            yield f"--data={DataFiles.__module__}.{DataFiles.__qualname__}"

    def _loose(self, words: Sequence[str]) -> Iterator[str]:
        """The words, with `--model.num_labels` as one of the `kwargs` of a pretrained model."""
        named = any(_names_model(word) for word in words) or any(map(_names_own_model, files_in(words)))
        is_ours = self.model_class is None and not named
        own = {"name", "auto", "kwargs", "help"}
        for word in words:
            name = word.partition("=")[0].removeprefix("--model.")
            if is_ours and word.startswith("--model.") and name.partition(".")[0].rstrip("+") not in own:
                yield word.replace("--model.", "--model.kwargs.", 1)
            else:
                yield word

    @override
    def _parse_ckpt_path(self) -> None:
        # It loads the file for its hyperparameters, ahead of everything else.
        command = self.config.get("subcommand")
        own = self.config[command] if command else None
        file = own and own.get("ckpt_path")
        if file and os.path.isfile(file):
            refuse_damage(Path(file))
        super()._parse_ckpt_path()

    # From words to objects.

    @override
    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        for kind, make in (
            (HFModule, self._with_args),
            (HFDataModule, self._with_args),
            (PretrainedModule, lambda _, **given: Pretrained(**_only(given))),
            (DataFiles, lambda _, **given: Source(_only(given), self.args.seed)),
        ):
            self.parser.add_instantiator(make, kind, subclasses=make == self._with_args, prepend=True)

    def _with_args(self, kind: Callable[..., Any], *args: object, **given: Any) -> Any:
        given = _only(given)
        if "args" in inspect.signature(kind).parameters:
            given["args"] = self.args
        return kind(*args, **given)

    def _read_arguments(self) -> None:
        """Check the settings, and create HF's arguments and the plan."""
        own = self.config.get(self.subcommand) if self.subcommand else self.config
        defaults = vars(self._parser(self.subcommand).get_defaults()["trainer"])
        self._explicit = flags_given(vars(own["trainer"]), defaults)
        linked = self._linked
        self._given = {
            name: value
            for name, value in arguments_given(own).items()
            if name not in linked or value != linked[name]
        }
        problems = [*refused(self._given), *clashes(own, self._given, self._explicit)]
        if problems:
            raise ArgumentError("\n".join(problems))
        parameters = inspect.signature(self.trainer_class).parameters.values()
        of_lightning = {each.name: each.default for each in parameters}
        self._explicit = {**preset_flags(defaults, of_lightning, self._given), **self._explicit}
        arguments = {**said_by_flags(self._explicit, own.get("seed_everything")), **self._given}
        # Report every problem of the arguments before choosing a device and starting processes.
        plan({name: value for name, value in arguments.items() if name != "lightning"})
        self.args = Seq2SeqTrainingArguments(**arguments)
        self.plan = plan(self.args)
        if problems := [*self._lacking_loggers(own)]:
            raise ArgumentError("\n".join(problems))
        if own.get("seed_everything") is False:
            transformers.set_seed(self.args.seed)

    @property
    def _linked(self) -> dict[str, Any]:
        """HF's arguments that are linked to other settings, and their defaults."""
        parser: Any = self._parser(self.subcommand)
        linked: dict[str, Any] = parser.linked
        return linked

    def _lacking_loggers(self, own: Mapping[str, Any]) -> Iterator[str]:
        """Yield the callbacks that would find no logger, if HF's control trains."""
        flag = self._explicit.get("logger")
        kind = self.model_class or locate(own["model"]["class_path"])
        is_hfs = isinstance(kind, type) and issubclass(kind, (HFModule, PretrainedModule))
        has_flow = is_hfs or self._asks_for_flow
        is_trial = bool(self._explicit.get("fast_dev_run"))
        is_off = flag is False or (flag is None and has_flow and not is_trial)
        if self.subcommand in (None, "fit") and is_off:
            asked = own["trainer"].get("callbacks") or []
            listed = asked if isinstance(asked, list) else [asked]
            yield from lacks_logger(listed, self.args.report_to, is_off=flag is False)

    @override
    def instantiate_classes(self) -> None:
        self._read_arguments()
        self.config_init = self.parser.instantiate_classes(self.config)
        self.model = self._get(self.config_init, "model")
        self.datamodule = self._get(self.config_init, "data")
        source = self.datamodule if isinstance(self.datamodule, Source) else None
        if source is not None and source.is_empty:
            source = self.datamodule = None
        if isinstance(self.model, Pretrained):
            lacks_data = source is None and self.datamodule is None and self.subcommand is not None
            if lacks_data and self.model.name is not None:
                msg = f"`data`: `compat {self.subcommand}` needs some. Give `--data.train FILE`."
                raise ArgumentError(msg)
            self.model, made = self.model.build(self.args, source, self.subcommand or "run")
            self.datamodule = self.datamodule if made is None else made
        elif source is not None:
            msg = "`data`: files are prepared for models by `--model.name`. Give `--data.class_path` instead."
            raise ArgumentError(msg)
        self._refuse_without_hf()
        self._evaluate_what_there_is()
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = self.instantiate_trainer()

    def _refuse_without_hf(self) -> None:
        """Refuse arguments that concern HF's module or data where there is none, and no link has them."""
        parts = {
            Part.MODULE: ("model", self.model, HFModule),
            Part.DATA: ("data", self.datamodule, HFDataModule),
        }
        problems = []
        for name, value in self._given.items():
            if name in self._linked:
                continue
            key, part, kind = parts.get(HANDLING[name].part, ("", None, object))
            if isinstance(part, kind):
                continue
            other = "there is no `data`" if part is None else f"`{key}` is a {type(part).__name__}"
            problems.append(
                f"`{shown(name, value)}`: it concerns a `compat.{kind.__name__}`, and {other}. "
                f"Leave it out, or derive yours from `compat.{kind.__name__}`."
            )
        if problems:
            raise ArgumentError("\n".join(problems))

    def _evaluate_what_there_is(self) -> None:
        """Evaluate once in an epoch where there is something to evaluate on, and nothing is said."""
        silent = not {"eval_strategy", "evaluation_strategy", "eval_steps"} & self._given.keys()
        owner = self.datamodule if self.datamodule is not None else self.model
        if silent and is_overridden("val_dataloader", owner):
            self.args.eval_strategy = IntervalStrategy.EPOCH

    # The Lightning Trainer.

    @property
    def _has_flow(self) -> bool:
        """Whether HF's control decides when to log, evaluate and save."""
        return isinstance(self.model, HFModule) or self._asks_for_flow

    @property
    def _asks_for_flow(self) -> bool:
        parts = {HANDLING[name].part for name in self._given}
        return bool(parts & {Part.CONTROL, Part.LOGGER})

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Lightning Trainer, with the flags that HF's arguments become where none is given."""
        flags = {
            name: value
            for name, value in {**self._flags(), **self._own_flags()}.items()
            if name not in self._explicit
        }
        if "accelerator" in flags:
            asked = self._get(self.config_init, "trainer") or {}
            explicit = {name: asked[name] for name in self._explicit if name in asked}
            flags = trainer_flags(self.args.device, {**flags, **explicit})
        trainer: pl.Trainer = super().instantiate_trainer(**{**flags, **kwargs})
        keep_files_whole(trainer.strategy)
        return trainer

    def _flags(self) -> dict[str, Any]:
        """The flags of the plan; for a module of one's own only what is said, Lightning's defaults else."""
        flags = dict(self.plan.flags)
        name = flags.pop("strategy")
        if name == "ddp":
            options = dict(self.plan.strategy_options)
            options["timeout"] = timedelta(seconds=options["timeout"])
            flags["strategy"] = DDPStrategy(**options)
        if not isinstance(self.model, HFModule):
            said = {HANDLING[field].note for field in self._given} | {"accelerator", "devices", "num_nodes"}
            flags = {flag: value for flag, value in flags.items() if flag in {*said, "strategy"}}
        return flags

    def _own_flags(self) -> dict[str, Any]:
        flags: dict[str, Any] = {"enable_progress_bar": not self.args.disable_tqdm}
        if self._has_flow or "output_dir" in self._given:
            flags["default_root_dir"] = self.args.output_dir
        if not self._has_flow:
            return flags
        flags |= {
            # Those of `report_to` come later; a trial run has Lightning's dummy in the place of any.
            "logger": bool(self._explicit.get("fast_dev_run")),
            "enable_autolog_hparams": False,
            "num_sanity_val_steps": 0,
        }
        if not any(isinstance(each, Checkpoint) for each in self._callbacks()):
            flags["enable_checkpointing"] = False
        return flags

    def _callbacks(self) -> list[Any]:
        given = (self._get(self.config_init, "trainer") or {}).get("callbacks") or []
        return given if isinstance(given, list) else [given]

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> pl.Trainer:
        if not self._has_flow:
            with _refused_by("trainer", "Lightning"):
                return super()._instantiate_trainer(config, callbacks)
        with _refused_by("report_to", "transformers"), reporting(self.args) as own:
            kinds = get_reporting_integration_callbacks(self.args.report_to)
        listed = [transformers.DefaultFlowCallback(), *own, *kinds]
        if self.args.disable_tqdm:
            listed.append(transformers.PrinterCallback())
        processing = getattr(self.datamodule, "processing_class", None)
        hf = to_lightning(listed, args=self.args, processing_class=processing)
        with _refused_by("trainer", "Lightning"):
            trainer: pl.Trainer = super()._instantiate_trainer(config, [*callbacks, hf])
        is_bare = trainer.barebones or getattr(trainer, "fast_dev_run", False)
        if self._explicit.get("logger") is not False and not is_bare:
            shared = (shared_logger(callback, hf) for callback in hf.callbacks)
            trainer.loggers = [*trainer.loggers, *filter(None, shared)]
            trainer._logger_connector.__class__ = HandedOnConnector
        return trainer

    # Commands.

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        given: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        file, asked = given.get("ckpt_path"), self.args.resume_from_checkpoint
        if str(file).endswith(".ckpt") and "://" not in str(file) and not os.path.exists(str(file)):
            msg = f"`ckpt_path={file}`: there is no such file. Give a .ckpt."
            raise ArgumentError(msg)
        if asked is None or subcommand != "fit":
            return given
        if file is not None:
            msg = f"`resume_from_checkpoint={asked!r}` and `ckpt_path`: they say the same. Leave one out."
            raise ArgumentError(msg)
        return {**given, "ckpt_path": chosen(asked, self.args.output_dir)}

    def fit(self, **given: Any) -> None:
        """Train, and leave a folder that `from_pretrained` reads."""
        with own_warnings() if self._has_flow else contextlib.nullcontext():
            self.trainer.fit(**given)
        if isinstance(self.model, HFModule) and not getattr(self.trainer, "fast_dev_run", False):
            self.model.save_pretrained(self.args.output_dir)
            if self.trainer.is_global_zero:
                print(f"The trained model lies in {self.args.output_dir}.")

    def predict(self, **given: Any) -> None:
        """Predict, and write the predictions next to the rows, if the data comes from files."""
        outputs = self.trainer.predict(**given)
        if hasattr(self.datamodule, "rows"):
            path = write_predictions(self.args.output_dir, self.datamodule, outputs, self.trainer)
            print(f"The predictions are in {path}.")


def _only(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments without those that jsonargparse adds for itself."""
    return {name: value for name, value in given.items() if name != "applied_instantiation_links"}


@contextlib.contextmanager
def _refused_by(argument: str, library: str) -> Iterator[None]:
    """Tell of a library that refuses what it is given, without the traceback into it."""
    try:
        yield
    except (MisconfigurationException, TypeError, ValueError) as error:
        msg = f"`{argument}`: {library} refuses it, in its own words: {error}"
        raise ArgumentError(msg) from error


def _names_model(word: str) -> bool:
    return word.startswith(("--model=", "--model.class_path")) or word == "--model"


def _names_own_model(settings: Any) -> bool:
    """Whether the settings in a file name a model's class that is not ours."""
    parts = [settings, *settings.values()] if isinstance(settings, dict) else []
    models = [
        part["model"] for part in parts if isinstance(part, dict) and isinstance(part.get("model"), dict)
    ]
    ours = f".{PretrainedModule.__name__}"
    return any(not str(model.get("class_path", ours)).endswith(ours) for model in models)


def _is_about_files(words: Sequence[str]) -> bool:
    named = any(word.startswith(("--data=", "--data.class_path")) or word == "--data" for word in words)
    return not named


def run(words: Sequence[str]) -> int:
    """Run one of the commands.

    Args:
        words: the command and its arguments.

    Returns:
        0, or 2 with the problem on stderr.
    """
    prefix = {"default_env": True, "env_prefix": "COMPAT", "prog": "compat"}
    parser_kwargs = {**prefix, **{name: dict(prefix) for name in COMMANDS}}
    try:
        with own_warnings():
            HFLightningCLI(args=list(words), parser_kwargs=parser_kwargs)
    except CompatError as error:
        say(f"compat {words[0]}", error)
        return 2
    return 0
