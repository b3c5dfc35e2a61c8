"""A program that trains, tunes and serves: only the last part moves."""

import ray
import ray.data  # left: library
from ray import serve, train, tune  # left: library, library
from ray.air import ScalingConfig  # left: library


def load():
    return ray.data.read_csv("rows.csv")  # left: library


def fit():
    tuner = tune.Tuner(lambda config: train.report({"loss": 1}), param_space={"lr": tune.choice([1, 2])})
    return tuner.fit(), ScalingConfig(num_workers=2)


@serve.deployment
class Predictor:
    def __call__(self, row):
        return row


app = Predictor.bind()
