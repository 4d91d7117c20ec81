import sys

from datasets import load_dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained("material/llama")
rows = load_dataset("csv", data_files="material/train.csv", split="train").select(range(40))
rows = rows.map(lambda row: tokenizer(row["text"]), remove_columns=["text", "label"])
common = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
}


def trainer(config, args):
    return Trainer(
        model=get_peft_model(AutoModelForCausalLM.from_pretrained("material/llama"), config),
        args=args,
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )


lora = LoraConfig(
    task_type="CAUSAL_LM",
    r=4,
    lora_dropout=0.1,
    use_dora=True,
    target_modules=["q_proj", "v_proj"],
    modules_to_save=["lm_head"],
)
trainer(lora, TrainingArguments("out", num_train_epochs=2, max_steps=12, **common)).train(
    resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None
)
prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
trainer(prefix, TrainingArguments("prefix", max_steps=3, gradient_accumulation_steps=2, **common)).train()
