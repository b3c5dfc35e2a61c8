from ray import *  # left: star
from ray.serve import *
import importlib
import ray


def call(name, *args):
    return getattr(ray, name)(*args)  # left: as-value


def load():
    module = importlib.import_module("ray.serve.handle")
    return module.DeploymentHandle, ray.get
