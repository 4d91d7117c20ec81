"""What is pushed to the Hub, beside what `transformers.Trainer` pushes in the same situation."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from huggingface_hub import CommitInfo, ModelCard

import compat
from compat.arguments.training import Secret
from tests.parity.parts.models import VOCABULARY, gpt2
from tests.small import arguments
from tests.trainer.hub import Hub, SlowHub, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "hf_hush"  # noqa: S105
REPO = "someone/pupil"
OURS = ("compat_manifest.json", "data_state.pth")
"""What our checkpoints have beside HF's files."""

STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
KINDS = pytest.mark.parametrize("kind", [compat.Trainer, transformers.Trainer], ids=["ours", "theirs"])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return connect(monkeypatch, tmp_path / "hub")


def writer(folder: Path, kind: type = compat.Trainer, **options: Any) -> Any:
    torch.manual_seed(0)
    ids = [torch.arange(start, start + 6) % VOCABULARY for start in range(12)]
    data = [{"input_ids": row, "labels": row} for row in ids]
    defaults = {
        "push_to_hub": True,
        "hub_model_id": REPO,
        "hub_token": TOKEN,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    args = arguments(folder, **{**defaults, **options})
    return kind(model=gpt2(), args=args, train_dataset=data, eval_dataset=data[:3])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    found = []
    for kind in (compat.Trainer, transformers.Trainer):
        hub = connect(monkeypatch, tmp_path / f"hub-{kind.__module__}")
        run = writer(tmp_path / kind.__module__, kind, hub_strategy=strategy)
        run.train()
        run.push_to_hub(language="en", tags="small", dataset="numbers")
        card = (hub.folder(REPO) / "README.md").read_text()
        weights = (hub.folder(REPO) / "model.safetensors").read_bytes()
        files = {name for name in hub.files(REPO) if name.split("/")[-1] not in OURS}
        found.append((files, hub.repos, card, weights, len(hub.tokens), set(hub.tokens)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("strategy", "messages", "folders"),
    [
        ("end", ["End of training"], set()),
        (
            "every_save",
            ["Training in progress, step 2", "Training in progress, step 4", "End of training"],
            set(),
        ),
        (
            "checkpoint",
            [
                "Training in progress, step 2",
                "Training in progress, step 2, checkpoint",
                "Training in progress, step 4",
                "Training in progress, step 4, checkpoint",
                "End of training",
            ],
            {"last-checkpoint"},
        ),
        (
            "all_checkpoints",
            [
                "Training in progress, step 2",
                "Training in progress, step 2, checkpoint",
                "Training in progress, step 4",
                "Training in progress, step 4, checkpoint",
                "End of training",
            ],
            {"checkpoint-2", "checkpoint-4"},
        ),
    ],
)
def test_strategies(tmp_path: Path, hub: Hub, strategy: str, messages: list[str], folders: set[str]) -> None:
    run = writer(tmp_path / "out", hub_strategy=strategy)
    run.train()
    commit = run.push_to_hub()
    assert isinstance(commit, CommitInfo)
    assert hub.repos[REPO].commits == [("main", message) for message in messages]
    assert {name.split("/")[0] for name in hub.files(REPO) if "/" in name} == folders
    top = {"README.md", "config.json", "generation_config.json", "model.safetensors", "training_args.bin"}
    assert {name for name in hub.files(REPO) if "/" not in name} == top
    if folders:
        engine = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
        folder = max(folders)
        assert {f"{folder}/{name}" for name in engine} <= hub.files(REPO)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_token_reaches_the_hub_and_no_file(tmp_path: Path, hub: Hub, strategy: str) -> None:
    run = writer(tmp_path / "out", hub_strategy=strategy)
    run.train()
    run.save_state()
    run.push_to_hub()
    assert set(hub.tokens) == {TOKEN}
    assert run.args.hub_token == TOKEN
    assert type(run.args.hub_token) is str
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert [path.name for path in files if TOKEN.encode() in path.read_bytes()] == []
    saved = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert saved.hub_token is None
    assert saved.hub_model_id == REPO


def test_a_secret_is_a_string_that_is_not_kept() -> None:
    secret = Secret("hush")
    assert secret == "hush"  # noqa: S105
    assert isinstance(secret, str)
    assert secret.__reduce__() == (type(None), ())


@KINDS
def test_branch_message_and_token_of_one_push(tmp_path: Path, hub: Hub, kind: type) -> None:
    run = writer(tmp_path / "out", kind, hub_strategy="end")
    future = run.push_to_hub("Only this", blocking=False, token="hf_other", revision="draft")  # noqa: S106
    assert future.result().commit_message == "Only this"
    assert hub.repos[REPO].commits == [("draft", "Only this")]
    assert hub.tokens == [TOKEN, "hf_other"]
    assert hub.files(REPO) == set()
    assert "model.safetensors" in hub.files(REPO, "draft")


@pytest.mark.parametrize(("by_argument", "given"), [(None, True), (True, None), (True, False), (None, None)])
def test_privacy(tmp_path: Path, hub: Hub, by_argument: bool | None, given: bool | None) -> None:
    run = writer(tmp_path / "out", push_to_hub=False, hub_private_repo=by_argument)
    assert hub.repos == {}
    run.push_to_hub(private=given)
    assert hub.repos[REPO].private is (by_argument if given is None else given)
    assert run.args.hub_private_repo is by_argument


def test_a_repository_of_its_own(tmp_path: Path, hub: Hub) -> None:
    run = writer(tmp_path / "pupil-two", push_to_hub=False, hub_model_id=None)
    run.init_hf_repo(token="hf_other", private=True)  # noqa: S106
    assert run.hub_model_id == "someone/pupil-two"
    assert hub.repos["someone/pupil-two"].private is True
    assert hub.tokens == ["hf_other"]


def test_an_init_hf_repo_of_4_37(tmp_path: Path, hub: Hub) -> None:
    class Old(compat.Trainer):
        def init_hf_repo(self):
            self.hub_model_id, self.push_in_progress = "someone/else", None
            hub.create_repo("someone/else", private=True)

    writer(tmp_path / "out", Old, push_to_hub=False).push_to_hub()
    assert hub.repos["someone/else"].commits == [("main", "End of training")]


def test_saving_pushes(tmp_path: Path, hub: Hub) -> None:
    run = writer(tmp_path / "out", hub_strategy="end")
    run.save_model()
    assert hub.repos[REPO].commits == [("main", "Model save")]
    assert set(hub.tokens) == {TOKEN}


def test_pushes_are_an_event(tmp_path: Path, hub: Hub) -> None:
    seen: list[tuple[int, int]] = []

    class Watching(compat.TrainerCallback):
        def on_push_begin(self, args, state, control, model=None, **kwargs):
            assert model is run.model
            seen.append((state.global_step, len(hub.repos[REPO].commits)))

    run = writer(tmp_path / "out", hub_strategy="every_save")
    run.add_callback(Watching())
    run.train()
    run.push_to_hub()
    assert seen == [(2, 0), (4, 1), (4, 2)]


def test_the_model_card(tmp_path: Path) -> None:
    run = writer(tmp_path, push_to_hub=False)
    run.train()
    run.create_model_card(language="en", license="mit", tags="small", model_name="Pupil", dataset="numbers")
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.language, card.data.license) == (["en"], "mit")
    assert card.data.library_name == "transformers"
    assert {"small", "generated_from_trainer"} <= set(card.data.tags)
    assert "# Pupil" in card.text
    evaluated = [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert f"Loss: {evaluated[-1]['eval_loss']:.4f}" in card.text
    assert "learning_rate: 5e-05" in card.text


# While training goes on.

EACH_STEP = {"save_steps": 1, "hub_strategy": "every_save"}


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowHub]:
    hub = connect(monkeypatch, tmp_path / "hub", SlowHub)
    yield hub
    hub.gate.set()
    if hub.client._thread_pool is not None:
        hub.client._thread_pool.shutdown()


class Watch(compat.TrainerCallback):
    """Calls a function at an event, with the trainer's state."""

    def __init__(self, event: str, act: Callable[[Any], None]) -> None:
        self.act = act
        setattr(self, event, self._fire)

    def _fire(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.act(state)


def test_training_goes_on_during_a_push_and_saves_push_nothing_then(tmp_path: Path, slow: SlowHub) -> None:
    run = writer(tmp_path / "out", **EACH_STEP)

    def look(state: Any) -> None:
        if state.global_step == 3:
            assert slow.repos[REPO].commits == []
            slow.gate.set()
            run.push_in_progress.wait_until_done()

    run.add_callback(Watch("on_step_begin", look))
    run.train()
    messages = [f"Training in progress, step {step}" for step in (1, 4)]
    assert slow.repos[REPO].commits == [("main", message) for message in messages]
    assert [entry["step"] for entry in run.state.log_history if "loss" in entry] == [1, 2, 3, 4]
    assert slow.at_once == 1


def test_pushes_queue_up_where_each_save_is_to_push(tmp_path: Path, slow: SlowHub) -> None:
    run = writer(tmp_path / "out", hub_always_push=True, **EACH_STEP)

    def look(state: Any) -> None:
        assert slow.begun == ["Training in progress, step 1"]
        # The last push is waited for after this event.
        threading.Timer(0.2, slow.gate.set).start()

    run.add_callback(Watch("on_train_end", look))
    run.train()
    assert slow.begun == [f"Training in progress, step {step}" for step in (1, 2, 3, 4)]
    assert len(slow.repos[REPO].commits) == 4
    assert slow.at_once == 1


@pytest.mark.parametrize("at_once", [False, True])
def test_a_push_that_fails_stops_nothing_and_is_said_once(
    tmp_path: Path, slow: SlowHub, caplog: pytest.LogCaptureFixture, at_once: bool
) -> None:
    slow.error, slow.fails_at_once = OSError("no route to the Hub"), at_once
    slow.gate.set()
    run = writer(tmp_path / "out", **{**EACH_STEP, "hub_strategy": "checkpoint"})
    waits = Watch(
        "on_step_begin", lambda state: run.push_in_progress and run.push_in_progress.wait_until_done()
    )
    run.add_callback(waits)
    run.train()
    assert run.state.global_step == 4
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in (1, 2, 3, 4)
    }
    said = [message for message in caplog.messages if "push" in message]
    assert len(said) == 2
    assert said[0].startswith(
        f"A push to `{REPO}` has failed: OSError: no route to the Hub. Training goes on"
    )
    assert said[1].startswith(f"The last push to `{REPO}` has failed: OSError: no route to the Hub.")
    assert "`trainer.push_to_hub()`" in said[1]


def test_a_push_that_works_again_ends_well(
    tmp_path: Path, slow: SlowHub, caplog: pytest.LogCaptureFixture
) -> None:
    slow.error = OSError("no route to the Hub")
    slow.gate.set()
    run = writer(tmp_path / "out", **EACH_STEP)

    def look(state: Any) -> None:
        if run.push_in_progress is not None:
            run.push_in_progress.wait_until_done()
        if state.global_step == 2:
            slow.error = None

    run.add_callback(Watch("on_step_begin", look))
    run.train()
    messages = [f"Training in progress, step {step}" for step in (3, 4)]
    assert slow.repos[REPO].commits == [("main", message) for message in messages]
    assert len([message for message in caplog.messages if "push" in message]) == 1


def test_a_callback_that_fails_at_a_push_ends_the_run(tmp_path: Path, hub: Hub) -> None:
    def fail(state: Any) -> None:
        msg = "broken"
        raise RuntimeError(msg)

    run = writer(tmp_path / "out", **EACH_STEP)
    run.add_callback(Watch("on_push_begin", fail))
    with pytest.raises(RuntimeError, match="broken"):
        run.train()


def test_a_checkpoint_that_is_uploaded_stays_until_then(tmp_path: Path, slow: SlowHub) -> None:
    run = writer(tmp_path / "out", **{**EACH_STEP, "hub_strategy": "all_checkpoints"}, save_total_limit=1)
    first = str(tmp_path / "out" / "checkpoint-1")
    under_way: list[set[str]] = []

    def look(state: Any) -> None:
        if state.global_step in {1, 3}:
            under_way.append(run._hub_uploads.uploading())
        if state.global_step == 3:
            assert os.path.isdir(first)
            slow.gate.set()
            run.push_in_progress.wait_until_done()
            under_way.append(run._hub_uploads.uploading())

    run.add_callback(Watch("on_step_begin", look))
    run.train()
    assert under_way == [{str(tmp_path / "out"), first}, {str(tmp_path / "out"), first}, set()]
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-4"}
    assert {name.split("/")[0] for name in slow.files(REPO) if "/" in name} == {
        "checkpoint-1",
        "checkpoint-4",
    }
    assert slow.files(REPO) >= {f"checkpoint-1/{name}" for name in ("model.safetensors", "optimizer.pt")}


def test_no_folder_goes_while_the_hubs_client_lists_what_it_uploads(tmp_path: Path, slow: SlowHub) -> None:
    run = writer(tmp_path / "out", **EACH_STEP)
    seen: list[tuple[int, list[str]]] = []

    def look(state: Any) -> None:
        seen.append((state.global_step, sorted(path.name for path in (tmp_path / "out").glob("_held-*"))))
        if state.global_step == 2:
            slow.gate.set()
            run.push_in_progress.wait_until_done()

    run.add_callback(Watch("on_step_begin", look))
    run.train()
    assert seen[:3] == [
        (0, []),
        (1, ["_held-checkpoint-1"]),
        (2, ["_held-checkpoint-1", "_held-checkpoint-2"]),
    ]
    assert not list((tmp_path / "out").glob("_held-*"))
    assert {name for name in slow.files(REPO) if name.startswith("_")} == set()


def test_the_end_waits_for_a_push_before_it_removes_what_is_pushed(tmp_path: Path, slow: SlowHub) -> None:
    run = writer(
        tmp_path / "out",
        **{**EACH_STEP, "hub_strategy": "all_checkpoints", "save_steps": 2, "eval_steps": 2},
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
    )
    run.add_callback(
        Watch(
            "on_step_end",
            lambda state: state.global_step == 4 and threading.Timer(0.5, slow.gate.set).start(),
        )
    )
    run.train()
    assert run.state.best_model_checkpoint == str(tmp_path / "out" / "checkpoint-2")
    assert slow.files(REPO) >= {f"checkpoint-2/{name}" for name in ("model.safetensors", "optimizer.pt")}


def test_a_push_by_hand_waits_for_the_one_under_way_before_it_writes(tmp_path: Path, slow: SlowHub) -> None:
    run = writer(tmp_path / "out", push_to_hub=True, **{**EACH_STEP, "max_steps": 1})
    written: list[bool] = []

    class Writing(type(run)):
        def save_model(self, *args: Any, **kwargs: Any) -> None:
            written.append(self.push_in_progress is None or self.push_in_progress.is_done())
            super().save_model(*args, **kwargs)

        def _finish_current_push(self) -> None:
            slow.gate.set()
            super()._finish_current_push()

    slow.gate.set()
    run.train()
    slow.gate.clear()
    run.__class__ = Writing
    run._push_from_checkpoint(str(tmp_path / "out" / "checkpoint-1"))
    run.push_to_hub()
    assert written == [True]
