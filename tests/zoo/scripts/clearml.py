import json
import os
import zipfile
from pathlib import Path

from clearml import Task
from tests.zoo.tracked import CLOCKS, train

os.environ["CLEARML_CACHE_DIR"] = "clearml"
Task.set_offline(True)
# Its search for the script's requirements takes minutes.
Path("requirements.txt").touch()
Task.force_requirements_env_freeze(requirements_file="requirements.txt")
task = Task.init(project_name="zoo", task_name="run", auto_resource_monitoring=False)
train("clearml")
folder = Path(task.get_offline_mode_folder())
task.close()

# What the server would show, without times.
with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
    parts = [json.loads(line) for line in archive.read("metrics.jsonl").decode().splitlines()]
    shown = json.loads(archive.read("task.json"))
tracked = [
    [point["metric"], point["variant"], point["iter"], point["value"]]
    for points in parts
    for point in points
    if not point["variant"].endswith(CLOCKS)
]
sections = {section: sorted(values) for section, values in shown["hyperparams"].items()}
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump({"metrics": tracked, "parameters": sections, "models": shown.get("models")}, file)
