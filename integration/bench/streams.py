"""Throughput of exec, attach and port-forward, and what an idle session costs the daemon.

The client speaks WebSocket (v4.channel.k8s.io), which every kubelet-style streaming server knows, by raw
sockets: it must cost less than what it measures.  Its frames are masked with zero, which is legal (RFC
6455, section 5.3) and leaves the bytes as they are.
"""
import base64
import os
import socket
import struct
import time
import urllib.parse

from machine import rollup

SIZE = 512 << 20
FRAME = 32 << 10
STDIN, STDOUT, ERROR = 0, 1, 3
IDLE = 50
SEND_PORT, TAKE_PORT = 8001, 8002


class WebSocket:
    """One session. Messages begin with the number of their channel."""

    def __init__(self, url):
        at = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((at.hostname, at.port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        path = at.path + ("?" + at.query if at.query else "")
        self.socket.sendall((
            "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n"
            "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
            % (path, at.netloc, base64.b64encode(os.urandom(16)).decode())).encode())
        self.buffer = bytearray(1 << 20)
        self.have = b""
        head = b""
        while b"\r\n\r\n" not in head:
            got = self.socket.recv(4096)
            if not got:
                raise RuntimeError("streaming server closed: %r" % head[:200])
            head += got
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError("streaming server answered %r" % head[:200])
        self.have = head.split(b"\r\n\r\n", 1)[1]

    def close(self):
        self.socket.close()

    @staticmethod
    def frame(channel, data):
        n = len(data) + 1
        head = bytes([0x82]) + (bytes([0x80 | n]) if n < 126 else struct.pack(">BH", 0x80 | 126, n) if n < 65536
                                else struct.pack(">BQ", 0x80 | 127, n))
        return head + b"\0\0\0\0" + bytes([channel]) + data

    def send(self, channel, data):
        self.socket.sendall(self.frame(channel, data))

    def messages(self):
        """Sizes of data messages as (channel, bytes, first bytes); ends with the connection."""
        have, view = bytearray(self.have), memoryview(self.buffer)
        self.have = b""
        while True:
            at = 0
            while len(have) - at >= 2:
                n, head = have[at + 1] & 127, 2
                if n == 126:
                    head, n = 4, (struct.unpack_from(">H", have, at + 2)[0] if len(have) - at >= 4 else 1 << 30)
                elif n == 127:
                    head, n = 10, (struct.unpack_from(">Q", have, at + 2)[0] if len(have) - at >= 10 else 1 << 30)
                if len(have) - at < head + n:
                    break
                kind = have[at] & 15
                if kind == 8:
                    return
                if kind in (0, 1, 2) and n:
                    body = at + head
                    yield have[body], n - 1, bytes(have[body + 1:body + 1 + min(n - 1, 256)])
                at += head + n
            del have[:at]
            got = self.socket.recv_into(view)
            if not got:
                return
            have += view[:got]

    def receive(self, channel, size):
        """Waits until so many bytes have come on the channel."""
        for number, count, data in self.messages():
            if number == ERROR and channel != ERROR and b"Success" not in data:
                raise RuntimeError("session ended: %r" % data)
            if number == channel:
                size -= count
                if size <= 0:
                    return
        raise RuntimeError("%d bytes did not come" % size)

    def pour(self, channel, size):
        """Sends so many bytes."""
        block = self.frame(channel, bytes(FRAME)) * 16
        for _ in range(size // (FRAME * 16)):
            self.socket.sendall(block)


class Streams:
    """Part of the benchmark; mixed into it."""

    def stream_container(self, pod, cfg, command):
        request = self.container_config()
        request.metadata.name = "s%d" % self.serial
        self.serial += 1
        request.stdin = True
        del request.command[:]
        request.command.extend(command)
        ctr = self.rt.CreateContainer(self.pb.CreateContainerRequest(
            pod_sandbox_id=pod, config=request, sandbox_config=cfg)).container_id
        self.start(ctr)
        return ctr

    def exec_url(self, ctr, command, stdin=False):
        return self.rt.Exec(self.pb.ExecRequest(
            container_id=ctr, cmd=command, stdin=stdin, stdout=True, stderr=True)).url

    def rate(self, name, keep, url, drive):
        """Runs drive(session) and notes MB/s."""
        session = WebSocket(url)
        try:
            begin = time.perf_counter()
            drive(session)
            if keep:
                self.facts.setdefault("streams", {}).setdefault(name, []).append(
                    SIZE / 1e6 / (time.perf_counter() - begin))
        finally:
            session.close()

    def m_streams(self):
        cfg = self.pod_config()
        pod, _ = self.run_pod(cfg)
        # In pieces large enough that the source is not what is measured.
        zeros = "busybox dd if=/dev/zero bs=%d count=%d 2>/dev/null" % (FRAME * 2, SIZE // FRAME // 2)
        talker = self.stream_container(pod, cfg, ["sh", "-c", "while read line; do %s; done" % zeros])
        eat = "head -c %d >/dev/null; echo done" % SIZE
        self.stream_container(pod, cfg, ["busybox", "nc", "-ll", "-p", str(SEND_PORT), "-e", "sh", "-c", zeros])
        self.stream_container(pod, cfg, ["busybox", "nc", "-ll", "-p", str(TAKE_PORT), "-e", "sh", "-c", eat])
        time.sleep(1)

        def fill(session):
            session.pour(STDIN, SIZE)
            session.receive(STDOUT, 5)

        def ask(session):
            session.send(STDIN, b"go\n")
            session.receive(STDOUT, SIZE)

        def download(session):
            session.receive(0, SIZE + 2)

        def upload(session):
            session.pour(0, SIZE)
            session.receive(0, 5 + 2)

        def forward(port):
            return self.rt.PortForward(self.pb.PortForwardRequest(pod_sandbox_id=pod, port=[port])).url

        def body(keep):
            self.rate("exec, output", keep, self.exec_url(talker, ["sh", "-c", zeros]),
                      lambda s: s.receive(STDOUT, SIZE))
            self.rate("exec, input", keep, self.exec_url(talker, ["sh", "-c", eat], stdin=True), fill)
            self.rate("attach, output", keep, self.rt.Attach(self.pb.AttachRequest(
                container_id=talker, stdin=True, stdout=True, stderr=True)).url, ask)
            os.truncate(os.path.join(cfg.log_directory, "c.log"), 0)
            self.rate("port-forward, from the pod", keep, forward(SEND_PORT), download)
            self.rate("port-forward, to the pod", keep, forward(TAKE_PORT), upload)
        body(False)
        for _ in range(self.args.stream_runs):
            body(True)
        self.idle_sessions(talker)
        self.stop_pod(pod)
        self.remove_pod(pod)

    def idle_sessions(self, ctr):
        """What the daemon grows by when many sessions are open and nothing flows."""
        before = rollup(self.args.daemon_pid)["rss"]
        open_sessions = [WebSocket(self.exec_url(ctr, ["cat"], stdin=True)) for _ in range(IDLE)]
        time.sleep(1)
        self.facts["idle session, KiB"] = [(rollup(self.args.daemon_pid)["rss"] - before) / IDLE]
        for session in open_sessions:
            session.close()
        time.sleep(1)
