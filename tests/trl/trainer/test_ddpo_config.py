from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from compat.errors import MissingLibraryError
from compat.trl.trainer import ddpo_config
from compat.trl.trainer.ddpo_config import DDPOConfig

NO_IMAGES = "only supports image logging"


def test_fields_are_those_of_trl_in_their_order() -> None:
    surface = Path(__file__).parents[2] / "conformance" / "surface" / "trl-0.7.11.json"
    theirs = json.loads(surface.read_text())["trainer/ddpo_config.py"]["DDPOConfig"]["fields"]
    ours = dataclasses.fields(DDPOConfig)
    assert [field.name for field in ours] == [*(field["name"] for field in theirs), "lightning"]
    for field, told in zip(ours, theirs, strict=False):
        if field.name != "exp_name" and field.default is not dataclasses.MISSING:
            assert repr(field.default) == told["default"], field.name


def test_trackers_without_images_are_told() -> None:
    with pytest.warns(UserWarning, match=NO_IMAGES):
        DDPOConfig()
    config = DDPOConfig(log_with="tensorboard", tracker_kwargs={"wandb": {"name": "run"}})
    assert config.to_dict()["tracker_kwargs/wandb/name"] == "run"


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ddpo_config, "is_torchvision_available", lambda: False)
    monkeypatch.setattr(ddpo_config, "is_bitsandbytes_available", lambda: False)
    with pytest.warns(UserWarning, match="requires torchvision"):
        DDPOConfig(log_with="wandb")
    with pytest.raises(MissingLibraryError, match=r"`train_use_8bit_adam=True`.*install bitsandbytes"):
        DDPOConfig(log_with="tensorboard", train_use_8bit_adam=True)
