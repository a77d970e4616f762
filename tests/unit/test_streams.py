"""Streams of frames: what arrives, what is refused, what ends them."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from holdfast.channels import AddressInUse, split_address
from holdfast.frames import FrameWriter
from holdfast.tls import CertificateError, Certificates
from holdfast_cluster.streams import tcp as streams
from holdfast_cluster.streams.tcp import (
    PROTOCOL,
    Hello,
    Stream,
    StreamRefused,
    StreamServer,
    open_stream,
)

from tests.certs import Authority

ME = "n-1:7"


class Echo:
    """Serves "echo"; keeps what it got and every stream."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.streams: list[Stream] = []
        self.hellos: list[Hello] = []
        self.tasks: list[asyncio.Task[None]] = []

    def __call__(self, hello: Hello, stream: Stream) -> Callable[[bytes], None]:
        if hello.target != ME:
            raise StreamRefused(f"meant for {hello.target}")
        self.hellos.append(hello)
        self.streams.append(stream)

        def received(frame: bytes) -> None:
            if frame == b"poison":
                raise RuntimeError("poison")
            self.got.append(frame)
            self.tasks.append(asyncio.create_task(stream.write(frame)))

        return received


def run(test: Callable[[Echo, str], object]) -> None:
    """Run `test(echo, address)` beside a server, on the loop that nodes use."""

    async def main() -> None:
        echo = Echo()
        server = StreamServer({"echo": echo})
        port = await server.listen("127.0.0.1:0")
        try:
            await test(echo, f"127.0.0.1:{port}")  # type: ignore[misc]
        finally:
            await server.close()
            await asyncio.gather(*echo.tasks, return_exceptions=True)

    uvloop.run(main())


async def raw(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + payload


HELLO = framed(msgspec.msgpack.encode(Hello(PROTOCOL, "echo", ME)))


async def answer(reader: asyncio.StreamReader) -> list[str]:
    size = int.from_bytes(await reader.readexactly(4), "little")
    return msgspec.msgpack.decode(await reader.readexactly(size), type=list[str])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_frames_of_every_size_arrive_whole_and_in_order() -> None:
    async def test(echo: Echo, address: str) -> None:
        back: list[bytes] = []
        stream = await open_stream(address, "echo", ME, back.append, "n-2:3")
        rng = random.Random(5)
        sizes = [1, 2, 3, 65_531, 65_532, 65_533, 65_536, 131_072, 1_000_000, 5] + [
            rng.randrange(1, 3000) for _ in range(500)
        ]
        frames = [rng.randbytes(size) for size in sizes]
        for frame in frames:
            await stream.write(frame)
        await until(lambda: len(back) == len(frames))
        assert echo.got == frames
        assert back == frames
        assert echo.hellos == [Hello(PROTOCOL, "echo", ME, "n-2:3")]
        stream.close("done")
        assert await stream.wait() == "done"
        with pytest.raises(ConnectionResetError):
            await stream.write(b"late")

    run(test)


def test_bytes_may_come_one_by_one() -> None:
    async def test(echo: Echo, address: str) -> None:
        reader, writer = await raw(address)
        for byte in HELLO + framed(b"hello") + framed(b"") + framed(b"again"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert await answer(reader) == [""]
        assert await reader.readexactly(18) == framed(b"hello") + framed(b"again")
        writer.close()

    run(test)


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (framed(msgspec.msgpack.encode(Hello(PROTOCOL, "echo", "other:1"))), "meant for other:1"),
        (framed(msgspec.msgpack.encode(Hello(PROTOCOL, "nothing", ME))), "no service nothing"),
        (
            framed(msgspec.msgpack.encode(Hello("holdfast-stream/9", "echo", ME))),
            "this is holdfast-stream/1, not holdfast-stream/9",
        ),
        (framed(b"GET / HTTP/1.1"), "this is holdfast-stream/1; its first frame has to be a Hello"),
    ],
)
def test_who_is_not_meant_is_told_and_closed(first: bytes, why: str) -> None:
    async def test(echo: Echo, address: str) -> None:
        reader, writer = await raw(address)
        writer.write(first + framed(b"not for you"))
        assert await answer(reader) == [why]
        assert await reader.read() == b""
        assert not echo.got
        writer.close()

    run(test)


