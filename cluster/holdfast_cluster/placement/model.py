"""The data that etcd holds for a cluster, and the immutable view of it that every process works
with.

All keys are below `/holdfast/<cluster>/`. Values are JSON, so that etcdctl shows them:

    etcd_lineage             Lineage: the history that this etcd's data belongs to; every
    transaction compares it
    settings                 ClusterSettings, written at formation
    members/<node id>        Member, under the node's lease
    incarnations/<node id>   the number of starts of the node's data directory, kept for ever
    shards/<number>          Assignment
    drains/<node id>         Drain: an operator wants the node to give up its shards and copies
    heat/<node id>           ShardLoads: the load of the shards that the node owns, under its lease
    kinds/<node id>          the kinds that the node had when it joined last, kept for ever
    hosting/<node id>        Hosting: the kinds that the node's own shards need, under its lease
    pauses/<kind>/<key>      Pause: an operator has stopped deliveries and alarms to an object, or, without a key, to a kind
    controller               the node id of the controller, under its lease

Below `/holdfast-marks/<cluster>/`, which no process watches: `<node id>`, a mark of how much the
node has written to its data directory.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import TypeVar

import msgspec

from holdfast_cluster.placement.ring import HASH_VERSION, Ring, RingNode

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

SHARDS_MAX = 65_536
EPOCHS_MAX = 1 << 48
"""Epochs stay below this limit: the sequences of notifications use the 16 bits above for the moves
of an object (docs/reference/format.md)."""
GENERATIONS_MAX = 1 << 15
VERSION = 2
"""The `Member.version` of this program: the newest format of records and messages that it reads and
writes."""
_KINDS_SINCE = 2
EXPIRY = "expiry"
"""The feature of values and objects that expire."""
SEND = "send"
"""The feature of calls that are stored, and run later."""
ALARM_LIMITS = "alarm-limits"
"""The feature of repeated alarms that end by themselves."""
FEATURES: tuple[str, ...] = (ALARM_LIMITS, EXPIRY, SEND)
"""The features that this program knows. The controller turns one on when every member has announced
it; see `ClusterSettings.features`."""
CLUSTER_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")
NODE_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?")


class ClusterSettings(msgspec.Struct, frozen=True):
    """The settings on which all processes of a cluster must agree.

    They are fixed when the cluster is formed; only `features` grows.
    """

    shards: int = 256
    replication: int = 3
    """Copies of each shard."""
    min_in_sync: int = 0
    """How many copies have to be in sync for writes; 0: a majority of `replication`."""
    points: int = 128
    hash_version: int = HASH_VERSION
    id: str = ""
    """Drawn at formation. It tells this cluster from another one of the same name."""
    features: tuple[str, ...] = ()
    """The features that the cluster uses beyond the first version. The controller adds a feature
    once every member has announced that it knows it. A process that does not know one of the
    features must not take part in the cluster."""

    def unknown_features(self) -> list[str]:
        """Return the features in use that this program does not know."""
        return sorted(set(self.features) - set(FEATURES))

    def validate(self) -> None:
        """Raise ValueError, with the setting's name and range, if a setting is out of its range."""
        for name, low, high in (
            ("shards", 1, SHARDS_MAX),
            ("replication", 1, 7),
            ("points", 1, 4096),
            ("min_in_sync", 0, self.replication),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; {low} to {high}")

    @property
    def writable_from(self) -> int:
        """How many copies have to be in sync at least, so that a shard takes writes."""
        return self.min_in_sync or self.replication // 2 + 1

    def differences(self, other: ClusterSettings) -> list[str]:
        """Return the settings in which two processes differ, as `name: MINE here, THEIRS there`."""
        names = ("shards", "replication", "min_in_sync", "points", "hash_version")
        return [
            f"{n}: {getattr(self, n)} here, {getattr(other, n)} there"
            for n in names
            if getattr(self, n) != getattr(other, n)
        ]


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The identity of one history of etcd's data; see lineage.py."""

    generation: int = 0
    """Grows by one each time that etcd is rebuilt (`holdfast adopt-etcd`). Data of an earlier
    generation does not count any more."""
    nonce: int = 0
    """Drawn anew with every generation, below 2^53."""
    state: str = ""
    """Empty: processes follow the lineage. `halted`: a process has found that etcd went back, and
    no process follows the lineage. `adopting`: `holdfast adopt-etcd` is rebuilding etcd."""
    by: str = ""
    """The process that halted the lineage."""
    why: str = ""
    """Why it halted the lineage."""

    def __post_init__(self) -> None:
        if not 0 <= self.generation < GENERATIONS_MAX:
            raise ValueError(f"generation {self.generation} is not between 0 and {GENERATIONS_MAX}")


class Member(msgspec.Struct, frozen=True):
    """A node that is in the cluster now."""

    id: str
    address: str
    incarnation: int
    host: str
    zone: str = ""
    weight: int = 1
    streams: str = ""
    """The address for streams (holdfast_cluster.streams.tcp); `address` is the one for gRPC."""
    state: str = "active"
    """`active`, or one of three states in which the member wants to own no shard, but keeps its
    copies. `stopping`: it will be away for a moment. `full`: its disk is full, so it wants no new
    copies. `slow`: its disk holds up writes, so it wants no new copies."""
    version: int = 1
    """The newest format of records and messages that the process reads and writes;
    see `VERSION`."""
    kinds: tuple[str, ...] = ()
    """The kinds of its app, sorted."""
    features: tuple[str, ...] = ()
    """The features that its program knows; see `ClusterSettings.features`."""

    @property
    def name(self) -> str:
        """The id without its random part: the same for every disk that the node has had."""
        return self.id.rpartition("-")[0] or self.id

    def missing(self, kinds: Iterable[str]) -> int:
        """Return how many of these kinds it lacks; 0 for a member of version 1, which tells
        none."""
        return len(set(kinds).difference(self.kinds)) if self.tells_kinds else 0

    @property
    def tells_kinds(self) -> bool:
        """Whether `kinds` lists the kinds that it has: not for a member of version 1."""
        return self.version >= _KINDS_SINCE


class Drain(msgspec.Struct, frozen=True):
    """An operator's request that a node give up every shard and copy, until the drain is
    cancelled."""

    at: float
    """Seconds since 1970."""
    by: str = ""


class Pause(msgspec.Struct, frozen=True):
    """An operator's request that notifications and alarms of an object, or a kind, wait until it is
    resumed."""

    at: float
    """Seconds since 1970."""
    by: str = ""


class ShardLoads(msgspec.Struct, frozen=True):
    """The load of the shards that a node owns, which the node tells now and then."""

    turns_per_s: Mapping[int, float]
    """The busiest shards, each with its turns per second. The others are quiet."""


class Hosting(msgspec.Struct, frozen=True):
    """The kinds that a node's shards need. The node tells them while the members' kinds differ."""

    incarnation: int
    looked_for: tuple[str, ...] = ()
    """The kinds that the node has looked for in its shards: its own kinds that another member
    lacks."""
    holds: Mapping[int, tuple[str, ...]] = {}
    """By shard, the kinds of `looked_for` of which the shard has objects. The node has not looked
    into a shard that is missing here."""
    asks: Mapping[int, tuple[str, ...]] = {}
    """By shard, the kinds that another owner of the shard has to have. The node lacks some of them,
    and callers ask for those. The others are in use in the shard."""


class Assignment(msgspec.Struct, frozen=True):
    """The present owner and copies of a shard.

    Only the assigned incarnation of the owner serves the shard: after a restart the node has to be
    assigned again.
    """

    epoch: int
    owner: str
    incarnation: int
    in_sync: tuple[str, ...]
    joining: tuple[str, ...] = ()
    released: bool = False
    """Whether the owner of the epoch before released the shard, after its last reply. Then the new
    owner need not wait until the replicas' promises end."""
    handover: str = ""
    """The in-sync replica to which the controller asks the owner to give the shard."""
    leaving: tuple[str, ...] = ()
    """The in-sync replicas that the controller asks the owner to remove: they are not needed."""
    void_before: int = msgspec.field(default=0, name="born")
    """Copies that end before this epoch are void: an operator has given up their data (`holdfast
    reset-shard`)."""
    forked: tuple[str, ...] = ()
    """The nodes whose copies hold different committed entries. No node serves the shard until an
    operator chooses one copy."""
    keeper: str = ""
    """With `void_before`: the node whose copy is not void, because an operator chose it among
    copies that differ."""
    version: int = 0
    """Grows by one with every change of the assignment. After etcd was put back it is lower."""
    nonce: int = 0
    """Drawn anew with every change, below 2^53. It tells apart two changes that were made from the
    same assignment."""
    level: int = 0
    """How often the shard was split. Always 0: shards cannot be split yet."""

    def __post_init__(self) -> None:
        if not 0 <= self.epoch < EPOCHS_MAX:
            raise ValueError(f"epoch {self.epoch} is not between 0 and 2^48")

    def stamped(self) -> Assignment:
        """Return this assignment with the next version and a new nonce, as it is written to
        etcd."""
        return msgspec.structs.replace(self, version=self.version + 1, nonce=secrets.randbits(53))


class Versioned(msgspec.Struct, frozen=True):
    """An assignment as it is in etcd."""

    assignment: Assignment
    revision: int
    """etcd's revision of the row. Do not compare or order by it: revisions repeat when etcd is put
    back."""
    raw: bytes = b""
    """The row's bytes, which a swap compares. They contain version and nonce, so no other
    assignment has the same bytes."""
    generation: int = 0
    """The generation of the lineage under which it was read."""

    @property
    def order(self) -> int:
        """A number that grows with every change of the assignment, also when etcd is rebuilt."""
        return order_of(self.generation, self.assignment.version)


def order_of(generation: int, version: int) -> int:
    """Return the number that orders the assignments of one shard, and views. It is above 0."""
    return (generation << 48) + version + 1


class View(msgspec.Struct, frozen=True, dict=True):
    """All data of a cluster in etcd, as of `revision`. Immutable; a newer view replaces it."""

    revision: int = 0
    settings: ClusterSettings | None = None
    members: Mapping[str, Member] = {}
    assignments: Mapping[int, Versioned] = {}
    controller: str = ""
    drains: Mapping[str, Drain] = {}
    pauses: Mapping[tuple[str, str], Pause] = {}
    """By kind and key; an empty key is the whole kind."""
    loads: Mapping[str, ShardLoads] = {}
    """By node."""
    hosting: Mapping[str, Hosting] = {}
    """By node."""
    kinds: Mapping[str, tuple[str, ...]] = {}
    """By node, absent nodes included: the kinds that it had when it joined last. A node that was
    always of version 1 is missing."""
    settings_raw: bytes = b""
    """The settings' bytes in etcd, which a change of the settings compares."""
    lineage: Lineage | None = None
    lineage_raw: bytes = b""
    unreadable: Mapping[str, str] = {}
    """By etcd key, why its value cannot be read. The value before it stays in force."""
    hidden: frozenset[str] = frozenset()
    """The members whose values cannot be read and never could be. They may well be present."""

    @property
    def features(self) -> frozenset[str]:
        """The features in use; see `ClusterSettings.features`."""
        return frozenset() if self.settings is None else frozenset(self.settings.features)

    @property
    def order(self) -> int:
        """A number that grows from view to view. It falls only when an etcd was put back that is at
        a lower revision with the same data."""
        return order_of(self.lineage.generation if self.lineage is not None else 0, self.revision)

    @cached_property
    def ring(self) -> Ring:
        """The ring of the members, without those that are drained."""
        return self.ring_with({})

    def ring_with(self, away: Mapping[str, Member]) -> Ring:
        """Return the ring of the members and of `away`, without the nodes that are drained."""
        assert self.settings is not None
        members = {**self.members, **away}.values()
        nodes = sorted(
            (RingNode(m.id, m.host, m.zone, m.weight) for m in members if m.id not in self.drains),
            key=lambda n: n.id,
        )
        return _ring(tuple(nodes), self.settings.shards, self.settings.points)

    def state_of(self, node: str) -> str:
        """Return `active`, `stopping`, `full`, `slow`, `draining` or `absent`."""
        member = self.members.get(node)
        if member is None:
            return "absent"
        return "draining" if node in self.drains else member.state

    def load_of(self, shard: int) -> float:
        """Return the shard's turns per second, as its owner told last; 0 if the owner told none."""
        versioned = self.assignments.get(shard)
        loads = self.loads.get(versioned.assignment.owner) if versioned is not None else None
        return loads.turns_per_s.get(shard, 0.0) if loads is not None else 0.0

    def hosting_of(self, member: Member) -> Hosting:
        """Return the kinds of a member's shards, as its present incarnation told them.

        An empty Hosting means that it told none.
        """
        told = self.hosting.get(member.id)
        return (
            told if told is not None and told.incarnation == member.incarnation else _NOTHING_TOLD
        )

    def owner_of(self, shard: int) -> Member | None:
        """Return the shard's owner, if it is present in the assigned incarnation; otherwise
        None."""
        versioned = self.assignments.get(shard)
        if versioned is None:
            return None
        member = self.members.get(versioned.assignment.owner)
        return (
            member
            if member is not None and member.incarnation == versioned.assignment.incarnation
            else None
        )


_NOTHING_TOLD = Hosting(0)


@lru_cache(maxsize=8)
def _ring(nodes: tuple[RingNode, ...], shards: int, points: int) -> Ring:
    return Ring(nodes, shards, points)


class Keys:
    """The etcd keys of one cluster."""

    def __init__(self, cluster: str) -> None:
        if not CLUSTER_NAME.fullmatch(cluster):
            raise ValueError(
                f"cluster name {cluster!r}: lower-case letters, digits, dots and dashes, up to 64"
            )
        self.prefix = f"/holdfast/{cluster}/"
        self.marks = f"/holdfast-marks/{cluster}/"
        """The keys of marks. They are outside `prefix`, which every process watches."""
        self.lineage = self.prefix + "etcd_lineage"
        self.settings = self.prefix + "settings"
        self.controller = self.prefix + "controller"
        self.members = self.prefix + "members/"
        self.shards = self.prefix + "shards/"
        self.drains = self.prefix + "drains/"
        self.pauses = self.prefix + "pauses/"
        self.loads = self.prefix + "heat/"
        self.all_kinds = self.prefix + "kinds/"
        self.hostings = self.prefix + "hosting/"
        self.incarnations = self.prefix + "incarnations/"

    def member(self, node: str) -> str:
        return self.members + node

    def incarnation(self, node: str) -> str:
        return f"{self.incarnations}{node}"

    def mark(self, node: str) -> str:
        return self.marks + node

    def drain(self, node: str) -> str:
        return self.drains + node

    def load(self, node: str) -> str:
        return self.loads + node

    def kinds(self, node: str) -> str:
        return self.all_kinds + node

    def hosting(self, node: str) -> str:
        return self.hostings + node

    def pause(self, kind: str, key: str) -> str:
        return f"{self.pauses}{kind}/{key}"

    def shard(self, number: int) -> str:
        return f"{self.shards}{number:05d}"


def encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def encode_kinds(kinds: tuple[str, ...]) -> bytes:
    return msgspec.json.encode(kinds)


class Unreadable(ValueError):
    """A value in etcd, or on a disk, does not have the form in which this program writes it."""


def decode_kinds(raw: bytes) -> tuple[str, ...]:
    """Decode a list of kinds. Raise Unreadable."""
    return _decode(raw, tuple[str, ...])


def decode(raw: bytes, type: type[S]) -> S:
    """Decode a value of this type. Raise Unreadable."""
    return _decode(raw, type)


def _decode(raw: bytes, type: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=type)
    except Exception as error:  # msgspec also raises RecursionError and UnicodeDecodeError
        raise Unreadable(f"{error or repr(error)}") from None
