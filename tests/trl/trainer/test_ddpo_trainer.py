from __future__ import annotations

import math
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compat.trl.models import DefaultDDPOStableDiffusionPipeline
from compat.trl.trainer import base, ddpo_trainer
from compat.trl.trainer.ddpo_config import DDPOConfig
from compat.trl.trainer.ddpo_trainer import DDPOTrainer
from tests.trl import diffusion

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:Accelerator tracking only supports image logging", "ignore:.*has no `pytorch_lora_weights"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return diffusion.save(tmp_path_factory.mktemp("pipeline"))


def make(
    folder: str,
    *,
    use_lora: bool = False,
    reward: Any = None,
    hook: Any = lambda *_: None,
    pipeline: Any = None,
    **given: Any,
) -> DDPOTrainer:
    arguments = {
        "num_epochs": 1,
        "mixed_precision": "no",
        "save_freq": 100,
        "sample_num_steps": 2,
        "sample_batch_size": 2,
        "train_learning_rate": 1e-3,
    }
    return DDPOTrainer(
        DDPOConfig(**{**arguments, **given}),
        reward or (lambda images, prompts, metadata: (images.mean(dim=(1, 2, 3)), {"count": len(prompts)})),
        lambda: ("a boat", {"a": 1}),
        pipeline or DefaultDDPOStableDiffusionPipeline(folder, use_lora=use_lora),
        hook,
    )


def weights_of(trainer: DDPOTrainer) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in trainer.sd_pipeline.unet.named_parameters()}


def test_the_loss_is_that_of_ppo() -> None:
    advantages, ratios = [1.0, -2.0, 0.5, -1.0], [1.5, 0.5, 0.9, 1.3]
    terms = [
        max(-advantage * ratio, -advantage * min(max(ratio, 0.9), 1.1))
        for advantage, ratio in zip(advantages, ratios, strict=True)
    ]
    loss = DDPOTrainer.loss(None, torch.tensor(advantages), 0.1, torch.tensor(ratios))
    assert loss.item() == pytest.approx(math.fsum(terms) / 4)
    one = DDPOTrainer.loss(None, torch.tensor([-1.0]), 1e-4, torch.tensor([1.0]))
    assert one.item() == 1.0


def test_samples_and_the_loss_of_one_step(folder: str) -> None:
    with pytest.warns(UserWarning, match="No image_samples_hook provided; no images will be logged"):
        trainer = make(folder, hook=None)
    (sample,), ((images, prompts, metadata),) = trainer._generate_samples(1, 2)
    assert {name: tuple(value.shape) for name, value in sample.items()} == {
        "prompt_ids": (2, 12),
        "prompt_embeds": (2, 12, 16),
        "timesteps": (2, 2),
        "latents": (2, 2, 4, 8, 8),
        "next_latents": (2, 2, 4, 8, 8),
        "log_probs": (2, 2),
        "negative_prompt_embeds": (2, 12, 16),
    }
    assert (images.shape, prompts, metadata) == ((2, 3, 16, 16), ("a boat",) * 2, ({"a": 1},) * 2)
    steps = [sample[name][:, 0] for name in ("latents", "timesteps", "next_latents", "log_probs")]
    embeds = torch.cat([sample["negative_prompt_embeds"], sample["prompt_embeds"]])
    loss, approx_kl, clipfrac = trainer.calculate_loss(*steps, torch.tensor([9.0, -1.0]), embeds)
    # The policy is still what it was, and advantages end at 5.
    assert loss.item() == pytest.approx(-2.0, abs=1e-4)
    assert (approx_kl.item(), clipfrac.item()) == (pytest.approx(0.0, abs=1e-8), 0.0)
    assert loss.requires_grad


@pytest.mark.parametrize("use_lora", [False, True])
def test_a_run_goes_on_where_it_was_saved(use_lora: bool, folder: str, tmp_path: Path) -> None:
    def project(name: str) -> dict[str, Any]:
        return {"project_dir": str(tmp_path / name), "automatic_checkpoint_naming": True, "total_limit": 2}

    trainer = make(folder, use_lora=use_lora, num_epochs=3, save_freq=1, project_kwargs=project("one"))
    start = weights_of(trainer)
    trainer.train()
    whole = weights_of(trainer)
    changed = [name for name in whole if not torch.equal(whole[name], start[name])]
    trained = [name for name, each in trainer.sd_pipeline.unet.named_parameters() if each.requires_grad]
    # Keys see their bias in every score alike: softmax takes it away.
    assert set(changed) <= set(trained)
    assert len(changed) > 0.9 * len(trained)
    # `zero_grad` leaves what others may look at.
    assert all(not each.grad.any() for each in trainer._trained_parameters)

    found = tmp_path / "one" / "checkpoints"
    given = {"use_lora": use_lora, "num_epochs": 3, "save_freq": 1, "project_kwargs": project("two")}
    newest = make(folder, resume_from=str(found), **given)
    assert (newest.config.resume_from, newest.first_epoch) == (str(found / "checkpoint_1"), 2)
    again = make(folder, resume_from=str(found / "checkpoint_0"), **given)
    assert (again.first_epoch, again.accelerator.save_iteration) == (1, 1)
    again.step(2, 0)
    assert all(torch.equal(weight, whole[name]) for name, weight in weights_of(again).items())
    assert (tmp_path / "two" / "checkpoints" / "checkpoint_1").is_dir()


def test_a_folder_without_checkpoints_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`resume_from=.*No checkpoints found in"):
        make(folder, resume_from=str(tmp_path))