def test_the_side_that_connects_hears_why_it_is_refused() -> None:
    async def test(echo: Echo, address: str) -> None:
        with pytest.raises(StreamRefused, match="meant for other:1"):
            await open_stream(address, "echo", "other:1", lambda frame: None)
        with pytest.raises(ConnectionRefusedError):
            await open_stream("127.0.0.1:1", "echo", ME, lambda frame: None)
        with pytest.raises(ValueError, match="not an address"):
            await open_stream("nowhere", "echo", ME, lambda frame: None)

    run(test)


def test_an_http_server_in_its_place_is_no_node() -> None:
    async def main() -> None:
        async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(http, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionResetError, match=r"a frame of \d+ bytes; at most 4096"):
            await open_stream(f"127.0.0.1:{port}", "echo", ME, lambda frame: None)
        server.close()

    uvloop.run(main())


def test_a_first_frame_that_is_too_long_ends_the_connection_before_it_is_read() -> None:
    async def test(echo: Echo, address: str) -> None:
        reader, writer = await raw(address)
        writer.write((5000).to_bytes(4, "little"))
        assert await reader.read() == b""
        writer.close()

    run(test)


def test_a_frame_that_is_too_long_ends_the_stream_and_takes_no_memory() -> None:
    async def test(echo: Echo, address: str) -> None:
        reader, writer = await raw(address)
        writer.write(HELLO)
        assert await answer(reader) == [""]
        writer.write((0xFFFF_FFFF).to_bytes(4, "little"))
        assert await reader.read() == b""
        assert await echo.streams[0].wait() == "a frame of 4294967295 bytes; at most 67108864"
        writer.close()

    run(test)


def test_a_frame_that_cannot_be_worked_on_ends_its_stream_and_no_other() -> None:
    async def test(echo: Echo, address: str) -> None:
        back: list[bytes] = []
        one = await open_stream(address, "echo", ME, back.append)
        two = await open_stream(address, "echo", ME, back.append)
        await one.write(b"poison")
        assert await asyncio.wait_for(one.wait(), 5)
        await two.write(b"well")
        await until(lambda: back == [b"well"])
        two.close("done")

    run(test)


def test_who_does_not_say_who_it_is_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_GREETING_S", 0.2)
    monkeypatch.setattr(streams, "_UNGREETED_MAX", 3)

    async def test(echo: Echo, address: str) -> None:
        silent = [await raw(address) for _ in range(3)]
        # one too many: the oldest goes, and who means it stays
        stream = await open_stream(address, "echo", ME, lambda frame: None)
        assert await asyncio.wait_for(silent[0][0].read(), 0.15) == b""
        stream.close("done")
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()

    run(test)


def test_a_peer_that_falls_silent_is_given_up_and_one_that_is_idle_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "_BEAT_S", 0.05)
    monkeypatch.setattr(streams, "_SILENCE_S", 0.4)

    async def test(echo: Echo, address: str) -> None:
        idle = await open_stream(address, "echo", ME, lambda frame: None)
        _, frozen = await raw(address)
        frozen.write(HELLO)
        await until(lambda: len(echo.streams) == 2)
        assert await echo.streams[1].wait() == "nothing was heard for 0 s"
        await asyncio.sleep(0.6)
        assert not idle.ended.done()
        assert not echo.streams[0].ended.done()
        idle.close("done")
        frozen.close()

    run(test)


def test_a_reader_that_does_not_read_stops_the_writer() -> None:
    async def test(echo: Echo, address: str) -> None:
        _, slow = await raw(address)
        slow.write(HELLO)
        await until(lambda: echo.streams)
        writer: FrameWriter[bytes] = FrameWriter(b"".join, len)
        sending = echo.streams[0].send_from(writer)
        for _ in range(200):
            writer.push(b"x" * 1_000_000, 1_000_000)
        await asyncio.sleep(0.3)
        # it waits with us, where it is counted, and not in the connection
        assert writer.backlog > 150_000_000
        slow.close()
        await echo.streams[0].wait()
        await until(sending.done)

    run(test)


