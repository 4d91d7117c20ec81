import json
import os
import zipfile
from pathlib import Path

import comet_ml
from tests.zoo.tracked import CLOCKS, train

os.environ["COMET_START_ONLINE"] = "0"
os.environ["COMET_OFFLINE_DIRECTORY"] = "comet"
os.environ["COMET_DISABLE_AUTO_LOGGING"] = "0"
train("comet_ml")
comet_ml.end()

# What the server would show, without times.
tracked = []
for path in sorted(Path("comet").glob("*.zip")):
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("messages.json").decode().splitlines()
    payloads = [json.loads(line)["payload"] for line in lines]
    metrics = [payload["metric"] | payload for payload in payloads if "metric" in payload]
    tracked.append(
        [
            [metric["metricName"], metric.get("step"), metric["metricValue"]]
            for metric in metrics
            if not metric["metricName"].startswith("sys.") and not metric["metricName"].endswith(CLOCKS)
        ]
    )
with open("tracked.json", "w", encoding="utf-8") as file:
    json.dump(tracked, file)
