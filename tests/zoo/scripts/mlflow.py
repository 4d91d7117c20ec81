import json

import mlflow
from mlflow import MlflowClient
from tests.zoo.tracked import CLOCKS, train

mlflow.set_tracking_uri("sqlite:///tracking.db")
mlflow.set_experiment("zoo")
mlflow.transformers.autolog()
mlflow.pytorch.autolog()

train("mlflow")

# What the server would show, without names of runs and times.
client = MlflowClient()
runs = client.search_runs([client.get_experiment_by_name("zoo").experiment_id])
histories = [
    {
        name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        for name in sorted(run.data.metrics)
        if not name.endswith(CLOCKS)
    }
    for run in runs
]
params = [dict(sorted(run.data.params.items())) for run in runs]
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump({"metrics": histories, "params": params, "status": [run.info.status for run in runs]}, file)
