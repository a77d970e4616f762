"""What etcd holds for a cluster, and the immutable picture of it that every process works from.

Keys, all below `/holdfast/<cluster>/`, values JSON so that etcdctl shows them:

    etcd_lineage             Lineage: which course of events this etcd tells of; every transaction compares it
    settings                 ClusterSettings, written at formation
    members/<node id>        Member, under the node's lease
    incarnations/<node id>   how often the node's data directory was started, kept for ever
    shards/<number>          Assignment
    drains/<node id>         Drain: an operator wants the node to be given up
    heat/<node id>           Heat: how busy the shards are that the node owns, under its lease
    kinds/<node id>          the kinds that the node had when it joined last, kept for ever
    hosting/<node id>        Hosting: the kinds that the shards need which the node owns, under its lease
    pauses/<kind>/<key>      Pause: an operator has stopped deliveries and alarms to an object, or, without a key, to a kind
    controller               the node id of the controller, under its lease

Below `/holdfast-marks/<cluster>/`, which nobody watches: `<node id>`, how much was written to a
node's data directory.
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
"""Epochs stay below it: sequences of notifications keep the 16 bits above for the moves of an
object (docs/reference/format.md)."""
GENERATIONS_MAX = 1 << 15
VERSION = 2
"""What `Member.version` says of this program: the newest format of records and messages that it
reads and writes."""
_KINDS_SINCE = 2
EXPIRY = "expiry"
"""Values and objects that expire."""
SEND = "send"
"""Calls that are stored, to be run later."""
ALARM_LIMITS = "alarm-limits"
"""Repeated alarms that end by themselves."""
FEATURES: tuple[str, ...] = (ALARM_LIMITS, EXPIRY, SEND)
"""The features that this program knows. A cluster turns one on when every member has announced it;
see `ClusterSettings.features`."""
CLUSTER_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")
NODE_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?")


class ClusterSettings(msgspec.Struct, frozen=True):
    """What all processes of a cluster must agree on; fixed when it is formed."""

    shards: int = 256
    replication: int = 3
    """Copies of each shard."""
    min_in_sync: int = 0
    """Copies that have to be in sync for writes; 0: a majority of `replication`."""
    points: int = 128
    hash_version: int = HASH_VERSION
    id: str = ""
    """Made at formation: tells this cluster from another one of the same name."""
    features: tuple[str, ...] = ()
    """What the cluster uses beyond the first version: written only once every member has announced
    that it knows it. A process that meets one that it does not know must not take part."""

    def unknown_features(self) -> list[str]:
        """The features in use that this program does not know."""
        return sorted(set(self.features) - set(FEATURES))

    def validate(self) -> None:
        """Raises ValueError naming the setting that is out of its range."""
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
        """The number of copies in sync from which on a shard takes writes."""
        return self.min_in_sync or self.replication // 2 + 1

    def differences(self, other: ClusterSettings) -> list[str]:
        """The settings in which two processes disagree, as `name: mine, theirs`."""
        names = ("shards", "replication", "min_in_sync", "points", "hash_version")
        return [
            f"{n}: {getattr(self, n)} here, {getattr(other, n)} there"
            for n in names
            if getattr(self, n) != getattr(other, n)
        ]


class Lineage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which course of events etcd tells of. An etcd that was put back to an older state tells of an
    older one: see lineage.py."""

    generation: int = 0
    """Grows by one each time that etcd is rebuilt (`holdfast adopt-etcd`): whatever an earlier one
    said counts no more."""
    nonce: int = 0
    """Drawn anew with every generation, below 2^53."""
    state: str = ""
    """Empty: followed. `halted`: a process has found that etcd went back, and nobody follows it.
    `adopting`: it is being rebuilt."""
    by: str = ""
    """Who halted it."""
    why: str = ""

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
    """The address for streams (holdfast_cluster.streams.tcp); `address` is that for gRPC."""
    state: str = "active"
    """`active`; `stopping`: it will be away for a moment, so it wants to own nothing; its copies
    stay. `full`: its disk is: it wants to own nothing and to get nothing, and its copies stay.
    `slow`: its disk holds up writes; the same."""
    version: int = 1
    """The newest format of records and messages that the process reads and writes;
    see `VERSION`."""
    kinds: tuple[str, ...] = ()
    """The kinds of its app, sorted."""
    features: tuple[str, ...] = ()
    """What it can do beyond the first version; see `ClusterSettings.features`."""

    @property
    def name(self) -> str:
        """The id without its random part: the same for every disk that the node has had."""
        return self.id.rpartition("-")[0] or self.id

    def missing(self, kinds: Iterable[str]) -> int:
        """How many of these kinds it lacks; 0 for a member of version 1, which does not say what it
        has."""
        return len(set(kinds).difference(self.kinds)) if self.tells_kinds else 0

    @property
    def tells_kinds(self) -> bool:
        """Whether `kinds` says what it has."""
        return self.version >= _KINDS_SINCE


