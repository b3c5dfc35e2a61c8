"""An instance that outlives its program, with gRPC, in the API of Ray Serve 1."""

import ray
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions  # left: grpc
from ray.serve.drivers import DAGDriver, DefaultgRPCDriver  # left: grpc

ray.init("ray://head:10001", namespace="shop")  # left: address, address
serve.start(
    detached=True,  # left: detached
    http_options=HTTPOptions(host="0.0.0.0", port=8001),
    grpc_options=gRPCOptions(port=9001),  # left: grpc
)


@serve.deployment
def model(value):
    return value


handle = serve.get_deployment("model").get_handle()  # left: old-api
print(serve.list_deployments())  # left: old-api
driver = DefaultgRPCDriver.bind(model.bind())
