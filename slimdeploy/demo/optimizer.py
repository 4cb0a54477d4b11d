"""Muon for the matrices, AdamW for the rest, both on float32 masters of weights that compute in bfloat16."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_GRADIENT_NORM = 1.0


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal by Newton-Schulz iterations (Jordan et al. 2024).

    Matrices of one shape go through the iterations together, which makes many small matrices cheap. Updates are scaled
    to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training"), so both take one learning rate.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                same_shape[param.shape].append(param)
            for params in same_shape.values():
                self._update(params, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        gradients = [param.grad for param in params if param.grad is not None]
        assert len(gradients) == len(params)
        buffers = []
        for param in params:
            state = self.state[param]
            if not state:
                state["momentum"] = torch.zeros_like(param)
            buffers.append(state["momentum"])
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        looked_ahead = torch._foreach_add(gradients, buffers, alpha=momentum)
        updates = orthogonalized(torch.stack(looked_ahead)).unbind()
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, list(updates), alpha=-0.2 * lr * max(params[0].shape) ** 0.5)


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Bring all singular values near 1, with the quintic iteration of Jordan et al. 2024, in bfloat16.

    matrices: (count, rows, columns).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.transpose(1, 2) if tall else x).float()


class MasterWeights:
    """Float32 masters of a set of live parameters, and the optimizers that step them.

    The live parameters compute; after each step they are the masters, rounded to their own type.
    """

    def __init__(self, live: Mapping[str, nn.Parameter], masters: Mapping[str, Tensor], lr: float) -> None:
        """live, masters: the same names; the masters are changed in place."""
        self.lr = lr
        self.live: list[Tensor] = list(live.values())
        self.masters = [masters[name] for name in live]
        matrices = [masters[name] for name in live if _is_hidden_matrix(name, masters[name])]
        others = [masters[name] for name in live if not _is_hidden_matrix(name, masters[name])]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]

    def step(self, lr_scale: float) -> None:
        for master, live in zip(self.masters, self.live, strict=True):
            master.grad = torch.zeros_like(master) if live.grad is None else live.grad.float()
            live.grad = None
        nn.utils.clip_grad_norm_(self.masters, _GRADIENT_NORM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * lr_scale
            optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.live, self.masters)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _is_hidden_matrix(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "heads"))
