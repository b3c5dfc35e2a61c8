"""Options as objects of their classes."""

from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig

scaling = AutoscalingConfig(min_replicas=1, max_replicas=4, target_ongoing_requests=3)
logs = LoggingConfig(encoding="JSON", log_level="WARNING")
http = HTTPOptions(host="127.0.0.1", port=8123)


@serve.deployment(autoscaling_config=scaling, logging_config=logs, max_queued_requests=50)
class Model:
    async def __call__(self, value: float) -> float:
        return value / 2


app = Model.bind()


def main():
    assert ProxyLocation.HeadOnly == "HeadOnly"
    return serve.run(app).remote(3).result(), http.port, Model.max_queued_requests if hasattr(Model, "max_queued_requests") else 50

# main() returns (1.5, 8123, 50)
