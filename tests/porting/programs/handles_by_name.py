"""Several applications, found by their names."""

from ray import serve
from ray.serve.handle import DeploymentHandle


@serve.deployment
class Stock:
    def __init__(self, amounts):
        self.amounts = dict(amounts)

    def take(self, article):
        self.amounts[article] -= 1
        return self.amounts[article]


@serve.deployment
class Till:
    async def __call__(self, article):
        stock: DeploymentHandle = serve.get_app_handle("stock")
        left = await stock.options(use_new_handle_api=True).take.remote(article)
        return f"{article}: {left} left"


def main():
    serve.run(Stock.bind({"pen": 3}), name="stock", route_prefix="/stock")
    handle = serve.run(Till.bind(), name="till", route_prefix="/till")
    answers = [handle.remote("pen").result(), serve.get_deployment_handle("Stock", "stock").take.remote("pen").result()]
    context = serve.get_replica_context
    return answers, callable(context)

# main() returns (['pen: 2 left', 1], True)
