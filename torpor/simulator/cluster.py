"""Predictors and the nodes under them: provisioning, start, readiness, and what each second costs.

Called by the world (`world.py`), which owns the clock and the queue. It must not know requests'
waits or why replicas are wanted.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from torpor.simulator.engine import EngineModel, SimulatedReplica, rates_of


@dataclass(frozen=True, slots=True)
class NodeModel:
    """The machines under the predictors; every predictor takes one GPU.

    `warm_nodes` are always there (and always paid); an empty node is given back after `idle_s`.
    """

    provision_s: float = 0.0
    gpus_per_node: int = 1
    warm_nodes: int = 0
    idle_s: float = 0.0


class PodPhase(StrEnum):
    """The life of a predictor."""

    WAKING = "waking"  #: asked for: its node or its engine is starting
    READY = "ready"  #: takes work
    DRAINING = "draining"  #: ends what it has and takes nothing new
    GONE = "gone"  #: ended


@dataclass(slots=True)
class Node:
    """One machine; `launched` is when its bill begins."""

    id: int
    launched: float
    available: float
    used: int = 0
    ended: float | None = None


@dataclass(slots=True)
class SimulatedPredictor:
    """One replica with its engine, its node and its times."""

    engine: SimulatedReplica
    node: Node
    asked: float
    ready_at: float
    phase: PodPhase = PodPhase.WAKING
    became_ready: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class GpuSeconds:
    """Where the GPU time went; `empty` was paid for without a predictor on it."""

    busy: float
    idle: float
    waking: float
    empty: float

    @property
    def billed(self) -> float:
        """All that is paid for."""
        return self.busy + self.idle + self.waking + self.empty


@dataclass(slots=True)
class SimulatedCluster:
    """All predictors and nodes of one run; ended ones leave only their totals behind."""

    engine: EngineModel
    slots: int
    start_s: float
    model: NodeModel
    seen_starts_s: tuple[float, ...] = ()
    predictors: list[SimulatedPredictor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    launches: int = 0
    node_launches: int = 0
    _rates: tuple[float, ...] = ()
    _busy: float = 0.0
    _idle: float = 0.0
    _waking: float = 0.0
    _billed: float = 0.0

    def __post_init__(self) -> None:
        self._rates = rates_of(self.engine, self.slots)
        self.nodes = [self._node(0.0, 0.0) for _ in range(self.model.warm_nodes)]
        self.node_launches = 0

    def launch(self, now: float, *, is_ready: bool = False) -> SimulatedPredictor:
        """A new predictor on a free GPU, or on a new node when there is none."""
        node = self._free_node() or self._launched_node(now)
        node.used += 1
        start = now if is_ready else max(now, node.available) + self._start_s()
        self.launches += 1
        engine = SimulatedReplica(
            self.launches,
            self._rates,
            self.engine.prefill_tokens_per_s,
            self.engine.decode_during_prefill,
            self.slots,
        )
        predictor = SimulatedPredictor(engine, node, asked=now, ready_at=start)
        self.predictors.append(predictor)
        return predictor

    def make_ready(self, predictor: SimulatedPredictor, now: float) -> None:
        """The predictor's engine is up."""
        predictor.phase = PodPhase.READY
        predictor.became_ready = now

    def end(self, predictor: SimulatedPredictor, now: float) -> Node | None:
        """The predictor is gone; gives its node when that is empty now."""
        predictor.phase = PodPhase.GONE
        predictor.ended = now
        self.predictors.remove(predictor)
        self._settle(predictor, now)
        node = predictor.node
        node.used -= 1
        if node.used or node.ended is not None:
            return None
        return node

    def give_back(self, node: Node, now: float) -> None:
        """The node leaves, if it is still empty and more than the warm ones are there."""
        if node.used or node.ended is not None or len(self.nodes) <= self.model.warm_nodes:
            return
        self.lose(node, now)

    def lose(self, node: Node, now: float) -> None:
        """The node's bill ends now."""
        if node.ended is None:
            node.ended = now
            self.nodes.remove(node)
            self._billed += (now - node.launched) * self.model.gpus_per_node

    def count(self, phase: PodPhase) -> int:
        """How many predictors are in a phase."""
        return sum(predictor.phase is phase for predictor in self.predictors)

    def least_busy(self) -> SimulatedPredictor | None:
        """The ready predictor with the fewest jobs that has a free place."""
        best: SimulatedPredictor | None = None
        least = self.slots
        for predictor in self.predictors:
            if predictor.phase is PodPhase.READY and predictor.engine.running < least:
                best, least = predictor, predictor.engine.running
                if least == 0:
                    break
        return best

    @property
    def existing(self) -> int:
        """Predictors that count as replicas: all but draining ones."""
        return len(self.predictors) - self.count(PodPhase.DRAINING)

    def victims(self, count: int) -> list[SimulatedPredictor]:
        """Which to end first: those not ready, then the least busy, the youngest first."""
        alive = [p for p in self.predictors if p.phase is not PodPhase.DRAINING]
        alive.sort(key=lambda p: (p.phase is PodPhase.READY, p.engine.running, -p.engine.id))
        return alive[:count]

    def gpu_seconds(self, now: float) -> GpuSeconds:
        """The GPU time at the end of a run; existing predictors are counted until `now`."""
        for predictor in list(self.predictors):
            predictor.engine.advance(now)
            self._settle(predictor, now)
        self.predictors.clear()
        for node in list(self.nodes):
            self.lose(node, now)
        used = self._busy + self._idle + self._waking
        return GpuSeconds(self._busy, self._idle, self._waking, max(0.0, self._billed - used))

    def _start_s(self) -> float:
        """The next cold start: recorded ones in order, repeatedly, else the given one."""
        seen = self.seen_starts_s
        return seen[self.launches % len(seen)] if seen else self.start_s

    def _settle(self, predictor: SimulatedPredictor, now: float) -> None:
        ready = now if predictor.became_ready is None else predictor.became_ready
        # A node that is still on its way is billed already: that is waking time too.
        self._waking += ready - predictor.asked
        self._busy += predictor.engine.busy_s
        self._idle += max(0.0, now - ready - predictor.engine.busy_s)

    def _free_node(self) -> Node | None:
        for node in self.nodes:
            if node.used < self.model.gpus_per_node:
                return node
        return None

    def _launched_node(self, now: float) -> Node:
        node = self._node(now, now + self.model.provision_s)
        self.nodes.append(node)
        return node

    def _node(self, launched: float, available: float) -> Node:
        self.node_launches += 1
        return Node(self.node_launches, launched, available)