def test_who_is_busy_reads_no_more_until_it_is_done() -> None:
    async def test(echo: Echo, address: str) -> None:
        stream = await open_stream(address, "echo", ME, lambda frame: None)
        done = asyncio.Event()

        async def busy() -> None:
            await done.wait()

        await stream.write(b"first")
        await until(lambda: echo.got)
        echo.streams[0].pause_reading_while(busy())
        echo.streams[0].pause_reading_while(busy())  # once is enough
        await stream.write(b"second")
        await asyncio.sleep(0.1)
        assert echo.got == [b"first"]
        done.set()
        await until(lambda: echo.got == [b"first", b"second"])
        stream.close("done")

    run(test)


def test_a_wait_that_fails_ends_its_stream(caplog: pytest.LogCaptureFixture) -> None:
    async def test(echo: Echo, address: str) -> None:
        stream = await open_stream(address, "echo", ME, lambda frame: None)

        async def busy() -> None:
            raise RuntimeError("the wait is broken")

        echo.streams[0].pause_reading_while(busy())
        async with asyncio.timeout(5):
            assert await echo.streams[0].wait() == "a wait failed: the wait is broken"
            await stream.wait()

    run(test)
    assert "the wait is broken" in caplog.text


def test_who_gets_busy_in_the_middle_of_what_was_read_gets_the_rest_later_and_whole() -> None:
    async def test(echo: Echo, address: str) -> None:
        reader, writer = await raw(address)
        writer.write(HELLO)
        assert await answer(reader) == [""]
        stream = echo.streams[0]
        received = stream.received

        def busy_each_time(frame: bytes) -> None:
            received(frame)
            stream.pause_reading_while(asyncio.sleep(0.02))

        stream.received = busy_each_time
        frames = [
            bytes([i]) * size for i, size in enumerate((10, 3, 70_000, 1, 200_000, 5, 65_532, 7))
        ]
        writer.write(b"".join(framed(frame) for frame in frames))
        await asyncio.sleep(0.01)
        assert len(echo.got) < len(frames)
        await until(lambda: len(echo.got) == len(frames))
        assert echo.got == frames
        writer.close()

    run(test)


def test_a_writer_that_fails_ends_its_stream() -> None:
    async def test(echo: Echo, address: str) -> None:
        def pack(frames: list[bytes]) -> bytes:
            raise RuntimeError("cannot be packed")

        stream = await open_stream(address, "echo", ME, lambda frame: None)
        writer: FrameWriter[bytes] = FrameWriter(pack, len)
        stream.send_from(writer)
        writer.push(b"x", 1)
        assert await stream.wait() == "cannot be packed"

    run(test)


def test_an_address_that_is_taken_is_refused() -> None:
    async def test(echo: Echo, address: str) -> None:
        with pytest.raises(AddressInUse, match="cannot listen at"):
            await StreamServer({}).listen(address)

    run(test)


