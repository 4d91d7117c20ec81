"""PPOTrainer's arithmetic from the papers, in float64, and what it says of wrong input."""

from __future__ import annotations

import json
import logging
import math
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.loggers import CSVLogger

from compat.errors import ArgumentError
from compat.trl import PPOConfig, PPOTrainer
from tests.trl import golden, policies
from tests.trl.setups import parts

logging.getLogger("compat.trl").setLevel(logging.ERROR)

LIBRARY = golden.library("compat.trl")


def trainer_for(**options: Any) -> Any:
    return policies.trainer_for(LIBRARY, **options)


@pytest.fixture(scope="module")
def shared() -> Any:
    return trainer_for()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0)])
def test_advantages_are_those_of_the_paper(shared: Any, gamma: float, lam: float) -> None:
    """Sums of discounted temporal differences, whitened over the tokens of responses."""
    values, rewards = draw(3, 6), draw(3, 6, seed=1)
    shared.config.gamma, shared.config.lam = gamma, lam
    kept, advantages, returns = shared.compute_advantages(values, rewards, MASK)
    v, r, m = (values * MASK).tolist(), (rewards * MASK).tolist(), MASK.tolist()
    raw = [[0.0] * 6 for _ in range(3)]
    for row in range(3):
        deltas = [r[row][t] + gamma * (v[row][t + 1] if t < 5 else 0.0) - v[row][t] for t in range(6)]
        for t in range(6):
            raw[row][t] = sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, 6))
    chosen = [raw[i][t] for i in range(3) for t in range(6) if m[i][t]]
    mean = sum(chosen) / len(chosen)
    variance = sum((one - mean) ** 2 for one in chosen) / (len(chosen) - 1)
    expected = [[(raw[i][t] - mean) / math.sqrt(variance + 1e-8) for t in range(6)] for i in range(3)]
    torch.testing.assert_close(kept, values * MASK)
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(returns, torch.tensor(raw, dtype=torch.float64) + values * MASK)


def test_losses_are_those_of_the_paper(shared: Any) -> None:
    """The smaller of two surrogates, and half the larger of two squared errors, over tokens of responses."""
    shared.config.cliprange, shared.config.cliprange_value, shared.config.vf_coef = 0.2, 0.3, 0.25
    old, new, advantages, returns, values, predicted = (0.3 * draw(3, 6, seed=seed) for seed in range(6))
    logits = draw(3, 6, 5, seed=7)
    policy, value, stats = shared.loss(old, values, logits, predicted, new, MASK, advantages, returns)
    surrogates, errors, clipped, entropies = [], [], [], []
    for i in range(3):
        for t in range(6):
            if not MASK[i, t]:
                continue
            ratio, advantage = math.exp(new[i, t] - old[i, t]), advantages[i, t].item()
            bounded = min(max(ratio, 0.8), 1.2)
            surrogates.append(min(ratio * advantage, bounded * advantage))
            clipped.append(bounded * advantage < ratio * advantage)
            v, r, p = values[i, t].item(), returns[i, t].item(), predicted[i, t].item()
            errors.append(max((p - r) ** 2, (min(max(p, v - 0.3), v + 0.3) - r) ** 2))
            exponents = [math.exp(logit) for logit in logits[i, t].tolist()]
            shares = [exponent / sum(exponents) for exponent in exponents]
            entropies.append(-sum(share * math.log(share) for share in shares))
    count = len(errors)
    assert policy.item() == pytest.approx(-sum(surrogates) / count)
    assert value.item() == pytest.approx(0.25 * 0.5 * sum(errors) / count)
    assert stats["policy/clipfrac"].item() == pytest.approx(sum(clipped) / count)
    assert stats["policy/entropy"].item() == pytest.approx(sum(entropies) / count)
    assert stats["loss/total"].item() == pytest.approx(policy.item() + value.item())


def test_estimators_of_the_divergence(shared: Any) -> None:
    log_p, log_q = draw(2, 4).log_softmax(-1), draw(2, 4, seed=1).log_softmax(-1)
    expected = {
        "kl": log_p - log_q,
        "abs": (log_p - log_q).abs(),
        "mse": (log_p - log_q) ** 2 / 2,
        "full": (log_p.exp() * (log_p - log_q)).sum(-1),
    }
    for kind, value in expected.items():
        shared.config.kl_penalty = kind
        torch.testing.assert_close(shared._kl_penalty(log_p, log_q), value)
    shared.config.kl_penalty = "none"
    with pytest.raises(NotImplementedError, match=r"kl_penalty='none'.*kl, abs, mse, full"):
        shared._kl_penalty(log_p, log_q)
    shared.config.kl_penalty = "kl"


