"""Every form into every other and back, on models of several kinds."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compat.checkpoint.convert import FORMS, convert, dcp, lazy
from compat.checkpoint.convert.forms import form_of
from compat.errors import CheckpointError
from tests.checkpoint.convert import made
from tests.distributed import jobs, sharded

NAMES = {
    "hf": "checkpoint-2",
    "lightning": "step.ckpt",
    "sharded": "checkpoint-2-sharded",
    "pretrained": "final",
}
RESUMABLE = ("hf", "lightning", "sharded")
LIBRARIES = ("transformers", "compat")

# peft asks a model of transformers 5 by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`name/checkpoint-2` of each model, what its training came to as `name/end`, and the adapters' base."""

    def make(folder: Path) -> None:
        for name in made.MODELS:
            end = made.train("transformers", folder / name, name)
            torch.save(end, folder / name / "end")
        sharded.make(made.MODELS["gpt2"]).save_pretrained(folder / "base")

    return jobs.once(tmp_path_factory, "converted", make)


def options(trained: Path, name: str) -> dict[str, Any]:
    return {"config": trained / "base"} if name == "lora" else {}


@pytest.mark.parametrize("name", made.MODELS)
def test_every_way_and_back(trained: Path, tmp_path: Path, name: str) -> None:
    original, more = trained / name / "checkpoint-2", options(trained, name)
    forms = ("lightning", "sharded", "hf", "sharded", "lightning", "hf")
    assert {*itertools.pairwise(("hf", *forms))} == {*itertools.permutations(RESUMABLE, 2)}
    here = original
    for step, form in enumerate(forms):
        there = tmp_path / str(step) / NAMES[form]
        done = convert(here, there, form, **more)
        assert (done.path, done.source, done.form) == (there, form_of(here).name, form)
        assert form_of(there).name == form
        if form == "hf":
            made.assert_equal(original, there)
        here = there


@pytest.mark.parametrize("name", made.MODELS)
@pytest.mark.parametrize("form", RESUMABLE)
def test_weights_for_from_pretrained(trained: Path, tmp_path: Path, name: str, form: str) -> None:
    original, more = trained / name / "checkpoint-2", options(trained, name)
    convert(original, tmp_path / NAMES[form], form, **more)
    done = convert(tmp_path / NAMES[form], tmp_path / "final", **more)
    assert done.form == "pretrained"
    files = {path.name for path in (tmp_path / "final").iterdir()}
    assert files & {"config.json", "adapter_config.json"}
    assert not files & {
        "trainer_state.json",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    }
    assert made.same(made.weights(tmp_path / "final"), made.weights(original))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("name", "by"), [("gpt2", "lightning"), ("t5", "sharded"), ("lora", "lightning")])
def test_resumed_with_the_same_losses(
    trained: Path, tmp_path: Path, name: str, by: str, library: str
) -> None:
    there = tmp_path / NAMES[by]
    convert(trained / name / "checkpoint-2", there, by, **options(trained, name))
    convert(there, tmp_path / "checkpoint-2")
    losses, weights = made.train(library, tmp_path / "run", name, resume=tmp_path / "checkpoint-2")
    assert len(losses) == made.STEPS
    assert made.same((losses, weights), torch.load(trained / name / "end"))


def test_a_model_is_loaded_from_what_was_converted(trained: Path, tmp_path: Path) -> None:
    convert(trained / "gpt2" / "checkpoint-2", tmp_path / "final", max_shard_size="20KB")
    assert (tmp_path / "final" / "model.safetensors.index.json").is_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    original = transformers.AutoModelForCausalLM.from_pretrained(trained / "gpt2" / "checkpoint-2")
    assert made.same(dict(model.state_dict()), dict(original.state_dict()))
    convert(tmp_path / "final", tmp_path / "again")
    assert made.same(made.weights(tmp_path / "again"), made.weights(trained / "gpt2" / "checkpoint-2"))


