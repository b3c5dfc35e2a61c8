"""A pool of actors and a queue beside what is served."""
import ray
from ray import serve, util
from ray.util import ActorPool, metrics  # left: actors
from ray.util.queue import Queue  # left: actors
import ray.util.state  # left: cluster

util.metrics.Counter("calls").inc()
metrics.Gauge("depth").set(1)


def work(pool: ActorPool, queue: Queue):
    list(pool.map(lambda actor, value: actor.run.remote(value), queue))
    return ray.util.state.list_actors()  # left: cluster


def gpus():
    return ray.get_gpu_ids(), ray.get_runtime_context().node_id  # left: gpu, cluster


@serve.deployment
def model(value):
    return value
