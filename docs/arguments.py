"""Writes docs/arguments.md from the tables that the code reads.

Run it by `make docs`; `tests/test_docs.py` fails where the page is not current.
"""

from __future__ import annotations

import sys
from pathlib import Path

from compat.arguments.deepspeed_entries import FILLED, FILLED_LATER
from compat.arguments.fields import FIELDS, GENERATIONS, Field
from compat.arguments.fsdp_entries import FSDP_CONFIG
from compat.arguments.generations import ALONE, OLD
from compat.arguments.lightning import FLAGS, Handling
from compat.arguments.optimizers import OPTIMIZERS, Optimizer
from compat.translate.rules import RULES, Kind, Rule
from compat.translate.strategy import CLASSES, FSDP_VERSIONS

PAGE = Path(__file__).with_suffix(".md")

RELEASES = {"4.37": "4.37.2", "4.53": "4.53.1", "5": "5.23.0"}
"""Generation → the release that was looked at."""

INTRODUCTION = """\
# Arguments

*This page is made from the tables that the code reads: `make docs` writes it, and the tests hold it current.*

`compat.TrainingArguments` and `compat.Seq2SeqTrainingArguments` take every argument of transformers
4.37, 4.53 and 5, under each of these releases, and each one is handled in exactly one way. `compat explain`
shows it for your own set:

```
compat explain --learning_rate 2e-5 --bf16 --evaluation_strategy steps
compat explain args.yaml --devices 8 --accelerator cuda
compat explain out/checkpoint-500/training_args.bin --format json
compat explain -- train.py --output_dir out
compat explain warmup_ratio lightning.profiler
```

The last one answers from these tables alone, and at once: what becomes of the arguments that it names. A
single flag with its value is answered as fast, unless the device or the exact release decides.

An old name means what today's name means, and one warning says so. Old *defaults* do not come back:
where a default has changed, the installed release's holds; they are listed below. A name that does not
exist, a value of the wrong type or out of range, and arguments that contradict each other are refused,
all at once, before anything is built.

Which arguments choose which strategy, and what each strategy does, is told in [strategies](strategies.md).
"""

KINDS = {
    Kind.FLAG: "Flags of Lightning's Trainer",
    Kind.STRATEGY: "Options of the strategy",
    Kind.MODULE: "What the LightningModule acts on",
    Kind.DATA: "Data",
    Kind.CALLBACK: "Callbacks",
    Kind.CHECKPOINT: "Checkpoints",
    Kind.HF: "Kept by HF's own code",
    Kind.RETIRED: "Retired: accepted, without effect, with one warning",
    Kind.REFUSED: "Refused",
}


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: object) -> str:
    """`text` as code; nothing where it is empty."""
    return f"`{text}`" if text != "" else ""


def releases(field: Field) -> str:
    """The generations that have an argument."""
    return "all" if field.generations == GENERATIONS else ", ".join(field.generations)


def becomes(rule: Rule) -> str:
    """What an argument becomes, without a value."""
    is_code = rule.kind is Kind.FLAG or "(" in rule.target or "=" in rule.target
    return code(rule.becomes) if is_code else rule.becomes


def handled() -> str:
    """One table for each kind of rule."""
    parts = []
    for kind, title in KINDS.items():
        rows = [
            (code(rule.field), releases(FIELDS[rule.field]), becomes(rule), rule.note)
            for rule in RULES.values()
            if rule.kind is kind
        ]
        if rows:
            parts.append(
                f"### {title}\n\n{table(('argument', 'transformers', 'becomes', 'how, or why'), rows)}"
            )
    return "\n\n".join(parts)


def old_names() -> str:
    """The names that the newest release no longer has."""
    rows = [
        (code(name), code(OLD[name].says) if name in OLD else "", "" if name in OLD else ALONE[name])
        for name, field in FIELDS.items()
        if field.is_old
    ]
    return table(("old name", "today", "otherwise"), rows)