class Drain(msgspec.Struct, frozen=True):
    """A node that is to lose what it owns and every copy; it stays so until the drain
    is cancelled."""

    at: float
    """Seconds since 1970."""
    by: str = ""


class Pause(msgspec.Struct, frozen=True):
    """Notifications to an object, or a kind, are not delivered, and its alarms do not fire, until
    it is resumed."""

    at: float
    """Seconds since 1970."""
    by: str = ""


class Heat(msgspec.Struct, frozen=True):
    """What a node says now and then of the shards that it owns."""

    turns_per_s: Mapping[int, float]
    """By shard, the busiest ones; the others are quiet."""


class Hosting(msgspec.Struct, frozen=True):
    """What a node says of the kinds that its shards need, while the members do not all have the
    same kinds."""

    incarnation: int
    looked_for: tuple[str, ...] = ()
    """The kinds that the node has looked for in its shards: those of its own that another member
    lacks."""
    holds: Mapping[int, tuple[str, ...]] = {}
    """By shard: which of them the shard has objects of. The node has not looked into a shard that
    is not here."""
    asks: Mapping[int, tuple[str, ...]] = {}
    """By shard: kinds of the member that the node wants as the owner in its place. Some the node
    lacks, and they are asked for there; the others are in use there."""


class Assignment(msgspec.Struct, frozen=True):
    """What is true for a shard. The owner serves only as the incarnation that was assigned: a
    restart is a new life."""

    epoch: int
    owner: str
    incarnation: int
    in_sync: tuple[str, ...]
    joining: tuple[str, ...] = ()
    released: bool = False
    """The owner of the epoch before gave the shard up itself, after its last reply: its promises
    need not be waited out."""
    handover: str = ""
    """The in-sync replica to which the owner is asked to give the shard."""
    leaving: tuple[str, ...] = ()
    """In-sync replicas that are not needed any more: the owner is asked to have them removed."""
    void_before: int = msgspec.field(default=0, name="born")
    """Copies that end before this epoch are void: an operator has given up on them (`holdfast
    reset-shard`)."""
    forked: tuple[str, ...] = ()
    """Nodes whose copies hold committed entries of turns that differ: nobody serves the shard until
    an operator chooses one."""
    keeper: str = ""
    """With `void_before`: the node whose copy is not void, because an operator has chosen it of several
    that differ."""
    version: int = 0
    """Grows by one with every change of the assignment, whatever changes. An etcd that was put back
    shows an older one."""
    nonce: int = 0
    """Drawn anew with every change, below 2^53: two changes that were made of the same assignment
    differ in it."""
    level: int = 0
    """How often the shard was split; 0 until shards can be."""

    def __post_init__(self) -> None:
        if not 0 <= self.epoch < EPOCHS_MAX:
            raise ValueError(f"epoch {self.epoch} is not between 0 and 2^48")

    def stamped(self) -> Assignment:
        """What is written to etcd in place of the assignment that this one was made from: the next
        version, under a new nonce."""
        return msgspec.structs.replace(self, version=self.version + 1, nonce=secrets.randbits(53))


class Versioned(msgspec.Struct, frozen=True):
    """An assignment as it is in etcd."""

    assignment: Assignment
    revision: int
    """etcd's revision of it. Revisions repeat when etcd is put back: neither a comparison nor an
    order may rest on them."""
    raw: bytes = b""
    """The very bytes, which a swap compares: they hold version and nonce, so no other assignment
    has them."""
    generation: int = 0
    """Of the lineage under which it was read."""

    @property
    def order(self) -> int:
        """Grows with every change of the shard's assignment, across rebuilt etcds too."""
        return order_of(self.generation, self.assignment.version)