def test_checkpoints_without_a_place_are_refused_before_training(folder: str) -> None:
    trainer = make(folder, num_epochs=2, save_freq=1)
    before = weights_of(trainer)
    with pytest.raises(
        ValueError, match=r"`save_freq=1`: checkpoints have no place.*automatic_checkpoint_naming"
    ):
        trainer.train()
    trainer.train(epochs=0)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(trainer).items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_batch_size": 1, "train_batch_size": 2}, r"\(1\) must be greater than or equal to .* \(2\)"),
        ({"sample_batch_size": 3, "train_batch_size": 2}, r"\(3\) must be divisible by .* \(2\)"),
        ({"train_gradient_accumulation_steps": 3}, r"samples per epoch \(4\) must be divisible by .* \(3\)"),
    ],
)
def test_batches_that_do_not_divide_are_refused(given: dict[str, Any], message: str, folder: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(folder, **given)


def test_strategies_that_take_models_apart_are_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpo_trainer.FabricAccelerator, "is_sharding", True)
    with pytest.raises(ValueError, match=r"`lightning=.*Choose the strategy 'ddp'"):
        make(folder)


def test_rewards_may_be_futures_and_come_from_threads(folder: str) -> None:
    def reward(images: Any, prompts: Any, metadata: Any) -> tuple[Any, Any]:
        rewards: Future[Any] = Future()
        rewards.set_result([float(len(each)) for each in prompts])
        return rewards, images

    trainer = make(folder, reward=reward, async_reward_computation=True, max_workers=1)
    pairs = [["first", ("a", "bb"), ()], ["second", ("ccc",), ()]]
    rewards, metadata = trainer.compute_rewards(pairs, is_async=True)
    assert [each.tolist() for each in rewards] == [[1.0, 2.0], [3.0]]
    assert metadata == ("first", "second")


def test_images_are_shown_with_their_rewards(folder: str) -> None:
    shown: list[Any] = []
    trainer = make(folder, hook=lambda *given: shown.append(given))
    assert trainer.step(0, 5) == 9
    ((pairs, step, tracker),) = shown
    assert (len(pairs), step, tracker) == (2, 5, None)
    images, prompts, metadata, rewards, told = pairs[0]
    torch.testing.assert_close(rewards, images.mean(dim=(1, 2, 3)))
    assert (prompts, metadata, told) == (("a boat",) * 2, ({"a": 1},) * 2, {"count": 2})


def test_parts_of_a_unet_are_trained_alone(folder: str) -> None:
    class Parts(DefaultDDPOStableDiffusionPipeline):
        def get_trainable_layers(self) -> Any:
            self.unet.requires_grad_(False)
            return [each.requires_grad_() for name, each in self.unet.named_parameters() if "to_q" in name]

    trainer = make(folder, pipeline=Parts(folder, use_lora=False))
    before = weights_of(trainer)
    trainer.train()
    after = weights_of(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "to_q" in name}
    assert trainer._policy is trainer.sd_pipeline.unet


def test_gradients_of_parts_are_averaged_over_processes(folder: str) -> None:
    trainer = make(folder)
    trainer.trainable_layers = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))]
    trainer.trainable_layers[0].grad = torch.tensor([2.0, 4.0])
    trainer.accelerator = SimpleNamespace(
        num_processes=2, reduce=lambda grad, reduction: (grad / 2, reduction)[0]
    )
    trainer._average_gradients()
    assert trainer.trainable_layers[0].grad.tolist() == [2.0, 4.0]
    trainer._is_whole = False
    trainer._average_gradients()
    assert trainer.trainable_layers[0].grad.tolist() == [1.0, 2.0]


def test_what_is_saved_has_a_card_where_the_hub_knows_its_user(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(folder)
    monkeypatch.setattr(base, "whoami", lambda: {"name": "someone"})
    trainer._save_pretrained(tmp_path / "one")
    assert "# TRL DDPO Model" in (tmp_path / "one" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "one" / "unet").is_dir()

    def offline() -> None:
        raise OSError

    monkeypatch.setattr(base, "whoami", offline)
    with pytest.warns(UserWarning, match="Cannot retrieve user information"):
        trainer.create_model_card(str(tmp_path / "two"))
    assert not (tmp_path / "two").exists()


def test_half_precision_is_for_what_is_not_trained(folder: str) -> None:
    trainer = make(folder, use_lora=True, mixed_precision="bf16", num_epochs=1)
    trainer.train()
    pipeline = trainer.sd_pipeline
    assert {part.dtype for part in (pipeline.vae, pipeline.text_encoder)} == {torch.bfloat16}
    dtypes = {("lora_" in name, each.dtype) for name, each in pipeline.unet.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