def changed_defaults() -> str:
    """The defaults that differ between generations."""
    rows = [
        (
            code(field.name),
            *(
                code(repr(field.default_in(generation))) if generation in field.generations else "—"
                for generation in GENERATIONS
            ),
        )
        for field in FIELDS.values()
        if field.earlier
    ]
    return table(("argument", *(RELEASES[generation] for generation in GENERATIONS)), rows)


def optimizers() -> str:
    """What `optim` names, and what each of them needs."""
    rows = [
        (code(name), optimizer.releases or "4.53, 5", code(optimizer.package), conditions(optimizer))
        for name, optimizer in OPTIMIZERS.items()
    ]
    return table(("`optim`", "transformers", "install", "conditions"), rows)


def conditions(optimizer: Optimizer) -> str:
    """The conditions of an optimizer, each of which an error names."""
    if optimizer.cannot:
        return f"refused: {optimizer.cannot}"
    of_backward = {
        "": (),
        "layer by layer": ("one process, no accumulation",),
        "fused": ("one process, no fp16", "`compat.Trainer` alone"),
    }
    device = (f"on {optimizer.device} alone",) if optimizer.device else ()
    if optimizer.never_on:
        device = (f"not on {optimizer.never_on}",)
    return "; ".join((*device, *of_backward[optimizer.steps_in_backward]))


def flags() -> str:
    """What `lightning={...}` takes."""
    rows = [
        (
            code(flag.name),
            f"as {code(flag.says)}" if flag.handling is Handling.SAID else flag.handling.value,
            flag.note,
        )
        for flag in FLAGS.values()
    ]
    return table(("flag", "handling", "how, or why not"), rows)


def fsdp() -> str:
    """What becomes of each entry of `fsdp_config`."""
    rows = [
        (
            code(entry.key),
            code(entry.second) if entry.second else "nothing",
            code(entry.first) if entry.first else "nothing",
            code(entry.xla) if entry.xla else "nothing",
            entry.note,
        )
        for entry in FSDP_CONFIG.values()
    ]
    strategies = (f"{CLASSES[FSDP_VERSIONS[v]]} (version {v})" for v in sorted(FSDP_VERSIONS, reverse=True))
    return table(("entry", *strategies, f"{CLASSES['xla']} (`xla`)", "how, or why"), rows)


def filled_in() -> str:
    """What HF's arguments say of entries of DeepSpeed's configuration."""
    rows = [(code(path), ", ".join(map(code, filled.fields))) for path, filled in FILLED.items()]
    rows += [(code(path), note) for path, note in FILLED_LATER.items()]
    return table(("entry", 'where it is "auto", filled in by'), rows)


def page() -> str:
    """The whole page."""
    return f"""{INTRODUCTION}
## How each argument is handled

{handled()}

## Old names

{old_names()}

## Defaults that have changed

{changed_defaults()}

## `optim`

HF's code builds the optimizer. Each trains as under `transformers.Trainer` to the bit, and a run that goes
on from a checkpoint ends as one that was not interrupted, with `compat.Trainer` and with `compat.HFModule`; a
condition that is not met is refused before training, with the nearest optimizer that has none. All were run
with their packages on a CPU, but for torchdistx's and those for one kind of device.

A schedule-free optimizer turns its weights for each evaluation, which rounds them: in a Lightning Trainer of
your own, save where an evaluation has just been, or where none follows at the same step.

{optimizers()}

## `lightning={{...}}`

Flags of Lightning's own Trainer, which win over what the other arguments say. On a command line:
`--lightning '{{"profiler": "simple"}}'`, or `--lightning.profiler simple` one by one; in a file, a section
`lightning:`. Live objects (a profiler, callbacks, a logger) are taken in Python.

{flags()}

## `fsdp_config`

{fsdp()}

A key that is not in the list is refused, with the nearest one.

## `deepspeed`

What HF fills in where DeepSpeed's configuration says "auto". Where the upper ones say something else than the
arguments, all of that is refused at once; HF refuses it when training begins. `compat explain` shows every
entry with the value that it gets.

{filled_in()}
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
