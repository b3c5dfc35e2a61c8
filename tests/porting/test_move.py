"""What happens to the text of one program, form by form."""

from __future__ import annotations

import pytest

from qserve.porting.move import move
from qserve.porting.names import TO_QSERVE, TO_RAY


def moved(text: str) -> str:
    return move(text, TO_QSERVE).text


def left(text: str) -> list[str]:
    return [f"{one.line}:{one.column} {one.name} {one.code}" for one in move(text, TO_QSERVE).left]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from ray import serve", "import qserve as serve"),
        ("from ray import serve as s", "import qserve as s"),
        ("import ray.serve as s", "import qserve as s"),
        ("import ray.serve", "import qserve"),
        ("import ray.serve.handle", "import qserve.handle"),
        ("import ray.serve.handle as h", "import qserve.handle as h"),
        ("import ray as r", "import qserve as r"),
        ("from ray.serve import deployment, ingress as x", "from qserve import deployment, ingress as x"),
        ("from ray.serve import handle, schema", "from qserve import handle, schema"),
        ("from ray import exceptions", "from qserve import exceptions"),
        ("from ray import get as fetch", "from qserve import get as fetch"),
        ("from ray import serve, get, put", "import qserve as serve\nfrom qserve import get, put"),
        ("import os, ray.serve.handle as h, sys", "import os, qserve.handle as h, sys"),
        ("from ray.serve.deployment import Deployment", "from qserve import Deployment"),
        ("from ray.serve.api import run", "from qserve import run"),
        ("from ray.serve import *", "from qserve import *"),
    ],
)
def test_an_import_is_replaced_in_every_form(before: str, after: str) -> None:
    assert moved(f"{before}\n") == f"{after}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import ray\nray.get(1)", "import qserve\nqserve.get(1)"),
        ("import ray\nray.serve.run(1)", "import qserve\nqserve.run(1)"),
        ("import ray\nray.exceptions.RayTaskError", "import qserve.exceptions\nqserve.exceptions.RayTaskError"),
        ("import ray as r\nr.get(r.put(1))", "import qserve as r\nr.get(r.put(1))"),
        (
            "import ray as r\nr.util.metrics.Gauge('x')",
            "import qserve as r\nimport qserve.metrics\nr.metrics.Gauge('x')",
        ),
        (
            "from ray import serve\nx: serve.handle.DeploymentHandle",
            "import qserve as serve\nimport qserve.handle\nx: serve.handle.DeploymentHandle",
        ),
        ("from ray import util\nutil.metrics.Gauge('x')", "import qserve.metrics\nqserve.metrics.Gauge('x')"),
        (
            "from ray.dag.vis_utils import _dag_to_dot\n_dag_to_dot(1)",
            "from qserve.dag import dag_to_dot\ndag_to_dot(1)",
        ),
        ("import ray\n[ray.get(x) for x in y]", "import qserve\n[qserve.get(x) for x in y]"),
        ("import ray\nf'{ray.get(x)}'", "import qserve\nf'{qserve.get(x)}'"),
        ("import ray\n@ray.serve.deployment\nclass A: ...", "import qserve\n@qserve.deployment\nclass A: ..."),
        ("import ray\nx: 'list[ray.ObjectRef]'", "import qserve\nx: 'list[qserve.ObjectRef]'"),
    ],
)
def test_uses_follow_their_import(before: str, after: str) -> None:
    assert moved(f"{before}\n") == f"{after}\n"


@pytest.mark.parametrize(
    "text",
    [
        "def f(ray):\n    return ray.get(1)\n",
        "def f(serve):\n    return serve.run(1)\n",
        "ray = {}\nray.get(1)\n",
        "class A:\n    ray = {}\n    def f(self): return self.ray.get(1)\n",
        "[ray.get(1) for ray in [{}]]\n",
        "lambda ray: ray.get(1)\n",
        "from .ray import serve\n",
        "from shop import ray\nray.get(1)\n",
        "'ray.get'\n",
        "x.ray.get(1)\n",
        "from rayon import serve\n",
        "from qserve.base.settings import Settings\nfrom qserve.exceptions import DeadLetterError\n",
        "import qserve\nqserve.connect(qserve.__version__)\nqserve.api.run(1)\n",
    ],
)
def test_another_thing_of_that_name_is_not_touched(text: str) -> None:
    assert move(text, TO_QSERVE).text == text
    assert not left(text)


def test_a_local_variable_hides_the_module_in_its_function_only() -> None:
    text = "import ray\n\ndef f(ray):\n    return ray.get(1)\n\nray.get(2)\n"

    assert moved(text) == "import qserve\n\ndef f(ray):\n    return ray.get(1)\n\nqserve.get(2)\n"


def test_an_import_of_ray_that_is_not_used_any_more_goes_and_its_comment_stays() -> None:
    assert moved("# licence\nimport ray\nimport os\n") == "# licence\nimport os\n"
    assert moved("if x:\n    # why\n    import ray\n    y()\n") == "if x:\n    # why\n    y()\n"
    assert moved("import os\nimport ray\n\n\nx()\n") == "import os\n\n\nx()\n"
    assert moved("try:\n    import ray\nexcept ImportError:\n    pass\n").startswith("try:\n    pass\n")


