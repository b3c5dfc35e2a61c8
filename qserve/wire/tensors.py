"""Pickle the tensors of PyTorch that are in the memory of this process, so that their memory can leave the pickle.

Their own pickles copy it several times, and tensors that share memory arrive apart. What has arrived may be changed in
place: PyTorch knows no read-only tensors, and a write to read-only memory would be the end of the process.
"""

from __future__ import annotations

import pickle
import sys
from typing import Any

from qserve.wire.codes import reducers


def register_tensors() -> None:
    """Have tensors pickled here, if this process has imported PyTorch; call it before each pickle."""
    torch: Any = sys.modules.get("torch")
    kind = getattr(getattr(torch, "nn", None), "Parameter", None)  # None while another thread imports it
    if kind is None or kind in reducers or "numpy" not in sys.modules:
        return
    reducers[torch.UntypedStorage] = _reduce_storage
    reducers[torch.Tensor] = reducers[kind] = _reduce


def _reduce(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    is_plain = (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg() or vars(tensor))
    )
    if not is_plain:
        return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    place = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    is_parameter = type(tensor) is torch.nn.Parameter
    return _tensor, (tensor.untyped_storage(), tensor.dtype, *place, tensor.requires_grad, is_parameter)


def _tensor(
    storage: Any, dtype: Any, offset: int, shape: Any, stride: Any, requires_grad: bool, is_parameter: bool
) -> Any:
    torch = _torch()
    tensor = torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


def _reduce_storage(storage: Any) -> Any:
    if storage.device.type != "cpu":
        return storage.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    torch = sys.modules["torch"]
    data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return _storage, (pickle.PickleBuffer(data),)


def _storage(data: Any) -> Any:
    torch = _torch()
    if not len(data):
        return torch.UntypedStorage(0)
    return torch.frombuffer(_own(data), dtype=torch.uint8).untyped_storage()


def _own(data: bytearray | memoryview) -> bytearray | memoryview:
    """Return the same bytes in memory that may be changed.

    Who stores the bytes may have a way to do so that only copies what is changed, see ``qserve.payloads.mapping``.
    """
    if isinstance(data, bytearray):
        return data
    change = getattr(getattr(data, "obj", None), "changeable", None)
    return bytearray(data) if change is None else change(data)


def _torch() -> Any:
    return sys.modules.get("torch") or __import__("torch")