@pytest.mark.parametrize("missing", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("size", [65_531, 65_533, 70_000, 300_000])
def test_a_large_frame_whose_end_comes_later_arrives(missing: int, size: int) -> None:
    async def test(echo: Echo, address: str) -> None:
        reader, writer = await raw(address)
        writer.write(HELLO)
        assert await answer(reader) == [""]
        frame = random.Random(missing).randbytes(size)
        sent = framed(b"before") + framed(frame)
        writer.write(sent[:-missing])
        await asyncio.sleep(0.05)
        writer.write(sent[-missing:] + framed(b"after"))
        await until(lambda: echo.got == [b"before", frame, b"after"])
        writer.close()

    run(test)


def of_a_process(folder: Path) -> Certificates:
    authority = Authority(folder)
    return Certificates(*authority.sign("process", "c.holdfast"), authority.file, "c.holdfast")


async def serving(echo: Echo, certificates: Certificates) -> tuple[StreamServer, str]:
    """A server with TLS, and where it is."""
    server = StreamServer({"echo": echo}, certificates)
    return server, f"127.0.0.1:{await server.listen('127.0.0.1:0')}"


def test_connections_whose_tls_handshake_fails_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_UNGREETED_MAX", 5)
    certificates = of_a_process(tmp_path)

    async def main() -> None:
        echo = Echo()
        server, address = await serving(echo, certificates)
        for _ in range(30):
            reader, writer = await raw(address)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.read()
            writer.close()
        stream = await open_stream(
            address, "echo", ME, lambda frame: None, certificates=certificates
        )
        stream.close("done")
        await asyncio.wait_for(server.close(), 5)

    uvloop.run(main())


def test_a_bug_in_a_handshake_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(server: StreamServer) -> Stream:
        raise RuntimeError("no stream can be made")

    monkeypatch.setattr(StreamServer, "_new", fails)
    certificates = of_a_process(tmp_path)

    async def main() -> None:
        server, address = await serving(Echo(), certificates)
        _, writer = await raw(address)
        await until(lambda: "a stream could not be accepted" in caplog.text)
        assert not server._handshakes
        writer.close()
        await asyncio.wait_for(server.close(), 5)

    uvloop.run(main())
    assert "no stream can be made" in caplog.text


def test_handshakes_that_do_not_end_make_room_for_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_HANDSHAKES_MAX", 5)
    certificates = of_a_process(tmp_path)

    async def main() -> None:
        echo = Echo()
        server, address = await serving(echo, certificates)
        silent = [await raw(address) for _ in range(8)]
        back: list[bytes] = []
        stream = await open_stream(address, "echo", ME, back.append, certificates=certificates)
        await stream.write(b"first")
        await until(lambda: back == [b"first"])
        for reader, _ in silent[:4]:
            assert await asyncio.wait_for(reader.read(), 2) == b""
        assert len(server._handshakes) == 4
        stream.close("done")
        await asyncio.wait_for(server.close(), 5)
        for reader, writer in silent[4:]:
            assert await asyncio.wait_for(reader.read(), 2) == b""
            writer.close()

    uvloop.run(main())


@pytest.mark.parametrize("run_in", [asyncio.run, uvloop.run])
def test_what_follows_a_handshake_at_once_is_not_lost(tmp_path: Path, run_in: Any) -> None:
    certificates = of_a_process(tmp_path)

    async def main() -> None:
        echo = Echo()
        server, address = await serving(echo, certificates)
        host, _, port = address.rpartition(":")
        for i in range(20):
            context = certificates.client_context
            reader, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname=certificates.name
            )
            writer.write(HELLO + framed(b"%d" % i))
            assert await answer(reader) == [""]
            await until(lambda i=i: echo.got[-1:] == [b"%d" % i])  # type: ignore[misc]
            writer.close()
        await asyncio.wait_for(server.close(), 5)

    run_in(main())


def test_a_renewed_certificate_without_the_cluster_s_name_is_not_taken(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.sign("process", "c.holdfast")
    certificates = Certificates(cert, key, authority.file, "c.holdfast")
    before = certificates._cert_pem
    authority.sign("process", "somebody.else")
    with pytest.raises(
        CertificateError,
        match=r"is for somebody\.else; it must have the cluster's TLS name c\.holdfast",
    ):
        certificates._load()
    assert (certificates.version, certificates._cert_pem, certificates.names) == (
        1,
        before,
        ["c.holdfast"],
    )


def test_a_ca_that_is_taken_out_of_its_file_is_trusted_no_more(tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    (tmp_path / "ca.pem").write_bytes(old.file.read_bytes() + new.file.read_bytes())
    # of the old CA, and trusts the new one
    stale = Certificates(*old.sign("process", "c.holdfast"), new.file, "c.holdfast")
    certificates = Certificates(
        *new.sign("process", "c.holdfast"), tmp_path / "ca.pem", "c.holdfast"
    )

    async def main() -> None:
        server, address = await serving(Echo(), certificates)
        stream = await open_stream(address, "echo", ME, lambda frame: None, certificates=stale)
        stream.close("done")
        (tmp_path / "ca.pem").write_bytes(new.file.read_bytes())
        certificates._load()
        with pytest.raises(OSError):  # noqa: PT011
            await open_stream(address, "echo", ME, lambda frame: None, certificates=stale)
        await asyncio.wait_for(server.close(), 5)

    uvloop.run(main())


def test_many_connections_are_accepted_in_one_turn_of_a_busy_loop(tmp_path: Path) -> None:
    certificates = of_a_process(tmp_path)

    async def main() -> None:
        server, address = await serving(Echo(), certificates)
        connections = [socket.create_connection(split_address(address)) for _ in range(100)]
        for _ in range(5):  # turns of the loop
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert len(server._handshakes) == 100
        await asyncio.wait_for(server.close(), 5)
        for connection in connections:
            connection.close()

    uvloop.run(main())
