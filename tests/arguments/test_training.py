from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import transformers

import compat
from compat.errors import UnknownArgumentError
from compat.upstream.environment import contained
from tests import small

if TYPE_CHECKING:
    from pathlib import Path

BASE = {"output_dir": "out", "report_to": [], "use_cpu": True, "logging_dir": "logs"}
"""`logging_dir` since transformers 4 puts the time into what it derives."""

TODAY: list[dict[str, Any]] = [
    {},
    {"eval_strategy": "steps", "eval_steps": 0.1, "learning_rate": 2e-5},
    {"bf16": True, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5},
    {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
    {"accelerator_config": {"split_batches": True}, "lr_scheduler_kwargs": {"num_cycles": 2}},
    {"hub_token": "hf_secret", "debug": "underflow_overflow", "optim": "sgd"},
    {"torch_compile_backend": "eager", "label_names": ["a", "b"], "seed": 3},
]
OLD: list[dict[str, Any]] = [
    {"evaluation_strategy": "epoch"},
    {"warmup_ratio": 0.25},
    {"per_gpu_train_batch_size": 4},
    {"group_by_length": True, "adafactor": True},
    {"split_batches": True, "dispatch_batches": False},
    {"push_to_hub_model_id": "model", "push_to_hub_organization": "us"},
    {"save_safetensors": False, "logging_dir": "elsewhere"},
    {"include_inputs_for_metrics": True, "include_tokens_per_second": True, "tpu_metrics_debug": True},
]


def quietly(kind: Any, /, *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return kind(*args, **options)


def theirs(**options: Any) -> Any:
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    with contained():
        given = {name: value for name, value in options.items() if name in known}
        return transformers.TrainingArguments(**copy.deepcopy(given))


@pytest.mark.parametrize("options", TODAY)
@pytest.mark.parametrize("text", ["to_dict", "to_json_string", "to_sanitized_dict", "__str__", "__repr__"])
def test_what_is_shown_is_what_transformers_shows(text: str, options: dict[str, Any]) -> None:
    given = {**BASE, **options}
    if "logging_dir" not in transformers.TrainingArguments.__dataclass_fields__:
        given.pop("logging_dir")
    ours = quietly(compat.TrainingArguments, **copy.deepcopy(given))
    assert getattr(ours, text)() == getattr(theirs(**given), text)()


@pytest.mark.parametrize("options", TODAY)
def test_names_of_today_never_warn(options: dict[str, Any]) -> None:
    given = {"output_dir": "out", "report_to": [], "use_cpu": True, **options}
    args = compat.TrainingArguments(**copy.deepcopy(given))
    assert dataclasses.replace(args, seed=5).seed == 5


@pytest.mark.parametrize("options", [*TODAY, *OLD])
def test_copies_are_equal(options: dict[str, Any]) -> None:
    args = quietly(compat.TrainingArguments, **{**BASE, **copy.deepcopy(options)})
    replaced = quietly(dataclasses.replace, args)
    for twin in (copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args)), replaced):  # noqa: S301 (our own bytes)
        assert type(twin) is compat.TrainingArguments
        assert twin == args
        assert twin.to_dict() == args.to_dict()
        for name in options:
            assert getattr(twin, name) == getattr(args, name)


@pytest.mark.parametrize("options", [*TODAY, *OLD])
def test_arguments_made_from_their_own_dict_are_equal(options: dict[str, Any]) -> None:
    args = quietly(compat.TrainingArguments, **{**BASE, **copy.deepcopy(options)})
    twin = quietly(compat.TrainingArguments, **args.to_dict())
    assert twin.to_dict() == args.to_dict()


def test_arguments_are_equal_by_value() -> None:
    one, same, other = (compat.TrainingArguments("out", report_to=[], seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert set(dataclasses.asdict(one)) == {field.name for field in dataclasses.fields(one)}


def test_an_attribute_set_later_rules_by_either_name() -> None:
    args = quietly(compat.TrainingArguments, **BASE, warmup_ratio=0.1, group_by_length=True)
    args.warmup_ratio = 0.3
    assert args.get_warmup_steps(100) == 30
    args.group_by_length = False
    assert args.group_by_length is False
    args.no_cuda = False
    args.eval_strategy = "epoch"
    assert args.evaluation_strategy == "epoch"
    args.evaluation_strategy = "no"
    assert args.eval_strategy == "no"


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"torch_compile_backend": "eager"}, {"fsdp": "full_shard"}]
)
def test_arguments_leave_nothing_in_the_environment(options: dict[str, Any]) -> None:
    before = dict(os.environ)
    compat.TrainingArguments(output_dir="out", use_cpu=True, report_to=[], **options)
    assert dict(os.environ) == before


def test_one_run_does_not_inherit_the_precision_of_another(tmp_path: Path) -> None:
    half, full = small.arguments(tmp_path, bf16=True), small.arguments(tmp_path)
    precisions = [
        compat.Trainer(model=small.Regression(), args=args).accelerator.mixed_precision
        for args in (half, full, half)
    ]
    assert precisions == ["bf16", "no", "bf16"]


@dataclass
class Mine(compat.TrainingArguments):
    beta: float = 0.1
    warmup_ratio: float = 0.25
    learning_rate: float = 0.5
    save_safetensors: bool = dataclasses.field(default=False, metadata={"help": "pickles"})


