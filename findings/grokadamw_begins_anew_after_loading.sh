#!/usr/bin/env bash
# grokadamw 0.1.2: an optimizer that has loaded its state_dict steps as a new one.
#
# Its moments do not lie in `optimizer.state` but in the parameter groups, by parameter. What `load_state_dict` puts there
# is keyed by copies of the parameters, which no lookup finds again; the next step begins with zero moments and step 1,
# and nothing is said.
#
# Seen with torch 2.13.0, Python 3.11: after three steps and a reload, the fourth differs from that of the optimizer
# that was kept, and equals that of a new one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 "numpy<2.5" grokadamw==0.1.2

cat > steps.py <<'PY'
import copy
import io

import torch
from grokadamw import GrokAdamW


def step(model, optimizer, number):
    optimizer.zero_grad()
    model(torch.full((2, 3), float(number))).pow(2).sum().backward()
    optimizer.step()


torch.manual_seed(0)
kept = torch.nn.Linear(3, 1)
optimizer = GrokAdamW(kept.parameters(), lr=0.1)
for number in range(1, 4):
    step(kept, optimizer, number)

loaded, new = copy.deepcopy(kept), copy.deepcopy(kept)
file = io.BytesIO()
torch.save(optimizer.state_dict(), file)
file.seek(0)
reloaded = GrokAdamW(loaded.parameters(), lr=0.1)
reloaded.load_state_dict(torch.load(file, weights_only=True))

step(kept, optimizer, 4)
step(loaded, reloaded, 4)
step(new, GrokAdamW(new.parameters(), lr=0.1), 4)
print("kept    ", kept.weight.tolist())
print("reloaded", loaded.weight.tolist())
print("new     ", new.weight.tolist())
assert not torch.equal(loaded.weight, kept.weight)
assert torch.equal(loaded.weight, new.weight)
PY
venv/bin/python -W ignore steps.py
echo "as described"
