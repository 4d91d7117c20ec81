import sys

from realtabformer import REaLTabFormer
from sklearn.datasets import load_iris
from transformers import GPT2Config

iris = load_iris(as_frame=True).frame.sample(40, random_state=0)
model = REaLTabFormer(
    model_type="tabular",
    tabular_config=GPT2Config(n_embd=32, n_layer=2, n_head=4),
    checkpoints_dir="out",
    samples_save_dir="samples",
    epochs=3,
    batch_size=4,
    gradient_accumulation_steps=2,
    random_state=1,
    mask_rate=0.1,
    train_size=0.8,
    logging_steps=1,
    save_strategy="steps",
    save_steps=3,
    eval_strategy="steps",
    eval_steps=3,
    report_to="none",
    use_cpu=True,
)
model.fit(iris, device="cpu", n_critic=0, resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else False)
model.sample(6, device="cpu").to_json("sampled.json")
