"""Replicas with placement groups, environments and resources."""

import qserve as serve
from ray.util.placement_group import placement_group  # left: placement


@serve.deployment(
    num_replicas=2,
    placement_group_bundles=[{"CPU": 1}, {"GPU": 1}],  # left: placement
    placement_group_strategy="PACK",  # left: placement
)
class Sharded:
    pass


@serve.deployment(
    ray_actor_options={
        "num_cpus": 1,
        "num_gpus": 0,
        "object_store_memory": 1_000_000,  # left: option
        "runtime_env": {
            "env_vars": {"MODE": "fast"},
            "pip": ["emoji"],  # left: runtime-env
            "working_dir": ".",  # left: runtime-env
        },
    },
)
class Model:
    pass


small = Model.options(ray_actor_options={"runtime_env": {"conda": "env"}})  # left: runtime-env
group = placement_group([{"CPU": 1}])
app = Sharded.bind()
