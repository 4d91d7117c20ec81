"""A `--help` that fits on a screen and refers to the rest."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from compat.cli import completion

if TYPE_CHECKING:
    from collections.abc import Sequence

SCREEN = """\
usage: compat {command} --model.auto CLASS --model.name MODEL --data.{role} FILE [options]

{what}

model
  --model.name MODEL        a model on the Hub, or a folder
  --model.auto CLASS        AutoModelForSequenceClassification, AutoModelForCausalLM, …
  --model.num_labels N      and any other entry of its configuration
  --model.class_path CLASS  a LightningModule of your own, in place of these
data (--data.help compat.cli.lightning.DataFiles for all of it)
  --data.train FILE         .csv .tsv .json .jsonl .parquet .txt, a folder of `datasets`, or a name;
                            --data.validation, --data.test and --data.predict likewise
  --data.validation_split F share of the training rows to evaluate on
  --data.text_column NAME   and --data.text_pair_column, --data.label_column
  --data.max_length N       tokens that a text is cut to
training, by the names of Hugging Face's Trainer (--help hf for all of them)
  --output_dir DIR          checkpoints, and at the end the model
  --learning_rate R  --num_train_epochs N  --max_steps N  --per_device_train_batch_size N
  --gradient_accumulation_steps N  --bf16  --seed N  --warmup_steps N  --weight_decay R
  --eval_strategy epoch  --logging_steps N  --save_steps N  --load_best_model_at_end
  --resume_from_checkpoint auto
Lightning (--help trainer for all flags)
  --trainer.devices 2  --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor eval_loss
  --ckpt_path FILE          a .ckpt to start from
  --optimizer CLASS         in place of HF's; --lr_scheduler likewise
settings
  --config FILE             YAML or JSON: HF's arguments, a LightningCLI's configuration, or both
  --print_config            show what it comes to; COMPAT_{upper}__LEARNING_RATE and its like are read, too
  --print_shtab SHELL       completion for bash, zsh or tcsh
  --help_all                every option
"""

ABOUT = {
    "fit": ("train", "Train a model on Lightning. The trained model lies in --output_dir afterwards."),
    "validate": ("validation", "Evaluate a model; prints eval_loss and other metrics."),
    "test": ("test", "Test a model; prints test_loss and other metrics."),
    "predict": ("predict", "Predict; writes predictions.csv or predictions.jsonl into --output_dir."),
}

GROUPS = {"hf": "Arguments of Hugging Face's", "trainer": "Customize|.*trainer"}
"""Word after `--help` → the beginning of the title of a group."""


def show_help(cli: object, words: Sequence[str]) -> None:
    """Answer `--help`, `--help GROUP` and `--help_all`, and exit; do nothing for other words."""
    command = words[0] if words else ""
    if command not in ABOUT or not hasattr(cli, "_subcommand_parsers"):
        return
    parser = cli._subcommand_parsers[command]
    for index, word in enumerate(words[1:], start=1):
        if word in {"--help_all", "--help-all"}:
            parser.print_help()
        elif word.startswith(completion.OPTION):
            shell = word.partition("=")[2] or "".join(words[index + 1 : index + 2]) or "bash"
            sys.stdout.write(completion.script(cli._subcommand_parsers, shell))
        elif word in {"-h", "--help"}:
            _show(parser, command, words[index + 1] if len(words) > index + 1 else "")
        else:
            continue
        raise SystemExit(0)


def _show(parser: Any, command: str, group: str) -> None:
    if group not in GROUPS:
        role, what = ABOUT[command]
        sys.stdout.write(SCREEN.format(command=command, role=role, what=what, upper=command.upper()))
        return
    blocks = re.split(r"\n(?=\S)", parser.format_help())
    wanted = [block for block in blocks if re.match(GROUPS[group], block, re.IGNORECASE)]
    sys.stdout.write("\n".join(wanted) + "\n")
