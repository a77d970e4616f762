"""What `holdfast.testing` promises to tests of applications."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast import Alarm, App, DurableObject, Rejected
from holdfast.testing import Cluster, virtual_cluster

app = App()
ran: list[str] = []
kept: list[Any] = []


@app.kind(notify_attempts=3)
class Thing(DurableObject):
    def __init__(self) -> None:
        self.remembered = 0

    async def add(self, n: int = 1, wait: float = 0.0) -> int:
        ran.append(f"add {n}")
        self.remembered += 1
        total = self.storage.get("n", int, default=0) + n
        self.storage.put("n", total)
        await asyncio.sleep(wait)
        return total

    async def in_memory(self) -> int:
        return self.remembered

    async def tell(self, other: str, n: int) -> None:
        self.notify(Thing, other).add(n)
        self.notify(Thing, other, delay=timedelta(hours=1)).add(n * 100)

    async def ask(self, other: str) -> int:
        return await self.objects.get(Thing, other).add(5)

    async def ask_itself(self) -> None:
        await self.objects.get(Thing, self.key).add()

    async def remind(self, in_s: float, name: str = "default") -> None:
        self.set_alarm(timedelta(seconds=in_s), name, payload={"name": name})

    async def on_alarm(self, alarm: Alarm) -> None:
        if alarm.name == "bad":
            raise Rejected("bad alarm")
        self.storage.put(
            f"fired {alarm.name}", self.storage.get(f"fired {alarm.name}", int, default=0) + 1
        )

    async def refuse(self) -> None:
        raise Rejected("no", why="because")

    async def in_a_thread(self) -> str:
        def work() -> str:
            time.sleep(0.05)
            return "from a thread"

        return await asyncio.to_thread(work)

    async def who(self) -> list[Any]:
        return [self.caller, dict(self.request.metadata), self.request.attempt]

    async def connect_and_keep(self) -> str:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        kept.append((server, await asyncio.open_connection(*server.sockets[0].getsockname()[:2])))
        return "connected"

    async def run_a_child(self) -> int:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import time; time.sleep(0.3); raise SystemExit(7)"
        )
        return await child.wait()

    async def late(self) -> None:
        await asyncio.sleep(100)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    ran.clear()
    with virtual_cluster(app) as cluster:
        yield cluster


def test_it_starts_in_less_than_a_tenth_of_a_second() -> None:
    with virtual_cluster(app):
        pass
    began = time.perf_counter()
    for _ in range(5):
        with virtual_cluster(app):
            pass
    assert time.perf_counter() - began < 0.5


def test_time_is_virtual(cluster: Cluster) -> None:
    began, now = time.perf_counter(), cluster.now()
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)
    assert cluster.get(Thing, "a").add(wait=20.0) == 1
    cluster.advance(timedelta(days=30))
    assert timedelta(days=30, seconds=20) <= cluster.now() - now < timedelta(days=30, seconds=40)
    assert time.perf_counter() - began < 15  # in real time the wait alone would take 20 s
    with pytest.raises(ValueError, match="does not go back"):
        cluster.advance(timedelta(seconds=-1))
    with virtual_cluster(app, now=datetime(2030, 1, 1, tzinfo=UTC)) as other:
        assert other.now().year == 2030


def test_a_turn_that_is_too_long_fails_as_it_would(cluster: Cluster) -> None:
    with pytest.raises(holdfast.DeadlineExceeded):
        cluster.get(Thing, "a").late()
    with pytest.raises(holdfast.DeadlineExceeded):
        cluster.get(Thing, "a", timeout=0.5).add(wait=5.0)
    assert cluster.stored(Thing, "a") == {}


def test_while_a_thread_works_time_is_real(cluster: Cluster) -> None:
    assert cluster.get(Thing, "a").in_a_thread() == "from a thread"


def test_alarms_fire_when_time_passes_or_when_they_are_told_to(cluster: Cluster) -> None:
    thing = cluster.get(Thing, "a")
    thing.remind(3600.0)
    thing.remind(7200.0, "later")
    thing.remind(7200.0, "bad")
    assert [alarm.name for alarm in cluster.alarms(Thing, "a")] == ["default", "later", "bad"]
    cluster.fire_alarm(Thing, "a", "later")
    assert cluster.stored(Thing, "a") == {"fired later": 1}
    cluster.advance(timedelta(hours=1))
    assert cluster.stored(Thing, "a") == {"fired default": 1, "fired later": 1}
    with pytest.raises(LookupError, match="no alarm 'default'; there is 'bad'"):
        cluster.fire_alarm(Thing, "a")
    with pytest.raises(Rejected, match="bad alarm"):
        cluster.fire_alarm(Thing, "a", "bad")
    cluster.advance(timedelta(hours=2))
    [letter] = cluster.dead_letters()
    assert (letter["alarm"], letter["to"]) == ("bad", "Thing/a")


def test_notifications_arrive_and_delayed_ones_when_it_is_time(cluster: Cluster) -> None:
    cluster.get(Thing, "a").tell("b", 7)
    cluster.settle()
    assert cluster.stored(Thing, "b") == {"n": 7}
    cluster.advance(timedelta(minutes=61))
    assert cluster.stored(Thing, "b") == {"n": 707}
    cluster.notify(Thing, "b", delay=timedelta(hours=1)).add(1)
    cluster.settle()
    assert cluster.stored(Thing, "b") == {"n": 707}
    cluster.advance(timedelta(minutes=61))
    assert cluster.stored(Thing, "b") == {"n": 708}


def test_a_reply_that_is_lost_makes_its_call_once(cluster: Cluster) -> None:
    cluster.drop_next_reply()
    assert cluster.get(Thing, "a").add(3) == 3
    assert ran == ["add 3"]
    assert cluster.stored(Thing, "a") == {"n": 3}
    cluster.drop_next_reply()
    cluster.drop_next_reply()
    assert cluster.get(Thing, "a").add(4) == 7
    assert cluster.get(Thing, "a").who() == ["", {}, 0]


def test_a_crash_loses_instances_and_nothing_that_was_acknowledged(cluster: Cluster) -> None:
    thing = cluster.get(Thing, "a")
    thing.remind(60.0)
    assert [thing.add() for _ in range(3)] == [1, 2, 3]
    assert thing.in_memory() == 3
    cluster.crash_owner(Thing, "a")
    assert thing.in_memory() == 0
    assert cluster.stored(Thing, "a") == {"n": 3}
    cluster.advance(timedelta(minutes=2))
    assert cluster.stored(Thing, "a") == {"n": 3, "fired default": 1}


def test_a_call_that_is_under_way_in_a_crash_is_made_again_and_takes_effect_once(
    cluster: Cluster,
) -> None:
    async def crash_meanwhile() -> int:
        call = asyncio.ensure_future(cluster.client.get(Thing, "a").add(3, 1.0))
        await asyncio.sleep(0.5)
        await cluster._crash()  # type: ignore[attr-defined]
        return int(await call)

    assert cluster.run(crash_meanwhile()) == 3
    assert ran == ["add 3", "add 3"], "the first turn was never committed"
    assert cluster.get(Thing, "a").add(1) == 4


def test_an_object_leaves_memory(cluster: Cluster) -> None:
    thing = cluster.get(Thing, "a")
    assert not cluster.evict(Thing, "a")
    thing.add()
    assert cluster.evict(Thing, "a")
    assert thing.in_memory() == 0
    thing.add()
    cluster.advance(timedelta(minutes=6))
    assert thing.in_memory() == 0, "for idleness"


def test_objects_call_each_other_and_errors_are_those_of_a_client(cluster: Cluster) -> None:
    assert cluster.get(Thing, "a").ask("b") == 5
    with pytest.raises(holdfast.Deadlock):
        cluster.get(Thing, "a").ask_itself()
    with pytest.raises(Rejected, match="no") as refused:
        cluster.get(Thing, "a").refuse()
    assert refused.value.data == {"why": "because"}
    with pytest.raises(AttributeError, match="no handler 'ad'; did you mean 'add'"):
        cluster.get(Thing, "a").ad()  # type: ignore[attr-defined]
    with pytest.raises(holdfast.InvalidArgument):
        cluster.get(Thing, "a").add("x")  # type: ignore[arg-type]
    with pytest.raises(holdfast.NotFound):
        cluster.get("Nothing", "a").add()


def test_calls_have_the_options_of_clients(cluster: Cluster) -> None:
    assert cluster.get(Thing, "a", caller="ada", metadata={"x": "y"}).who() == [
        "ada",
        {"x": "y"},
        0,
    ]
    for _ in range(2):
        assert cluster.get(Thing, "a", idempotency_key="once").add(2) == 2
    request_id = holdfast.new_request_id()
    for _ in range(2):
        assert cluster.get(Thing, "a", request_id=request_id).add(2) == 4


def test_years_pass(cluster: Cluster) -> None:
    cluster.get(Thing, "a").remind(86_400.0 * 300)
    cluster.advance(timedelta(days=299))
    assert cluster.stored(Thing, "a") == {}
    cluster.advance(timedelta(days=400))
    assert cluster.stored(Thing, "a") == {"fired default": 1}


def test_a_connection_that_nobody_uses_does_not_make_time_real(cluster: Cluster) -> None:
    assert cluster.get(Thing, "a").connect_and_keep() == "connected"
    began = time.perf_counter()
    cluster.advance(timedelta(days=10))
    assert time.perf_counter() - began < 15


def test_a_child_process_is_waited_for(cluster: Cluster) -> None:
    assert cluster.get(Thing, "a").run_a_child() == 7


async def test_in_a_coroutine_it_says_how_it_is_used(cluster: Cluster) -> None:
    with pytest.raises(Exception, match="has a loop of its own"):
        cluster.get(Thing, "a").add()


def order_of(seed: int) -> list[int]:
    async def race(cluster: Cluster) -> list[int]:
        stub = cluster.client.get(Thing, "a")
        return list(await asyncio.gather(*(stub.add(1) for _ in range(8))))

    with virtual_cluster(app, seed=seed) as cluster:
        assert cluster.seed == seed
        return cluster.run(race(cluster))


def test_a_seed_gives_the_same_order_again_and_another_one_another() -> None:
    assert order_of(1) == order_of(1)
    assert len({tuple(order_of(seed)) for seed in range(10)}) > 5


def test_the_fixtures_are_there_without_an_import_and_a_failure_names_its_seed(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(
        "from holdfast import App, DurableObject\napp = App()\n\n@app.kind\nclass"
        " Cart(DurableObject):\n    async def add(self, what: str) -> int:\n       "
        " self.storage.put(what, 1)\n        return len(self.storage.list())\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nholdfast_app = shop.py\n")
    (tmp_path / "test_shop.py").write_text(
        "def test_good(holdfast_cluster):\n    assert holdfast_cluster.get('Cart', 'c').add('tea')"
        " == 1\n\ndef test_bad(holdfast_cluster):\n    assert holdfast_cluster.seed != 77\n"
    )

    def pytest_says(*options: str) -> str:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=60
        ).stdout

    assert "2 passed" in pytest_says()
    said = pytest_says("--holdfast-seed", "77")
    assert "1 failed, 1 passed" in said
    assert "seed of the cluster: --holdfast-seed 77" in said
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    assert "no app is set: define a fixture `holdfast_app`" in pytest_says()
