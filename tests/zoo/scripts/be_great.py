import sys

from be_great import GReaT
from sklearn.datasets import load_iris
from transformers import set_seed

set_seed(0)
iris = load_iris(as_frame=True).frame.sample(40, random_state=0)
great = GReaT(
    "material/gpt2",
    experiment_dir="out",
    epochs=2,
    batch_size=8,
    float_precision=1,
    learning_rate=1e-3,
    logging_steps=1,
    save_steps=3,
    use_cpu=True,
    report_to="none",
)
great.fit(iris, resume_from_checkpoint=sys.argv[1] if sys.argv[1:] else False)
