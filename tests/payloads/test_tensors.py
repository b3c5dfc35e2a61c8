"""Tensors of PyTorch in the store: they arrive as what they were, without a copy, and may be changed."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from remote import Remote, remotes

from qserve.base.settings import Settings
from qserve.payloads.mapping import Mapping
from qserve.payloads.store import ValueStore
from qserve.wire.claim import claim_in
from qserve.wire.codec import Codec

torch: Any = pytest.importorskip("torch", reason="pip install torch")
LARGE = 100_000


@pytest.fixture(params=["memory", "broker", "file:///{folder}"])
def store(request: pytest.FixtureRequest, settings: Settings, root: Path, tmp_path: Path) -> Iterator[ValueStore]:
    payloads = (request.param.format(folder=str(tmp_path).lstrip("/")),)
    made = ValueStore(replace(settings, payloads=payloads), lambda: "epoch")
    yield made
    made.close()


@pytest.fixture
def codec(store: ValueStore, settings: Settings) -> Codec:
    return Codec(settings.keyring, values=store)


@pytest.fixture
def memory(root: Path, settings: Settings) -> Codec:
    return Codec(settings.keyring, values=ValueStore(replace(settings, broker_embedded=True), lambda: "epoch"))


def passed(codec: Codec, value: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return codec.decode(codec.encode(value))


def same(one: Any, other: Any) -> bool:
    return (
        type(one) is type(other)
        and one.dtype == other.dtype
        and one.stride() == other.stride()
        and one.requires_grad == other.requires_grad
        and torch.equal(one, other)
    )


MANY: dict[str, Callable[[], Any]] = {
    "one": lambda: torch.arange(LARGE),
    "empty": lambda: torch.empty(0, 3),
    "small": lambda: torch.ones(3),
    "single": lambda: torch.tensor(5.0),
    "half": lambda: torch.ones(LARGE, dtype=torch.bfloat16),
    "bool": lambda: torch.ones(LARGE, dtype=torch.bool),
    "complex": lambda: torch.ones(LARGE, dtype=torch.complex64).conj(),
    "turned": lambda: torch.arange(LARGE).reshape(100, -1).T,
    "stepped": lambda: torch.arange(LARGE)[::2],
    "wanting a gradient": lambda: torch.ones(LARGE, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.ones(LARGE)),
    "frozen parameter": lambda: torch.nn.Parameter(torch.ones(LARGE), requires_grad=False),
}


@pytest.mark.parametrize("make", MANY.values(), ids=MANY.keys())
def test_a_tensor_arrives_as_it_was(codec: Codec, make: Callable[[], Any]) -> None:
    tensor = make()

    data = codec.encode({"a": [tensor, 1]})

    assert same(codec.decode(data)["a"][0], tensor)
    assert len(data) < 5000 or not claim_in(data)


def test_a_tensor_without_a_store_arrives_as_it_was(settings: Settings) -> None:
    for make in MANY.values():
        assert same(passed(Codec(settings.keyring), make()), make())


def test_the_weights_of_a_model_arrive(codec: Codec) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU(), torch.nn.Linear(300, 2))
    data = torch.ones(5, 300)

    weights, whole = passed(codec, [model.state_dict(), model])

    assert isinstance(weights, OrderedDict)
    fresh = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.ReLU(), torch.nn.Linear(300, 2))
    fresh.load_state_dict(weights)
    assert torch.equal(fresh(data), model(data))
    assert torch.equal(whole(data), model(data))


def test_other_tensors_arrive_by_pickles_of_their_own(codec: Codec) -> None:
    sparse = torch.eye(300).to_sparse()
    marked = torch.ones(LARGE)
    marked.mark = "x"

    found = passed(codec, [sparse, marked])

    assert torch.equal(found[0].to_dense(), torch.eye(300))
    assert found[1].mark == "x"


def test_tensors_that_share_memory_still_do(codec: Codec) -> None:
    whole = torch.zeros(LARGE)

    first, second = passed(codec, [whole, whole[10:20]])
    second += 1

    assert first.sum() == 10
    assert whole.sum() == 0


def test_a_tensor_may_be_changed_and_nobody_else_sees_it(memory: Codec) -> None:
    data = memory.encode([torch.zeros(LARGE), torch.zeros(LARGE).numpy()])
    one, array = memory.decode(data)
    other, _ = memory.decode(data)
    one += 1

    again, _ = memory.decode(data)

    assert one.sum() == LARGE
    assert [float(found.sum()) for found in (other, array, again)] == [0, 0, 0]


def test_what_is_kept_of_a_tensor_stays_when_its_value_is_gone(memory: Codec) -> None:
    data = memory.encode(torch.ones(LARGE))
    part = memory.decode(data)[5:10]
    memory.forget([claim for claim in [claim_in(data)] if claim])
    for _ in range(3):
        memory.encode(torch.zeros(LARGE))

    assert part.sum() == 5


def test_no_byte_of_a_tensor_is_copied_on_its_way_out_of_the_memory(
    memory: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = []
    view = Mapping.view

    def noted(mapping: Mapping, *args: Any) -> memoryview:
        found = view(mapping, *args)
        mapped.append(range(mapping._address, mapping._address + mapping.size))
        return found

    monkeypatch.setattr(Mapping, "view", noted)
    found = memory.decode(memory.encode(torch.ones(LARGE)))

    assert found.data_ptr() in mapped[-1]
    assert found.data_ptr() % 64 == 0


def test_another_process_reads_a_tensor(memory: Codec, root: Path) -> None:
    with remotes(0) as started:
        started.append(Remote())
        data = memory.encode({"image": torch.arange(LARGE)})
        found = started[0].run(
            "from pathlib import Path; from qserve.payloads.segments import Segments; from qserve.wire.claim import *\n"
            "from qserve.base.keyring import Keyring; from qserve.wire.codec import Codec\n"
            f"class Values(Segments): threshold, max_bytes = 1 << 16, 1 << 30\n"
            f"values = Values(lambda: 'epoch', root=Path({str(root)!r}))\n"
            f"codec = Codec(Keyring({memory._keys.current!r}), values=values)\n"
            f"image = codec.decode(bytes.fromhex({data.hex()!r}))['image']\n"
            "image += 1; result = int(image.sum())"
        )

    assert found == sum(range(LARGE)) + LARGE
