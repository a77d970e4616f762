"""Eviction of objects from memory: idle ones, the oldest ones when there are too many, and those
that an operator names."""

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
"""How long an operator's request waits for a busy object; less than gateways wait for a node."""
_EVICTED_MAX = 1_000  # at once


class Eviction:
    """Evicts objects that are at rest, so that eviction loses nothing."""

    def __init__(
        self,
        app: App,
        limits: EngineLimits,
        activations: Activations,
        cache: CacheSize,
        run_on_evict: Callable[[Activation, DurableObject], None],
    ) -> None:
        """`run_on_evict`: runs the `on_evict` hook, if there is one, of an instance that its
        activation has lost."""
        self._app = app
        self._limits = limits
        self._activations = activations
        self._cache = cache
        self._run_on_evict = run_on_evict
        self._loop = asyncio.get_running_loop()
        self.count = 0

    def tick(self) -> None:
        """Evict idle objects, and the oldest ones if the caches are too large. Call it a few times
        a second."""
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
        """Evict this share of the activations, least recently used first. Called when the process
        uses too much memory."""
        for _ in range(min(10_000, int(len(self._activations) * share) + 1)):
            if not self.evict_oldest():
                break

    async def evict_object(self, kind: str, key: str) -> bool:
        """Evict an object when it is at rest, and return whether it was in memory. Raises
        Overloaded if it stays busy for REST_PATIENCE_S."""
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
        """Evict the least recently used activation that is at rest. Return False if there is
        none."""
        for activation in self._activations.oldest_first():
            if activation.at_rest():
                self._evict(activation)
                return True
        return False

    def deactivate(self, activation: Activation) -> None:
        """Drop the instance of an object whose handler has asked for it. Turns that wait already
        get a new instance."""
        activation.deactivating = False
        self._activations.retire(activation)
        instance, activation.instance = activation.instance, None
        if instance is not None:
            self._run_on_evict(activation, instance)  # its end may start waiting turns

    def _evict_idle(self, kind: str, unused_since: float) -> None:
        """Evict the objects of a kind that had no call since `unused_since`."""
        idle: list[Activation] = []
        for activation in self._activations.of_kind(kind):
            if activation.last_used > unused_since or len(idle) >= _EVICTED_MAX:
                break
            if activation.at_rest():
                idle.append(activation)
        for activation in idle:
            self._evict(activation)

    def _evict(self, activation: Activation) -> None:
        """Evict an activation that is at rest. If it has to wait for its `on_evict`, it is evicted
        after that has ended."""
        instance, activation.instance = activation.instance, None
        if instance is not None:
            self._run_on_evict(activation, instance)
            if not activation.at_rest():
                return
        self._activations.forget(activation)
        self.count += 1
