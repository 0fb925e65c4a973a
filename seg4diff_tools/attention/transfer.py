"""Maps on their way from the device to main memory: one copy a forward, while the device goes on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Transfer:
    """Takes tensors off a device by one copy that nobody waits for before they are received.

    On a CUDA device the copy goes through page-locked memory, which is kept for the next one; elsewhere it is an
    ordinary copy, and none on the CPU.
    """

    def __init__(self) -> None:
        self._sent: Sequence[Tensor] = ()
        self._staging = torch.empty(0, dtype=torch.float32, device="cpu")
        self._copied: torch.cuda.Event | None = None

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Start to copy fp32 tensors; what was sent before has to be received by now."""
        self._sent, self._copied = tensors, None
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            self._sent = [tensor.cpu() for tensor in tensors]
        if len(devices) != 1 or tensors[0].device.type == "cpu":
            return
        together = torch.cat([tensor.flatten() for tensor in tensors])
        if together.is_cuda:
            if self._staging.numel() < together.numel():
                self._staging = torch.empty(together.numel(), dtype=together.dtype, device="cpu", pin_memory=True)
            host = self._staging[: together.numel()]
            host.copy_(together, non_blocking=True)
            self._copied = torch.cuda.current_stream(together.device).record_event()
        else:
            host = together.cpu()
        parts = host.split([tensor.numel() for tensor in tensors])
        self._sent = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def receive(self) -> list[np.ndarray]:
        """Wait for what was sent, and return it."""
        sent, self._sent = self._sent, ()
        if self._copied is not None:
            self._copied.synchronize()
            # the page-locked memory is written again by the next copy
            sent = [tensor.clone() for tensor in sent]
        return [tensor.numpy() for tensor in sent]
