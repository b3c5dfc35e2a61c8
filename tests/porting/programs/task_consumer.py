"""Tasks from a queue."""

from ray import serve
from ray.serve.schema import CeleryAdapterConfig, TaskProcessorConfig
from ray.serve.task_consumer import instantiate_adapter_from_config, task_consumer, task_handler

config = TaskProcessorConfig(
    queue_name="pictures",
    adapter_config=CeleryAdapterConfig(broker_url="redis://localhost:6379/0", backend_url="redis://localhost:6379/1"),
    max_retries=2,
)


@serve.deployment
@task_consumer(task_processor_config=config)
class Resizer:
    @task_handler(name="resize")
    def resize(self, name: str) -> str:
        return f"small-{name}"


def send(name: str):
    return instantiate_adapter_from_config(config).enqueue_task_sync("resize", args=[name])


app = Resizer.bind()


def main():
    return config.queue_name, Resizer.name, callable(send)

# main() returns ('pictures', 'Resizer', True)
