from __future__ import annotations

import abc
import copy
import dataclasses
import inspect
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import compat
from compat.checkpoint.safe_unpickler import read_arguments
from compat.errors import RebaseError, UnknownArgumentError
from compat.upstream.environment import contained
from compat.upstream.seams.common import HFTrainer
from tests import small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Library(HFTrainer):
    """A library's trainer."""

    def __init__(self, model: Any = None, args: Any = None, *, factor: float = 2.0, **kwargs: Any) -> None:
        super().__init__(model, args, **kwargs)
        self.factor = factor

    def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        return self.factor * super().compute_loss(model, inputs, **kwargs)


class Abstract(HFTrainer, abc.ABC):
    """A library's trainer that lacks something."""

    @abc.abstractmethod
    def collate(self) -> int:
        """What is lacking."""


class Whole(Abstract):
    def collate(self) -> int:
        return 3


@dataclasses.dataclass
class LibraryArguments(transformers.TrainingArguments):
    """A library's arguments."""

    mine: int = 7
    learning_rate: float = 1e-3


@dataclasses.dataclass
class Written(transformers.TrainingArguments):
    mine: int = 7

    def __init__(self, folder: str, **kwargs: Any) -> None:
        super().__init__(folder, **kwargs)
        self.mine = 8


def unpickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 (made here)


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    with contained():  # transformers 4 leaves its settings in the environment
        yield
    compat.uninstall()


def test_a_trainer_class_keeps_its_face() -> None:
    ours = compat.on_lightning(Library)
    assert ours is not Library
    assert (ours.__name__, ours.__module__, ours.__qualname__) == ("Library", __name__, "Library")
    assert ours.__doc__ == Library.__doc__
    assert repr(ours) == repr(Library)
    assert inspect.signature(ours) == inspect.signature(Library)
    assert inspect.getsource(ours.compute_loss) == inspect.getsource(Library.compute_loss)


def test_the_same_class_comes_back_for_the_same_class() -> None:
    ours = compat.on_lightning(Library)
    assert compat.on_lightning(Library) is ours
    assert compat.on_lightning(ours) is ours
    assert compat.on_lightning(HFTrainer) is compat.Trainer
    assert compat.on_lightning(transformers.Seq2SeqTrainingArguments) is compat.Seq2SeqTrainingArguments


def test_what_generates_goes_onto_ours_that_generates() -> None:
    class Generates(transformers.Seq2SeqTrainer):
        pass

    assert issubclass(compat.on_lightning(Generates), compat.Seq2SeqTrainer)


def test_isinstance_holds_both_ways(tmp_path: Path) -> None:
    ours = compat.on_lightning(Library)
    args = small.arguments(tmp_path)
    theirs = Library(small.Regression(), args)
    made = ours(small.Regression(), args)
    for kind in (Library, ours, HFTrainer):
        assert isinstance(theirs, kind)
        assert isinstance(made, kind)
    assert not isinstance(theirs, compat.Trainer)
    assert isinstance(made, compat.Trainer)
    assert issubclass(Library, ours)
    assert not issubclass(Whole, ours)


def test_a_class_derived_from_it_stands_for_itself() -> None:
    class Mine(compat.on_lightning(Library)):
        pass

    assert issubclass(Mine, Library)
    assert not issubclass(Library, Mine)
    assert Mine.__name__ == "Mine"


@pytest.mark.parametrize("kind", [Library, Whole, LibraryArguments])
def test_a_pickle_brings_back_the_class_on_lightning(kind: type) -> None:
    ours = compat.on_lightning(kind)
    assert unpickled(ours) is ours
    assert unpickled(kind) is kind


@pytest.mark.parametrize("kind", [Library, Whole])
def test_what_has_nothing_to_do_with_either_is_neither(kind: type) -> None:
    ours = compat.on_lightning(kind)
    for one in (kind, ours):
        assert not isinstance([], one)
        assert not issubclass(list, one)
        assert not issubclass(compat.Seq2SeqTrainer, one)


def test_a_library_s_own_names_are_left_alone() -> None:
    class Named(Library):
        original, made_by = "a", "b"

    ours = compat.on_lightning(Named)
    assert (ours.original, ours.made_by) == ("a", "b")


def test_what_is_abstract_stays_so(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="abstract"):
        compat.on_lightning(Abstract)(small.Regression(), small.arguments(tmp_path))
    assert compat.on_lightning(Whole)(small.Regression(), small.arguments(tmp_path)).collate() == 3


def test_the_library_trains_on_lightning_to_the_same_bit(tmp_path: Path) -> None:
    def trained(kind: type, args: type) -> tuple[list[Any], Any]:
        torch.manual_seed(0)
        options = dict.fromkeys(("use_cpu", "disable_tqdm"), True)
        made = args(str(tmp_path), max_steps=3, logging_steps=1, report_to=[], save_strategy="no", **options)
        trainer = kind(small.Regression(), made, factor=3.0, train_dataset=small.rows())
        trainer.train()
        return [
            [entry.get(name) for name in ("loss", "grad_norm", "learning_rate")]
            for entry in trainer.state.log_history[:-1]
        ], small.weights(trainer)

    theirs = trained(Library, LibraryArguments)
    assert trained(compat.on_lightning(Library), compat.on_lightning(LibraryArguments)) == theirs
    assert trained(compat.on_lightning(Library), LibraryArguments) == theirs
    assert len(theirs[0]) == 3


