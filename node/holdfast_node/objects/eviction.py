"""Takes objects out of memory: those that are idle, those that are too many, and those that an
operator names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.app import App
from holdfast.object import DurableObject

from holdfast_node.objects.activation import Activation
from holdfast_node.objects.activations import Activations
from holdfast_node.objects.environment import CacheSize
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.objects.requests import overloaded

REST_PATIENCE_S = 10.0
"""How long an operator waits for a busy object; less than gateways wait for a node."""
_EVICTED_MAX = 1_000  # at once


class Eviction:
    """Evicts only objects that are at rest: eviction loses nothing."""

    def __init__(
        self,
        app: App,
        limits: EngineLimits,
        activations: Activations,
        cache: CacheSize,
        run_on_evict: Callable[[Activation, DurableObject], None],
    ) -> None:
        """`run_on_evict`: runs the hook of an instance that its activation has lost, if there is
        one."""
        self._app = app
        self._limits = limits
        self._activations = activations
        self._cache = cache
        self._run_on_evict = run_on_evict
        self._loop = asyncio.get_running_loop()
        self.count = 0

    def tick(self) -> None:
        """Evict what is idle or too much; call it a few times a second."""
        for _ in range(_EVICTED_MAX):
            if self._cache.bytes <= self._limits.cache_bytes_max or not self.evict_oldest():
                break
        now = self._loop.time()
        for kind in self._activations.kinds():
            idle = self._app.kinds[kind].options.idle
            self._evict_idle(
                kind, now - (self._limits.idle_s if idle is None else idle.total_seconds())
            )

    def evict_share(self, share: float) -> None:
        """Evict this share of the activations, least recently used first: the process uses too much
        memory."""
        for _ in range(min(10_000, int(len(self._activations) * share) + 1)):
            if not self.evict_oldest():
                break

    async def evict_object(self, kind: str, key: str) -> bool:
        """Take an object out of memory when it is at rest; whether it was there. Raises Overloaded
        while it is busy."""
        until = self._loop.time() + REST_PATIENCE_S
        activation = self._activations.get(kind, key)
        if activation is None:
            return False
        while not activation.forgotten:
            if activation.at_rest():
                self._evict(activation)
            elif self._loop.time() > until:
                raise overloaded(
                    f"{activation.name} is busy: it did not come to rest for"
                    f" {REST_PATIENCE_S:.0f} s"
                )
            else:
                await asyncio.sleep(0.01)
        return True

    def evict_oldest(self) -> bool:
        """Evict the least recently used activation that is at rest; False when there is none."""
        for activation in self._activations.oldest_first():
            if activation.at_rest():
                self._evict(activation)
                return True
        return False

    def deactivate(self, activation: Activation) -> None:
        """Its handler has asked to leave memory. Turns that wait already get a new instance."""
        activation.deactivating = False
        self._activations.retire(activation)
        instance, activation.instance = activation.instance, None
        if instance is not None:
            self._run_on_evict(activation, instance)  # with which turns that wait may begin

    def _evict_idle(self, kind: str, unused_since: float) -> None:
        """Evict those of a kind that had no call since then."""
        idle: list[Activation] = []
        for activation in self._activations.of_kind(kind):
            if activation.last_used > unused_since or len(idle) >= _EVICTED_MAX:
                break
            if activation.at_rest():
                idle.append(activation)
        for activation in idle:
            self._evict(activation)

    def _evict(self, activation: Activation) -> None:
        """Take one that is at rest out of memory, or have it run its `on_evict`: then it is evicted
        when that has ended."""
        instance, activation.instance = activation.instance, None
        if instance is not None:
            self._run_on_evict(activation, instance)
            if not activation.at_rest():
                return
        self._activations.forget(activation)
        self.count += 1