def order_of(generation: int, version: int) -> int:
    """The order of assignments of one shard, and of views: above 0 for any that exists."""
    return (generation << 48) + version + 1


class View(msgspec.Struct, frozen=True, dict=True):
    """Everything that etcd said about a cluster up to `revision`. Immutable; the next one replaces
    it."""

    revision: int = 0
    settings: ClusterSettings | None = None
    members: Mapping[str, Member] = {}
    assignments: Mapping[int, Versioned] = {}
    controller: str = ""
    drains: Mapping[str, Drain] = {}
    pauses: Mapping[tuple[str, str], Pause] = {}
    """By kind and key; an empty key is the whole kind."""
    heat: Mapping[str, Heat] = {}
    """By node."""
    hosting: Mapping[str, Hosting] = {}
    """By node."""
    kinds: Mapping[str, tuple[str, ...]] = {}
    """By node, also by one that is absent: what it had when it joined last. A node that was always
    of version 1 is not here."""
    settings_raw: bytes = b""
    """The very bytes of the settings, for whoever changes them."""
    lineage: Lineage | None = None
    lineage_raw: bytes = b""
    unreadable: Mapping[str, str] = {}
    """By key of etcd, why its value is passed over: what was there before holds."""
    hidden: frozenset[str] = frozenset()
    """Members whose values cannot be read, and of whom nothing is known from before: they may well
    be there."""

    @property
    def features(self) -> frozenset[str]:
        """The features in use; see `ClusterSettings.features`."""
        return frozenset() if self.settings is None else frozenset(self.settings.features)

    @property
    def order(self) -> int:
        """Grows from view to view, except when an etcd is put back that says the same at a lower
        revision."""
        return order_of(self.lineage.generation if self.lineage is not None else 0, self.revision)

    @cached_property
    def ring(self) -> Ring:
        """The ring of the members that are to have copies."""
        return self.ring_with({})

    def ring_with(self, away: Mapping[str, Member]) -> Ring:
        """The ring with others beside those that are there."""
        assert self.settings is not None
        members = {**self.members, **away}.values()
        nodes = sorted(
            (RingNode(m.id, m.host, m.zone, m.weight) for m in members if m.id not in self.drains),
            key=lambda n: n.id,
        )
        return _ring(tuple(nodes), self.settings.shards, self.settings.points)

    def state_of(self, node: str) -> str:
        """`active`, `stopping`, `full`, `slow`, `draining` or `absent`."""
        member = self.members.get(node)
        if member is None:
            return "absent"
        return "draining" if node in self.drains else member.state

    def heat_of(self, shard: int) -> float:
        """Turns a second, as its owner said last; 0 for a quiet shard, and for one that nothing is
        known of."""
        versioned = self.assignments.get(shard)
        heat = self.heat.get(versioned.assignment.owner) if versioned is not None else None
        return heat.turns_per_s.get(shard, 0.0) if heat is not None else 0.0

    def hosting_of(self, member: Member) -> Hosting:
        """What a member has said of its shards' kinds in its present incarnation; nothing, when it
        has not said anything."""
        told = self.hosting.get(member.id)
        return (
            told if told is not None and told.incarnation == member.incarnation else _NOTHING_TOLD
        )

    def owner_of(self, shard: int) -> Member | None:
        """The member that may serve the shard now: its owner, present, in the incarnation that was
        assigned."""
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
        """Beside the prefix, which every process watches."""
        self.lineage = self.prefix + "etcd_lineage"
        self.settings = self.prefix + "settings"
        self.controller = self.prefix + "controller"
        self.members = self.prefix + "members/"
        self.shards = self.prefix + "shards/"
        self.drains = self.prefix + "drains/"
        self.pauses = self.prefix + "pauses/"
        self.heats = self.prefix + "heat/"
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

    def heat(self, node: str) -> str:
        return self.heats + node

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
    """What etcd, or a disk, holds under a key is not what this program writes there."""


def decode_kinds(raw: bytes) -> tuple[str, ...]:
    """Raises Unreadable."""
    return _decode(raw, tuple[str, ...])


def decode(raw: bytes, type: type[S]) -> S:
    """Raises Unreadable."""
    return _decode(raw, type)


def _decode(raw: bytes, type: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=type)
    except Exception as error:  # RecursionError and UnicodeDecodeError are no errors of msgspec's
        raise Unreadable(f"{error or repr(error)}") from None
