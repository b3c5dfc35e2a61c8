"""A pool of actors and a queue beside what is served."""
import ray
import qserve as serve
import qserve.metrics
from ray.util import ActorPool  # left: actors
from qserve import metrics
from ray.util.queue import Queue  # left: actors
import ray.util.state  # left: cluster

qserve.metrics.Counter("calls").inc()
metrics.Gauge("depth").set(1)


def work(pool: ActorPool, queue: Queue):
    list(pool.map(lambda actor, value: actor.run.remote(value), queue))
    return ray.util.state.list_actors()  # left: cluster


def gpus():
    return ray.get_gpu_ids(), ray.get_runtime_context().node_id  # left: gpu, cluster


@serve.deployment
def model(value):
    return value