def test_a_trainer_that_makes_its_arguments_itself_makes_ours(tmp_path: Path) -> None:
    class Making(Library):
        arguments_class = LibraryArguments

    kind = compat.on_lightning(Making)
    assert kind.arguments_class is compat.on_lightning(LibraryArguments)
    assert isinstance(kind.arguments_class(str(tmp_path), report_to=[]), compat.TrainingArguments)
    assert Making.arguments_class is LibraryArguments


def test_nothing_is_patched(tmp_path: Path) -> None:
    compat.on_lightning(Library)
    assert Library.__bases__ == (HFTrainer,)
    assert not isinstance(Library(small.Regression(), small.arguments(tmp_path)), compat.Trainer)


def test_arguments_take_the_names_of_every_generation(tmp_path: Path) -> None:
    ours = compat.on_lightning(LibraryArguments)
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        args = ours(
            str(tmp_path), use_cpu=True, evaluation_strategy="epoch", mine=3, lightning={"profiler": "simple"}
        )
    assert (args.eval_strategy, args.mine, args.learning_rate) == ("epoch", 3, 1e-3)
    assert args.lightning == {"profiler": "simple"}
    assert isinstance(args, (LibraryArguments, compat.TrainingArguments))
    assert isinstance(LibraryArguments(str(tmp_path), use_cpu=True), ours)


def test_arguments_are_saved_as_the_original_s(tmp_path: Path) -> None:
    args = compat.on_lightning(LibraryArguments)(str(tmp_path / "out"), use_cpu=True, learning_rate=0.25)
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert type(copied) is type(args)
        assert copied.to_dict() == args.to_dict()
    torch.save(args, tmp_path / "training_args.bin")
    assert read_arguments(str(tmp_path / "training_args.bin"))["learning_rate"] == 0.25
    saved = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert type(saved) is LibraryArguments
    assert (saved.learning_rate, saved.mine) == (0.25, 7)

    class Mine(type(args)):
        pass

    assert type(copy.deepcopy(Mine(str(tmp_path), use_cpu=True))) is Mine
    with pytest.raises((AttributeError, pickle.PicklingError), match="Mine"):
        pickle.dumps(Mine(str(tmp_path), use_cpu=True))


def test_arguments_name_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownArgumentError, match=r"`mind=3`: LibraryArguments has no such argument.*`mine`"
    ):
        compat.on_lightning(LibraryArguments)(str(tmp_path), mind=3)


def test_arguments_are_parsed_by_every_name() -> None:
    parser = compat.HfArgumentParser(compat.on_lightning(LibraryArguments))
    words = ["--output_dir", "x", "--use_cpu", "--no_cuda", "--mine", "5", "--lightning.profiler", "simple"]
    with pytest.warns(FutureWarning, match="no_cuda"):
        (args,) = parser.parse_args_into_dataclasses(words)
    assert (args.mine, args.lightning) == (5, {"profiler": "simple"})


def test_a_constructor_that_somebody_has_written_is_kept(tmp_path: Path) -> None:
    ours = compat.on_lightning(Written)
    with pytest.warns(FutureWarning, match="evaluation_strategy"):
        args = ours(folder=str(tmp_path), use_cpu=True, evaluation_strategy="epoch")
    assert (args.mine, args.eval_strategy, args.output_dir) == (8, "epoch", str(tmp_path))


def test_a_constructor_written_in_a_console_is_kept_too(tmp_path: Path) -> None:
    code = (
        "@dataclasses.dataclass\n"
        "class Typed(transformers.TrainingArguments):\n"
        "    def __init__(self, folder, **kwargs):\n"
        "        super().__init__(folder, **kwargs)\n"
    )
    names: dict[str, Any] = {"dataclasses": dataclasses, "transformers": transformers, "__name__": __name__}
    exec(compile(code, "<string>", "exec"), names)  # noqa: S102 (as a console does)
    assert compat.on_lightning(names["Typed"])(folder=str(tmp_path), use_cpu=True).output_dir == str(tmp_path)


def test_state_is_what_a_class_says_it_is(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Careful(transformers.TrainingArguments):
        code: str = "s3cret"

        def __getstate__(self) -> dict[str, Any]:
            return {**vars(self), "code": None}

    args = compat.on_lightning(Careful)(str(tmp_path), use_cpu=True)
    assert copy.deepcopy(args).code is None
    assert args.__reduce_ex__(4)[2]["code"] is None


def test_install_and_uninstall_leave_it_alone(tmp_path: Path) -> None:
    ours = compat.on_lightning(Library)
    compat.install()
    assert compat.on_lightning(Library) is Library
    assert isinstance(ours(small.Regression(), small.arguments(tmp_path)), compat.Trainer)
    compat.uninstall()
    assert compat.on_lightning(Library) is ours
    assert isinstance(ours(small.Regression(), small.arguments(tmp_path)), compat.Trainer)


def test_any_other_class_is_refused_with_the_way_out() -> None:
    with pytest.raises(RebaseError, match="not a class"):
        compat.on_lightning({})
    with pytest.raises(RebaseError, match=r"`builtins.dict`: derived neither.*call `compat.install\(\)`"):
        compat.on_lightning(dict)
