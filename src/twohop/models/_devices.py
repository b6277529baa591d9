"""Where the inputs of a model go that may be spread over devices, or lie on the disk in parts."""

from typing import Any

import torch
from torch import nn


def compute_device(net: nn.Module) -> torch.device:
    """The model's device; of a spread model that of its embedding, where the first tensor is made."""
    net_: Any = net
    hook: Any = getattr(net_.get_input_embeddings(), "_hf_hook", None)
    device: Any = getattr(hook, "execution_device", None)
    if device is None:
        found = next(net.parameters()).device
        return torch.device("cpu") if found.type == "meta" else found
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
