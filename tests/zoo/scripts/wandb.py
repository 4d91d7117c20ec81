import json
import os
from pathlib import Path

import wandb
from tests.zoo.tracked import CLOCKS, train

os.environ["WANDB_MODE"] = "offline"

tracked, log = [], wandb.Run.log


def noted(run, data, *args, **kwargs):
    # What the server would show, without times.
    tracked.append({name: value for name, value in data.items() if not name.endswith(CLOCKS)})
    log(run, data, *args, **kwargs)


wandb.Run.log = noted
train("wandb")
config = sorted(wandb.run.config.keys())
wandb.finish()

runs = len(list(Path("wandb").glob("offline-run-*")))
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump({"history": tracked, "config": config, "runs": runs}, file)