def test_another_type(trained: Path, tmp_path: Path) -> None:
    source = trained / "bert" / "checkpoint-2"
    convert(source, tmp_path / "final", dtype="bfloat16")
    found = made.weights(tmp_path / "final")
    assert made.same(found, {name: tensor.bfloat16() for name, tensor in made.weights(source).items()})
    told = transformers.AutoConfig.from_pretrained(tmp_path / "final").to_dict()
    assert {str(told[key]) for key in ("dtype", "torch_dtype") if key in told} == {"bfloat16"}
    with pytest.raises(CheckpointError, match="`--dtype bfloat16`: the form `hf`"):
        convert(source, tmp_path / "checkpoint-3", dtype="bfloat16")
    with pytest.raises(CheckpointError, match="`--dtype int8`"):
        convert(source, tmp_path / "other", dtype="int8")


def pickled(source: Path, target: Path, shards: int) -> None:
    """A copy of a `from_pretrained` folder, its weights as pickles."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    state = made.weights(source)
    names = list(state)
    if shards == 1:
        torch.save(state, target / "pytorch_model.bin")
        return
    places = {name: f"pytorch_model-{at % shards + 1:05}-of-{shards:05}.bin" for at, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({name: state[name] for name in names if places[name] == file}, target / file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (target / "pytorch_model.bin.index.json").write_text(index)


@pytest.mark.parametrize("shards", [1, 3])
def test_weights_in_pickles(trained: Path, tmp_path: Path, shards: int) -> None:
    source = trained / "t5" / "checkpoint-2"
    pickled(source, tmp_path / "old", shards)
    convert(tmp_path / "old", tmp_path / "new")
    assert made.same(made.weights(tmp_path / "new"), made.weights(source))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("stage", [2, 3])
def test_what_deepspeed_has_spread(trained: Path, tmp_path: Path, stage: int, processes: int) -> None:
    state = made.weights(trained / "gpt2" / "checkpoint-2")
    made.zero(tmp_path / "checkpoint-1", state, stage, processes)
    config = trained / "gpt2" / "checkpoint-2"
    done = convert(tmp_path / "checkpoint-1", tmp_path / "final", config=config)
    assert (done.source, done.form) == ("deepspeed", "pretrained")
    assert made.same(made.weights(tmp_path / "final"), state)
    convert(tmp_path / "checkpoint-1" / "global_step1", tmp_path / "step.ckpt", config=config)
    ours = torch.load(tmp_path / "step.ckpt", weights_only=True)
    assert made.same(ours["state_dict"]["model.lm_head.weight"], state["transformer.wte.weight"])
    convert(tmp_path / "checkpoint-1", tmp_path / "out" / "checkpoint-1", config=config)
    assert made.same(made.weights(tmp_path / "out" / "checkpoint-1"), state)


def test_whole_states_of_fsdp_become_plain_ones(trained: Path, tmp_path: Path) -> None:
    source, full = trained / "gpt2" / "checkpoint-2", tmp_path / "checkpoint-2"
    convert(source, tmp_path / "sharded", "sharded")
    state = dcp.read(tmp_path / "sharded" / "optimizer_0")["optimizer"]
    named = {
        key: {what: lazy.real(value) for what, value in of.items()} for key, of in state["state"].items()
    }
    shutil.copytree(source, full)
    (full / "optimizer.pt").unlink()
    torch.save({**state, "state": named}, full / "optimizer.bin")
    torch.save(made.weights(source), full / "pytorch_model_fsdp.bin")
    convert(full, tmp_path / "out" / "checkpoint-2")
    made.assert_equal(source, tmp_path / "out" / "checkpoint-2")


def test_forms_are_described_once() -> None:
    assert [form.name for form in FORMS if form.write] == ["lightning", "sharded", "hf", "pretrained"]
    assert all(form.way_out for form in FORMS if form.write is None)
    assert {form.name for form in FORMS} == {*NAMES, "deepspeed"}
    page = Path(__file__).parents[3].joinpath("docs", "converting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (yes|no)[^|]*\|$", page, re.MULTILINE)
    assert sorted(rows) == sorted((form.name, "yes" if form.write else "no") for form in FORMS)
