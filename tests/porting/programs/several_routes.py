"""One driver with two routes, and a picture of the graph as text."""
import ray
from ray import serve
from ray.dag import InputNode, DAGNode
from ray.dag.vis_utils import _dag_to_dot
from ray.serve.drivers import DAGDriver


@serve.deployment(num_replicas=1)
class Words:
    def count(self, text: str) -> int:
        return len(text.split())

    def shout(self, text: str) -> str:
        return text.upper()


with InputNode() as text:
    words = Words.bind()
    counted: DAGNode = words.count.bind(text)
    loud: DAGNode = words.shout.bind(text)

routes = DAGDriver.options(route_prefix="/words").bind({"/count": counted, "/shout": loud})


def main():
    handle = serve.run(routes)
    dot = str(_dag_to_dot(counted))
    return "count" in dot, handle is not None

# main() returns (True, True)