class Custom(compat.TrainingArguments):
    def __init__(self, *args: Any, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = alpha


@dataclass
class Early(compat.TrainingArguments):
    def __post_init__(self) -> None:
        self.evaluation_strategy = "epoch"
        super().__post_init__()


@pytest.mark.parametrize(
    ("options", "warmup"),
    [({}, 25), ({"warmup_ratio": 0.5}, 50), ({"warmup_steps": 7}, 7), ({"warmup_ratio": 0}, 0)],
)
def test_a_subclass_has_defaults_of_its_own(options: dict[str, Any], warmup: int) -> None:
    args = quietly(Mine, **BASE, **options)
    assert (args.beta, args.learning_rate, args.save_safetensors) == (0.1, 0.5, False)
    assert args.get_warmup_steps(100) == warmup
    if "warmup_steps" not in options:
        assert args.warmup_ratio == options.get("warmup_ratio", 0.25)
    for twin in (quietly(dataclasses.replace, args), copy.deepcopy(args)):
        assert twin == args
        assert twin.get_warmup_steps(100) == warmup
    args.warmup_ratio = 0.75
    assert warmup == 7 or args.get_warmup_steps(100) == 75


def test_a_subclass_is_shown_with_its_fields() -> None:
    args = quietly(Mine, **BASE, beta=2.0)
    assert quietly(Mine, **args.to_dict()).to_dict() == args.to_dict()
    assert args.to_dict()["beta"] == 2.0
    assert "\nbeta=2.0,\n" in str(args)


@dataclass
class Renames(compat.TrainingArguments):
    gamma: float = 0.5
    evaluation_strategy: str | None = dataclasses.field(default_factory=lambda: None)
    no_cuda: bool = False

    def __post_init__(self) -> None:
        if self.evaluation_strategy is not None:
            self.eval_strategy, self.evaluation_strategy = self.evaluation_strategy, None
        self.no_cuda = True
        super().__post_init__()


def test_a_subclass_may_have_old_names_for_itself() -> None:
    args = Renames("out", report_to=[], evaluation_strategy="epoch")  # a warning would be an error
    assert (args.eval_strategy, args.evaluation_strategy, args.use_cpu) == ("epoch", None, True)
    own = [("gamma", 0.5), ("evaluation_strategy", None)]
    assert [entry for entry in args.to_dict().items() if entry[0] in dict(own)] == own
    assert "\nevaluation_strategy=None,\n" in str(args)
    args.evaluation_strategy = "steps"
    assert (args.eval_strategy, args.evaluation_strategy) == ("steps", "steps")


@dataclass
class OldDefault(compat.TrainingArguments):
    evaluation_strategy: str = "steps"


def test_what_is_given_wins_over_a_subclass_s_default_by_an_old_name() -> None:
    assert quietly(OldDefault, **BASE).eval_strategy == "steps"
    assert quietly(OldDefault, **BASE, eval_strategy="epoch").eval_strategy == "epoch"


def test_a_subclass_may_have_its_own_constructor() -> None:
    args = quietly(Custom, "out", alpha=4, evaluation_strategy="epoch", report_to=[])
    assert (args.output_dir, args.alpha, args.eval_strategy) == ("out", 4, "epoch")
    with pytest.raises(UnknownArgumentError, match="Did you mean `learning_rate`"):
        Custom("out", lerning_rate=1)


def test_a_subclass_may_set_an_old_name_before_all_else() -> None:
    assert quietly(Early, **BASE).eval_strategy == "epoch"


SECRET = "hf_s3cret"  # noqa: S105 (nobody's)


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
def test_a_token_is_never_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = quietly(compat.TrainingArguments, **BASE, **{name: SECRET})
    assert args.hub_token == SECRET
    made = [compat.plan(args), compat.plan({**BASE, name: SECRET})]
    other = compat.plan(BASE)
    shown = [repr(args), str(args), args.to_json_string(), repr(args.to_sanitized_dict())]
    for plan in made:
        shown += [
            plan.to_json(),
            plan.summary(),
            repr(plan),
            *map(str, plan.diff(other)),
            *map(str, other.diff(plan)),
        ]
    assert SECRET not in "\n".join(shown) + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "options",
    [
        {"hub_tokn": SECRET},
        {"hub_tokens": SECRET},
        {"hf_token": SECRET},
        {"push_to_hub_token": SECRET, "hub_token": SECRET + "2", "learning_rate": -1},
        {"hub_token": SECRET, "learning_rate": "x"},
    ],
)
def test_no_error_shows_a_token(options: dict[str, Any]) -> None:
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    parser = compat.HfArgumentParser(compat.TrainingArguments)
    for attempt in (
        lambda: quietly(compat.TrainingArguments, **BASE, **options),
        lambda: quietly(parser.parse_dict, {**BASE, **options}),
        lambda: quietly(parser.parse_args_into_dataclasses, ["--output_dir", "out", *words]),
    ):
        with pytest.raises((ValueError, SystemExit)) as caught:
            attempt()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token"])
def test_no_file_of_a_run_holds_a_token(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = small.trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1, **{name: SECRET})
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"training_args.bin", "trainer_state.json"}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert trainer.args.hub_token == SECRET


@pytest.mark.parametrize("backend", ["gloo", "mpi"])
def test_a_backend_has_no_effect_on_a_process_alone(
    tmp_path: Path, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    transformers.utils.logging.warning_once.cache_clear()
    expected = small.trainer(tmp_path)
    expected.train()
    run = small.trainer(tmp_path, ddp_backend=backend)
    run.train()
    assert run.args.device.type == "cpu"
    assert run.args.world_size == 1
    assert run.args.ddp_backend == backend
    assert small.weights(run) == small.weights(expected)
    small.arguments(tmp_path, ddp_backend=backend).device  # noqa: B018
    said = [message for message in caplog.messages if "ddp_backend" in message]
    assert len(said) == 1
    assert said[0].startswith(f"`ddp_backend='{backend}'` has no effect: this run has one process")
