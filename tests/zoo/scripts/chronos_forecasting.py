import sys

import numpy as np
from chronos import Chronos2Pipeline
from chronos.chronos2 import Chronos2CoreConfig, Chronos2Dataset, Chronos2Model
from chronos.chronos2.dataset import DatasetMode
from chronos.chronos2.trainer import Chronos2Trainer, EvaluateAndSaveFinalStepCallback
from sklearn.datasets import load_diabetes
from transformers import TrainingArguments, set_seed

set_seed(0)
config = Chronos2CoreConfig(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
config.chronos_config = {
    "context_length": 64,
    "output_patch_size": 8,
    "input_patch_size": 8,
    "input_patch_stride": 8,
    "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    "use_reg_token": True,
    "use_arcsinh": True,
    "max_output_patches": 2,
    "time_encoding_scale": 64,
}
series = load_diabetes().data.T.astype(np.float32)[:, None, :]
pipeline = Chronos2Pipeline(Chronos2Model(config))

# What `fit` does, with a checkpoint to go on from.
sizes = {"context_length": 64, "prediction_length": 8, "batch_size": 4, "output_patch_size": 8}
trainer = Chronos2Trainer(
    model=Chronos2Model(config),
    args=TrainingArguments(
        "out",
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        label_names=["future_target"],
        prediction_loss_only=True,
        report_to="none",
        use_cpu=True,
    ),
    train_dataset=Chronos2Dataset(series[:8, :, :200], min_past=8, mode=DatasetMode.TRAIN, **sizes),
    eval_dataset=Chronos2Dataset(series[8:, :, 200:300], mode=DatasetMode.VALIDATION, **sizes),
    callbacks=[EvaluateAndSaveFinalStepCallback()],
)
trainer.train(resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else None)

tuned = pipeline.fit(
    series[:8, :, :200],
    prediction_length=8,
    validation_inputs=series[8:, :, 200:300],
    finetune_mode="lora",
    learning_rate=1e-3,
    num_steps=4,
    batch_size=4,
    output_dir="tuned",
    logging_steps=1,
    save_steps=2,
    eval_steps=2,
)
np.save("forecast.npy", tuned.predict(series[:2, :, :200], prediction_length=8)[0].numpy())
