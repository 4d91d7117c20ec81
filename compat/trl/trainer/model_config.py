"""`ModelConfig`: the model that a script loads, and the options of loading."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from compat.trl.core import flatten_dict

__all__ = ["ModelConfig"]


def _option(default: Any, text: str, **metadata: object) -> Any:
    return dataclasses.field(default=default, metadata={"help": text, **metadata})


@dataclass
class ModelConfig:
    """The model of a script, its adapter and its quantization; read by `transformers.HfArgumentParser`.

    Raises:
        ValueError: both `load_in_8bit` and `load_in_4bit` are set.
    """

    model_name_or_path: str | None = _option(None, "Name or folder of the model to begin with.")
    model_revision: str = _option("main", "Branch, tag or commit of the model.")
    torch_dtype: str | None = _option(
        None,
        "Precision of the weights that are loaded; `auto` takes the one that they were saved in.",
        choices=["auto", "bfloat16", "float16", "float32"],
    )
    trust_remote_code: bool = _option(False, "Run code that comes with the model.")
    attn_implementation: str | None = _option(
        None, "Implementation of attention, `flash_attention_2` for one, which is a package of its own."
    )
    use_peft: bool = _option(False, "Train an adapter by PEFT and leave the model as it is.")
    lora_r: int | None = _option(16, "Rank of LoRA's matrices.")
    lora_alpha: int | None = _option(32, "LoRA's alpha.")
    lora_dropout: float | None = _option(0.05, "Dropout before LoRA's matrices.")
    lora_target_modules: list[str] | None = _option(  # noqa: RUF009 (a field)
        None, "Modules that get LoRA's matrices."
    )
    lora_modules_to_save: list[str] | None = _option(  # noqa: RUF009 (a field)
        None, "Modules that are trained as a whole, and saved."
    )
    load_in_8bit: bool = _option(False, "Load the model in 8 bits; only an adapter can be trained then.")
    load_in_4bit: bool = _option(False, "Load the model in 4 bits; only an adapter can be trained then.")
    bnb_4bit_quant_type: str | None = _option("nf4", "Kind of the 4 bits: `nf4` or `fp4`.")
    use_bnb_nested_quant: bool = _option(False, "Quantize the constants of the 4 bits, too.")

    def to_dict(self) -> dict[str, Any]:
        """Return all options by name."""
        return flatten_dict(dict(vars(self)))

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            msg = (
                "`load_in_8bit=True` and `load_in_4bit=True`: a model is loaded in one precision, you "
                "can't use 8 bit and 4 bit precision at the same time. Leave one of them out."
            )
            raise ValueError(msg)
