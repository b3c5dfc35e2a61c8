from ray import *  # left: star
from qserve import *
import importlib
import ray
import qserve


def call(name, *args):
    return getattr(ray, name)(*args)  # left: as-value


def load():
    module = importlib.import_module("qserve.handle")
    return module.DeploymentHandle, qserve.get