def test_a_score_is_the_reward_of_a_response_s_last_token(shared: Any) -> None:
    logprobs, reference = draw(3, 6), draw(3, 6, seed=1)
    shared.kl_ctl.value = 0.5
    rewards, penalties, kls = shared.compute_rewards(torch.tensor([1.0, 2.0, 3.0]), logprobs, reference, MASK)
    torch.testing.assert_close(kls, logprobs - reference)
    torch.testing.assert_close(penalties, -0.5 * (logprobs - reference))
    added = torch.zeros(3, 6, dtype=torch.float64)
    added[0, 4], added[1, 3], added[2, 5] = 1.0, 2.0, 3.0
    torch.testing.assert_close(rewards - penalties, added)


def test_rewards_of_log_probabilities_with_a_graph(shared: Any) -> None:
    logprobs = draw(3, 6).requires_grad_()
    rewards, _, _ = shared.compute_rewards(torch.tensor([1.0, 2.0, 3.0]), logprobs, logprobs + 1, MASK)
    rewards.sum().backward()
    assert logprobs.grad is not None


def steps(trainer: Any, count: int = 1, **masks: Any) -> list[dict[str, Any]]:
    queries, responses, scores = policies.texts(trainer.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [trainer.step(queries, responses, scores, **masks) for _ in range(count)]


def test_gradients_stay_behind_for_those_who_read_them() -> None:
    trainer = trainer_for()
    steps(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name
    trainer.optimizer.zero_grad(set_to_none=True)
    assert trainer.model.v_head.summary.weight.grad is None


def test_clipping_in_each_update() -> None:
    """TRL's way, the first update alone, is recorded; it is said, and there is a way out of it."""
    trainer = trainer_for(max_grad_norm=0.1, ppo_epochs=1)
    queries, responses, scores = policies.texts(trainer.tokenizer)
    with pytest.warns(UserWarning, match=r"max_grad_norm=0\.1.*first update alone"):
        trainer.step(queries, responses, scores)
    once = [p.detach().clone() for p in trainer.model.parameters()]
    trainer = trainer_for(max_grad_norm=0.1, ppo_epochs=1)
    trainer.model_params = list(trainer.model_params)
    trainer.step(queries, responses, scores)
    assert any(
        not torch.equal(one, other) for one, other in zip(once, trainer.model.parameters(), strict=True)
    )


def test_layers_shared_with_the_reference_do_not_train() -> None:
    model = policies.model_for(LIBRARY, "causal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = PPOTrainer(
            PPOConfig(batch_size=4, mini_batch_size=4, learning_rate=0.01, log_with=None),
            model,
            tokenizer=parts.tokenizer(),
            num_shared_layers=1,
        )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps(trainer)
    for name, parameter in model.named_parameters():
        is_shared = ".h.0." in name or "wte" in name or "wpe" in name
        assert torch.equal(parameter, before[name]) == is_shared, name
    for name, parameter in trainer.ref_model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_bf16_computes_in_half_precision_and_answers_in_single() -> None:
    plain, mixed = trainer_for(), trainer_for(accelerator_kwargs={"mixed_precision": "bf16"})
    by_flag = trainer_for(lightning={"precision": "bf16-mixed"})
    wanted, *others = (steps(trainer)[0] for trainer in (plain, mixed, by_flag))
    assert mixed.accelerator.mixed_precision == "bf16"
    assert mixed.accelerator.fabric.strategy.precision.precision == "bf16-mixed"
    for found in others:
        assert found["objective/logprobs"].dtype == np.float32
        difference = np.abs(found["objective/logprobs"] - wanted["objective/logprobs"]).max()
        assert 1e-4 < difference < 0.2
    np.testing.assert_array_equal(*(found["objective/logprobs"] for found in others))


def test_trackers_and_loggers(tmp_path: Any) -> None:
    trainer = trainer_for(
        log_with="tensorboard",
        project_kwargs={"logging_dir": str(tmp_path)},
        tracker_project_name="policies",
        lightning={"loggers": CSVLogger(tmp_path, name="csv", flush_logs_every_n_steps=1)},
    )
    (stats,) = steps(trainer)
    with pytest.warns(UserWarning, match="game logs will not be logged"):
        trainer.log_stats(stats, {}, [torch.tensor(1.0), torch.tensor(2.0)])
    trainer.accelerator.end_training()
    assert list((tmp_path / "policies").rglob("events*"))
    header, row = next((tmp_path / "csv").rglob("metrics.csv")).read_text().splitlines()
    found = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(found["env/reward_mean"]) == 1.5
    assert float(found["ppo/mean_scores"]) == pytest.approx(stats["ppo/mean_scores"], rel=1e-6)
    assert found["step"] == "1"


def test_save_and_go_on(tmp_path: Any) -> None:
    trainer = trainer_for()
    steps(trainer)
    with pytest.warns(UserWarning, match="offline"):
        trainer.save_pretrained(str(tmp_path))
    again = LIBRARY("models").AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    assert (tmp_path / "tokenizer.json").exists()


class Hub:
    """Stands for the Hub: keeps the names of what is uploaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.token = None

    def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
        return types.SimpleNamespace(repo_id=f"someone/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Any, **kwargs: Any) -> Any:
        return repo_id, sorted(path.name for path in Path(folder_path).iterdir())


def test_push_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    with pytest.warns(UserWarning, match="offline"):
        repository, files = trainer_for().push_to_hub("policy")
    assert repository == "someone/policy"
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {*files}


def test_a_model_card_where_the_user_is_known(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compat.trl.trainer.base.whoami", lambda: {"name": "someone"})
    trainer_for().create_model_card(str(tmp_path / "policy"), "A Policy")
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "# A Policy" in card
    assert f'from_pretrained("someone/{tmp_path}/policy")' in card


def test_the_best_model_goes_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[dict[str, Any]] = []
    monkeypatch.setattr(PPOTrainer, "push_to_hub", lambda self, **options: pushed.append(options))
    trainer = trainer_for(push_to_hub_if_best_kwargs={"repo_id": "someone/best"}, compare_steps=2)
    steps(trainer, 3)
    assert pushed == [{"repo_id": "someone/best"}]
    with pytest.raises(ValueError, match="You have to specify repo_id"):
        trainer_for(push_to_hub_if_best_kwargs={"private": True})


QUERY = torch.tensor([5, 6])
WRONG_STEPS = {
    "queries must be a list": ((QUERY, [QUERY] * 4, [QUERY] * 4), "queries must be a list of tensors"),
    "elements": (([QUERY] * 4, [[1]] * 4, [QUERY] * 4), "Elements in responses must be tensors"),
    "count": (([QUERY] * 3, [QUERY] * 4, [QUERY] * 4), r"Batch size \(4\) does not match.*3 for: queries"),
    "scores": (([QUERY] * 4, [QUERY] * 4, [torch.ones(1, 1)] * 4), "Scores must be 1-dimensional - got 2"),
}


@pytest.mark.parametrize("case", WRONG_STEPS)
def test_wrong_input_of_a_step(shared: Any, case: str) -> None:
    given, message = WRONG_STEPS[case]
    with pytest.raises(ValueError, match=message):
        shared.step(*given)


def test_scores_of_one_element_are_numbers(shared: Any) -> None:
    checked = shared._step_safety_checker(None, [QUERY], [QUERY], [torch.tensor([2.0])])
    assert checked[2][0].shape == ()


def test_a_query_is_one_row(shared: Any) -> None:
    with pytest.raises(ValueError, match="query_tensor must be a tensor of shape"):
        shared.generate(QUERY.unsqueeze(0))
    with pytest.raises(ValueError, match=r"list of tensors of shape .*numpy.ndarray.*`torch.tensor"):
        shared.generate(QUERY.numpy())


WRONG_PARTS = {
    "config": "config must be a PPOConfig",
    "tokenizer": "tokenizer must be a PreTrainedTokenizerBase",
    "model": "model must be a PreTrainedModelWrapper",
    "ref_model": "ref_model must be a PreTrainedModelWrapper or `None`",
    "dataset": "dataset must be a torch.utils.data.Dataset or datasets.Dataset",
    "lr_scheduler": "lr_scheduler must be a torch.optim.lr_scheduler.LRScheduler",
}


@pytest.mark.parametrize("name", WRONG_PARTS)
def test_wrong_parts(name: str) -> None:
    given = {
        "config": PPOConfig(batch_size=4, mini_batch_size=4),
        "model": policies.model_for(LIBRARY, "causal"),
        "tokenizer": parts.tokenizer(),
    }
    with pytest.raises(ValueError, match=WRONG_PARTS[name]):
        PPOTrainer(**{**given, name: "wrong"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lightning": {"precison": "32"}}, "'precison'.*no such flag.*precision"),
        ({"lightning": {"devices": "many"}}, "'devices': 'many'.*Give 1 or more"),
        ({"lightning": {"strategy": "nowhere"}}, "nowhere.*Fabric does not take it"),
        (
            {"accelerator_kwargs": {"gradient_accumulation_steps": 4}},
            "gradient_accumulation_steps.*of its own",
        ),
        ({"accelerator_kwargs": {"megatron_lm_plugin": object()}}, "megatron_lm_plugin.*Remove it"),
    ],
)
def test_flags_that_fabric_does_not_take(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        trainer_for(**options)


def test_columns_of_a_dataset_are_lists(shared: Any) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8, 9]], "score": [1.0, 2.0]}).with_format("torch")
    responses = shared.generate(rows["input_ids"], max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert len(responses) == 2
    checked = shared._step_safety_checker(2, rows["input_ids"], responses, list(rows["score"]))
    assert [query.tolist() for query in checked[0]] == [[5, 6], [7, 8, 9]]