def test_an_import_of_ray_that_is_still_used_stays_and_its_uses_are_listed() -> None:
    text = "import ray\nray.get(1)\n@ray.remote\ndef f(): ...\n"

    assert moved(text) == "import ray\nimport qserve\nqserve.get(1)\n@ray.remote\ndef f(): ...\n"
    assert left(text) == ["3:2 ray.remote actors"]


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("from ray import remote", "1:17 ray.remote actors"),
        ("import ray.data", "1:8 ray.data library"),
        ("import ray.tune as t", "1:8 ray.tune library"),
        ("from ray import *", "1:1 ray.* star"),
        ("from ray.serve._private.api import x", "1:36 ray.serve._private.api.x private"),
        ("import ray\nf(ray)", "2:3 ray as-value"),
        ("from ray import serve\nserve.get_deployment('x')", "2:1 ray.serve.get_deployment old-api"),
        ("from ray import serve\nserve.nothing", "2:1 ray.serve.nothing unknown"),
        ("from ray import serve\nserve.start(detached=True)", "2:13 detached detached"),
        ("import ray\nray.init('auto')", "2:10 address address"),
        ("x.options(ray_actor_options={'runtime_env': {'pip': []}})  # ray", "1:46 runtime_env.pip runtime-env"),
        ("from ray import java_function", "1:17 ray.java_function java"),
        ("import ray\n__all__ = ['ray']", "1:8 ray rebound"),
        ("def f():\n    global ray\n    import ray", "3:12 ray rebound"),
        ("import qserve as serve\nserve.get_deployment('x')", "2:1 qserve.get_deployment old-api"),
    ],
)
def test_what_cannot_be_moved_is_listed_with_its_place(text: str, listed: str) -> None:
    assert left(f"{text}\n") == [listed]


def test_comments_and_formatting_stay() -> None:
    text = "from ray.serve import (  # all\n    run,  # starts\n    # the rest\n    batch ,\n)   # end\nrun ( 1,2 )\n"

    assert moved(text) == text.replace("ray.serve", "qserve")


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_line_ends_stay(end: str) -> None:
    text = "import ray\nfrom ray import serve, get\n\nray.put(1)\n".replace("\n", end)

    assert moved(text) == "import qserve\nimport qserve as serve\nfrom qserve import get\n\nqserve.put(1)\n".replace(
        "\n", end
    )


def test_a_text_that_could_not_be_kept_as_it_is_is_refused() -> None:
    with pytest.raises(SyntaxError, match="cannot be kept"):
        moved("import ray\rray.put(1)\r")


def test_a_name_that_is_taken_is_not_given_to_another_thing() -> None:
    text = "from ray.dag.vis_utils import _dag_to_dot\ndag_to_dot = _dag_to_dot(1)\n"

    assert moved(text) == "from qserve.dag import dag_to_dot as _dag_to_dot\ndag_to_dot = _dag_to_dot(1)\n"


def test_text_that_is_not_python_has_its_line() -> None:
    with pytest.raises(SyntaxError) as caught:
        moved("import ray\nx = (\ny = ]\n")

    assert caught.value.lineno == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import qserve as serve\nserve.run(1)", "from ray import serve\nserve.run(1)"),
        ("import qserve\nqserve.get(qserve.put(1))", "import ray\nray.get(ray.put(1))"),
        ("import qserve\nqserve.run(1)", "import ray.serve\nray.serve.run(1)"),
        ("import qserve as serve\nserve.get(serve.run(1))", "from ray import serve\nimport ray\nray.get(serve.run(1))"),
        (
            "from qserve import DAGDriver, InputNode",
            "from ray.serve.drivers import DAGDriver\nfrom ray.dag import InputNode",
        ),
        (
            "import qserve as serve\nserve.run(1, local=True)",
            "from ray import serve\nserve.run(1, _local_testing_mode=True)",
        ),
        ("from qserve.exceptions import ReplicaLost", "from ray.exceptions import RayActorError"),
    ],
)
def test_the_way_back(before: str, after: str) -> None:
    assert move(f"{before}\n", TO_RAY).text == f"{after}\n"


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("from qserve import connect", "qserve.connect"),
        ("import qserve as serve\nserve.progress()", "qserve.progress"),
        ("import qserve\n@qserve.deployment(max_retries=3)\nclass A: ...", "max_retries"),
        ("import qserve\nqserve.run(A.options(preload='a:b'))", "preload"),
        ("from qserve.exceptions import DeadLetterError", "qserve.exceptions.DeadLetterError"),
    ],
)
def test_what_qserve_alone_has_is_left_on_the_way_back(text: str, listed: str) -> None:
    first = move(f"{text}\n", TO_RAY)

    assert [one.name for one in first.left] == [listed]
    assert len(move(first.text, TO_RAY).left) == 1
