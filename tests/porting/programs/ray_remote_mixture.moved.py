"""Tasks of Ray beside a deployment: these cannot be moved."""

import ray
import qserve
import qserve as serve


@ray.remote  # left: actors
def prepare(rows):
    return [row * 2 for row in rows]


@ray.remote(num_cpus=1)  # left: actors
class Cache:
    def __init__(self):
        self.rows = {}

    def keep(self, key, row):
        self.rows[key] = row


@serve.deployment
class Model:
    def __init__(self):
        self.cache = Cache.remote()
        # a handle by name
        self.other = ray.get_actor("other")  # left: actors

    def __call__(self, rows):
        return qserve.get(prepare.remote(rows))


app = Model.bind()
if __name__ == "__main__":
    qserve.init(address="auto")  # left: address
    handle = serve.run(app)
    print(qserve.get(handle.remote([1, 2])), ray.cluster_resources())  # left: cluster
    qserve.shutdown()
