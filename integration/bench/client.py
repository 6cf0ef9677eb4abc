"""A CRI client that behaves as a kubelet does: its requests, and how long each took.

Pods have their own network (or the host's), shared IPC, a PID namespace per container, runtime-default
seccomp, the usual masked paths, a control group of their own that this client makes and removes, a log
directory, images named by id.  The client code is made from api.proto at run time.
"""
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid

import grpc

from machine import cgroup_make, cgroup_remove

MASKED = ["/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
          "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
          "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
SLEEP = ["sleep", "8640123"]
LABEL = "cribench"


def load_stubs(proto):
    out = tempfile.mkdtemp(prefix="cribench-stubs-")
    src = os.path.dirname(os.path.abspath(proto))
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", src, "--python_out", out,
                    "--grpc_python_out", out, os.path.join(src, os.path.basename(proto))], check=True)
    sys.path.insert(0, out)
    name = os.path.splitext(os.path.basename(proto))[0]
    pb = importlib.import_module(name + "_pb2")
    rpc = importlib.import_module(name + "_pb2_grpc")
    shutil.rmtree(out, ignore_errors=True)
    return pb, rpc


class Client:
    def __init__(self, args):
        self.args = args
        self.pb, self.rpc = load_stubs(args.proto)
        self.connect()
        self.session = uuid.uuid4().hex[:8]
        self.logs = tempfile.mkdtemp(prefix="cribench-logs-")
        self.rows = {}          # name -> list of milliseconds
        self.facts = {}
        self.serial = 0
        self.groups = {}        # pod -> its control group, which we make and remove
        self.image_id = None

    def connect(self, timeout=20):
        """Dials the daemon; anew after it has ended."""
        size = 64 << 20
        target = self.args.endpoint if "://" in self.args.endpoint else "unix://" + self.args.endpoint
        channel = grpc.insecure_channel(target, options=[
            ("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size),
            ("grpc.default_authority", "localhost"),
            # Channels to one address share connections, and how long to wait after one has failed.
            ("grpc.use_local_subchannel_pool", 1)])
        grpc.channel_ready_future(channel).result(timeout=timeout)
        self.channel = channel
        self.rt, self.im = self.rpc.RuntimeServiceStub(channel), self.rpc.ImageServiceStub(channel)

    # -- timing

    def timed(self, name, call, req):
        t = time.perf_counter()
        out = call(req, timeout=self.args.timeout)
        ms = (time.perf_counter() - t) * 1e3
        if name:
            self.rows.setdefault(name, []).append(ms)
        return out, ms

    def note(self, name, ms):
        self.rows.setdefault(name, []).append(ms)

    # -- requests

    def namespaces(self, host):
        m = self.pb.NamespaceMode
        return self.pb.NamespaceOption(network=m.Value("NODE") if host else m.Value("POD"),
                                       pid=m.Value("CONTAINER"), ipc=m.Value("POD"))

    def profile(self):
        kind = self.pb.SecurityProfile.ProfileType
        return self.pb.SecurityProfile(profile_type=kind.Value(
            "RuntimeDefault" if self.args.seccomp == "default" else "Unconfined"))

    def pod_config(self, host=False):
        self.serial += 1
        uid = "%s-%04d" % (self.session, self.serial)
        logs = os.path.join(self.logs, uid)
        os.makedirs(logs, exist_ok=True)
        pb = self.pb
        cgroup_make("%s/pod%s" % (self.args.cgroup_parent, uid))
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name="pod-" + uid, uid=uid, namespace="cribench"),
            hostname="" if host else "pod-" + uid, log_directory=logs, labels={LABEL: self.session},
            dns_config=pb.DNSConfig(servers=["10.0.0.10"], searches=["cluster.local"]),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent="%s/pod%s" % (self.args.cgroup_parent, uid),
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=self.namespaces(host), seccomp=self.profile())))

    def container_config(self, host=False):
        pb = self.pb
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="c"), command=SLEEP, log_path="c.log",
            image=pb.ImageSpec(image=self.image_id, user_specified_image=self.args.image),
            labels={LABEL: self.session},
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(cpu_shares=102, cpu_period=100000,
                                                     memory_limit_in_bytes=256 << 20),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=self.namespaces(host), seccomp=self.profile(),
                    masked_paths=MASKED, readonly_paths=READONLY)))

    # -- steps; each gives its milliseconds too

    def run_pod(self, cfg, name=None):
        out, ms = self.timed(name, self.rt.RunPodSandbox, self.pb.RunPodSandboxRequest(
            config=cfg, runtime_handler=self.args.runtime_handler))
        self.groups[out.pod_sandbox_id] = cfg.linux.cgroup_parent
        return out.pod_sandbox_id, ms

    def create(self, pod, cfg, name=None, host=False):
        out, ms = self.timed(name, self.rt.CreateContainer, self.pb.CreateContainerRequest(
            pod_sandbox_id=pod, config=self.container_config(host), sandbox_config=cfg))
        return out.container_id, ms

    def start(self, ctr, name=None):
        return self.timed(name, self.rt.StartContainer, self.pb.StartContainerRequest(container_id=ctr))[1]

    def stop(self, ctr, name=None):
        return self.timed(name, self.rt.StopContainer,
                          self.pb.StopContainerRequest(container_id=ctr, timeout=0))[1]

    def remove(self, ctr, name=None):
        return self.timed(name, self.rt.RemoveContainer, self.pb.RemoveContainerRequest(container_id=ctr))[1]

    def stop_pod(self, pod, name=None):
        return self.timed(name, self.rt.StopPodSandbox, self.pb.StopPodSandboxRequest(pod_sandbox_id=pod))[1]

    def remove_pod(self, pod, name=None):
        ms = self.timed(name, self.rt.RemovePodSandbox,
                        self.pb.RemovePodSandboxRequest(pod_sandbox_id=pod))[1]
        group = self.groups.pop(pod, None)
        if group:
            cgroup_remove(group)
        return ms

    def repeat(self, body, runs=None):
        """Calls body(warm) first for the warm-up, where it must record nothing."""
        for _ in range(self.args.warmup):
            body(False)
        for _ in range(runs or self.args.runs):
            body(True)

    # -- what programs are made of

    def pull(self, image):
        spec = self.pb.ImageSpec(image=image)
        return self.im.PullImage(self.pb.PullImageRequest(image=spec), timeout=self.args.timeout).image_ref

    def one_pod(self, _=None, host=False):
        cfg = self.pod_config(host)
        pod, _ = self.run_pod(cfg)
        ctr, _ = self.create(pod, cfg, host=host)
        self.start(ctr)
        return pod, ctr

    def drop_pod(self, pair):
        pod, ctr = pair
        self.stop(ctr)
        self.stop_pod(pod)
        self.remove_pod(pod)

    def ready(self):
        """Waits until runtime and network say that they are ready: daemons listen before they are."""
        end = time.monotonic() + 30
        while True:
            try:
                got = self.rt.Status(self.pb.StatusRequest()).status.conditions
                if all(c.status for c in got):
                    return
                why = "; ".join("%s: %s" % (c.type, c.message) for c in got if not c.status)
            except grpc.RpcError as e:
                why = e.details()
            if time.monotonic() > end:
                raise RuntimeError("not ready after 30 s: %s" % why)
            time.sleep(0.1)

    def clean(self):
        """Removes what this session left, after an error too."""
        pb = self.pb
        left = self.rt.ListPodSandbox(pb.ListPodSandboxRequest(
            filter=pb.PodSandboxFilter(label_selector={LABEL: self.session}))).items
        for pod in left:
            try:
                self.stop_pod(pod.id)
                self.remove_pod(pod.id)
            except Exception as e:
                print("left behind:", pod.id, str(e)[:200], file=sys.stderr)
