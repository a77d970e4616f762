"""An etcd in memory: rows, revisions, transactions; it can be copied, put back and emptied."""

from __future__ import annotations

import copy
from typing import Any

from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership.etcd import Listing
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.placement.model import Keys

KEYS = Keys("default")


class Rows:
    """What an etcd holds."""

    def __init__(self) -> None:
        self.rows: dict[bytes, pb.KeyValue] = {}
        self.revision = 1

    def snapshot(self) -> Rows:
        return copy.deepcopy(self)

    def restore(self, snapshot: Rows, revision: int = 0) -> None:
        """Be as the snapshot was; at a higher revision if one is given."""
        self.rows = copy.deepcopy(snapshot.rows)
        self.revision = max(snapshot.revision, revision)

    def put(self, key: str, value: bytes) -> None:
        self.revision += 1
        self._put(key.encode(), value)

    def value(self, key: str) -> bytes | None:
        row = self.rows.get(key.encode())
        return None if row is None else row.value

    def _put(self, key: bytes, value: bytes) -> None:
        self.rows[key] = pb.KeyValue(key=key, value=value, mod_revision=self.revision)

    def holds(self, compare: pb.Compare) -> bool:
        row = self.rows.get(compare.key)
        if compare.target == pb.Compare.VALUE:
            return row is not None and row.value == compare.value
        assert compare.target == pb.Compare.MOD
        return (0 if row is None else row.mod_revision) == compare.mod_revision

    def do(self, ops: list[pb.RequestOp]) -> list[pb.ResponseOp]:
        if any(not op.HasField("request_range") for op in ops):
            self.revision += 1
        answers = []
        for op in ops:
            answer = pb.ResponseOp()
            if op.HasField("request_put"):
                self._put(op.request_put.key, op.request_put.value)
            elif op.HasField("request_delete_range"):
                start, end = op.request_delete_range.key, op.request_delete_range.range_end
                self.rows = {
                    k: row
                    for k, row in self.rows.items()
                    if not (k == start or (end and start <= k < end))
                }
            else:
                row = self.rows.get(op.request_range.key)
                answer.response_range.kvs.extend([] if row is None else [row])
            answers.append(answer)
        return answers


class FakeEtcd(GuardedEtcd):
    """A client of `Rows`. What it compares and writes is what production's client does."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(["fake:1"], KEYS)
        self.store = rows

    async def get(self, key: str) -> pb.KeyValue | None:
        return self.store.rows.get(key.encode())

    async def list_prefix(self, prefix: str) -> Listing:
        rows = [
            row for key, row in sorted(self.store.rows.items()) if key.startswith(prefix.encode())
        ]
        return Listing(rows, self.store.revision)

    async def transact(self, compare: Any, success: Any, failure: Any) -> pb.TxnResponse:
        happens = all(self.store.holds(one) for one in compare)
        responses = self.store.do(success if happens else failure)
        return pb.TxnResponse(
            header=pb.ResponseHeader(revision=self.store.revision),
            succeeded=happens,
            responses=responses,
        )
