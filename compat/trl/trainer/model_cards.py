"""Templates of model cards, with the fields `model_name` and `model_id`."""

from __future__ import annotations

PPO_CARD = """---
license: apache-2.0
tags:
- trl
- ppo
- transformers
- reinforcement-learning
---

# {model_name}

A language model that was trained further by reinforcement learning (PPO), with
[TRL](https://github.com/huggingface/trl) 0.7's interface on PyTorch Lightning.

## Usage

```python
from transformers import pipeline

generator = pipeline("text-generation", model="{model_id}")
print(generator("Once upon a time"))
```

With its value head, to train it further:

```python
from transformers import AutoTokenizer
from compat.trl import AutoModelForCausalLMWithValueHead

tokenizer = AutoTokenizer.from_pretrained("{model_id}")
model = AutoModelForCausalLMWithValueHead.from_pretrained("{model_id}")
logits, _, values = model(**tokenizer("Once upon a time", return_tensors="pt"))
```
"""

DDPO_CARD = """---
license: apache-2.0
tags:
- trl
- ddpo
- diffusers
- reinforcement-learning
- text-to-image
- stable-diffusion
---

# {model_name}

A Stable Diffusion pipeline that has been trained by DDPO (arXiv:2305.13301) to make images which a reward
function likes. It draws what a text says.
"""
