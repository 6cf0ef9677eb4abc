#!/usr/bin/env python3
"""Make the images that the benchmark pulls, and push them to a registry.

  images.py 127.0.0.1:5000 --pause ./pause [--only busybox,pause,pull-1,pull-8]

  bench/busybox:1  a shell and the usual tools, from Debian's busybox-static
  bench/pause:1    the program given with --pause, for runtimes that pull their pause
  bench/pull-1:1   920 MB of ordinary files, about 294 MB as gzip, in one layer
  bench/pull-8:1   the same files in eight layers of equal size

The files come from a seeded generator, so that every machine pulls the same bytes (as far as its zlib
compresses alike): sizes as in a distribution's /usr, contents a mix of prose, markup, machine code and
what is compressed already.  The registry is spoken to by plain HTTP.
"""
import argparse
import gzip
import hashlib
import http.client
import io
import itertools
import json
import random
import sys
import tarfile
import tempfile
import urllib.parse

SEED = 20260101
TOTAL = 920_000_000
LETTERS = b"etaoinshrdlucmfwyp"
APPLETS = "sh ls cat echo sleep true false id ps kill env mkdir rm mount grep head tail".split()
# kind -> share of the bytes, number of words, shortest, longest, alphabet, separator.  Chosen so that
# gzip makes a third of it, and its parts are as unlike each other as those of real software.
KINDS = {
    "txt": (0.20, 20000, 2, 10, LETTERS, b" "),
    "html": (0.62, 1000, 4, 40, LETTERS + b"_.(){}\n", b" "),
    "so": (0.17, 6000, 2, 9, bytes(range(256)), b""),
    "png": (0.01, 0, 0, 0, b"", b""),
}
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


# ---- contents ------------------------------------------------------------------------

def pool(rng, words, shortest, longest, alphabet, separator, size=16 << 20):
    """Text of `size` bytes whose words are as unevenly frequent as those of a language."""
    if not words:
        return rng.randbytes(size)
    vocabulary = [bytes(rng.choices(alphabet, k=rng.randint(shortest, longest))) for _ in range(words)]
    weights = list(itertools.accumulate(1 / (rank + 2) for rank in range(words)))
    parts, have = [], 0
    while have < size:
        parts.append(separator.join(rng.choices(vocabulary, cum_weights=weights, k=100_000)))
        have += len(parts[-1])
    return b"".join(parts)[:size]


def files(total):
    """(path, content) of all files, in order.  A slice of a pool repeats far outside gzip's window."""
    rng = random.Random(SEED)
    pools = {kind: pool(rng, *shape[1:]) for kind, shape in KINDS.items()}
    serial, owed = 0, {kind: total * shape[0] for kind, shape in KINDS.items()}
    while total > 0:
        kind = rng.choices(list(owed), weights=[max(0, left) for left in owed.values()])[0]
        size = min(max(16, int(rng.lognormvariate(9.0, 1.9))), 8 << 20, total)
        begin = rng.randrange(len(pools[kind]) - size + 1)
        yield "usr/share/%03d/%02d/f%06d.%s" % (serial // 400, serial // 20 % 20, serial, kind), \
            pools[kind][begin:begin + size]
        serial, total = serial + 1, total - size
        owed[kind] -= size


# ---- layers --------------------------------------------------------------------------

class Summing:
    """A file that is written through, with its digest and length."""

    def __init__(self, into):
        self.into, self.sum, self.length = into, hashlib.sha256(), 0

    def write(self, data):
        self.sum.update(data)
        self.length += len(data)
        return self.into.write(data)

    def flush(self):
        self.into.flush()

    def digest(self):
        return "sha256:" + self.sum.hexdigest()


class Layer:
    """One gzip layer in a temporary file."""

    def __init__(self):
        self.file = tempfile.TemporaryFile()
        self.packed = Summing(self.file)
        self.gzip = gzip.GzipFile(fileobj=self.packed, mode="wb", compresslevel=6, mtime=0)
        self.plain = Summing(self.gzip)
        self.tar = tarfile.open(fileobj=self.plain, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 20)
        self.known = set()

    def entry(self, path, **fields):
        info = tarfile.TarInfo(path)
        info.mtime = 1767225600
        for key, value in fields.items():
            setattr(info, key, value)
        return info

    def directory(self, path):
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            here = "/".join(parts[:depth])
            if here and here not in self.known:
                self.known.add(here)
                self.tar.addfile(self.entry(here, type=tarfile.DIRTYPE, mode=0o755))

    def add(self, path, content, mode=0o644):
        self.directory(path.rpartition("/")[0])
        self.tar.addfile(self.entry(path, size=len(content), mode=mode), io.BytesIO(content))

    def link(self, path, target):
        self.tar.addfile(self.entry(path, type=tarfile.LNKTYPE, linkname=target, mode=0o755))

    def finish(self):
        self.tar.close()
        self.gzip.close()
        self.file.seek(0)
        return self


def of_files(count):
    """The ordinary files in `count` layers."""
    share, filled, layer = TOTAL / count, 0, Layer()
    made = 0
    for path, content in files(TOTAL):
        if filled >= share * (made + 1):
            made += 1
            yield layer.finish()
            layer = Layer()
        layer.add(path, content)
        filled += len(content)
    yield layer.finish()


def busybox():
    layer = Layer()
    with open("/bin/busybox", "rb") as program:
        layer.add("bin/busybox", program.read(), 0o755)
    for name in APPLETS:
        layer.link("bin/" + name, "bin/busybox")
    layer.add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    layer.add("etc/group", b"root:x:0:\n")
    for name in ("proc", "sys", "dev", "tmp"):
        layer.directory(name)
    yield layer.finish()


def pause(program):
    layer = Layer()
    with open(program, "rb") as file:
        layer.add("pause", file.read(), 0o755)
    yield layer.finish()


# ---- the registry --------------------------------------------------------------------

class Registry:
    def __init__(self, address):
        self.address = address

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(self.address, timeout=120)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        answer.body = answer.read()
        connection.close()
        return answer

    def want(self, what, method, path, body=None, **headers):
        answer = self.ask(method, path, body, **headers)
        if answer.status >= 300:
            sys.exit("images.py: %s: the registry answered %d: %s" % (what, answer.status, answer.body[:300]))
        return answer

    def has(self, repository):
        return self.ask("HEAD", "/v2/%s/manifests/1" % repository, Accept=MANIFEST).status == 200

    def blob(self, repository, digest, length, body):
        begun = self.want("begin an upload", "POST", "/v2/%s/blobs/uploads/" % repository)
        place = urllib.parse.urlsplit(begun.getheader("location"))
        query = (place.query + "&" if place.query else "") + "digest=" + digest
        self.want("upload a blob", "PUT", "%s?%s" % (place.path, query), body,
                  **{"Content-Type": "application/octet-stream", "Content-Length": str(length)})

    def image(self, repository, layers, command):
        """Pushes the layers as they come, then what names them."""
        described, diffs, plain = [], [], 0
        for layer in layers:
            digest, length = layer.packed.digest(), layer.packed.length
            self.blob(repository, digest, length, layer.file)
            described.append({"mediaType": LAYER, "digest": digest, "size": length})
            diffs.append(layer.plain.digest())
            plain += layer.plain.length
            layer.file.close()
        config = json.dumps({"architecture": "amd64", "os": "linux",
                             "config": {"Cmd": command, "Env": ["PATH=/bin"]},
                             "rootfs": {"type": "layers", "diff_ids": diffs}}).encode()
        digest = "sha256:" + hashlib.sha256(config).hexdigest()
        self.blob(repository, digest, len(config), config)
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": described,
                               "config": {"mediaType": CONFIG, "digest": digest, "size": len(config)}})
        self.want("put a manifest", "PUT", "/v2/%s/manifests/1" % repository, manifest.encode(),
                  **{"Content-Type": MANIFEST})
        packed = sum(layer["size"] for layer in described)
        print("images.py: %s: %d layers, %.1f MB, unpacked %.1f MB" %
              (repository, len(described), packed / 1e6, plain / 1e6))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    ap.add_argument("registry", help="HOST:PORT")
    ap.add_argument("--pause", required=True, help="a static program that only waits")
    ap.add_argument("--only", default="busybox,pause,pull-1,pull-8")
    args = ap.parse_args()
    registry = Registry(args.registry)
    makers = {"busybox": (busybox, ["sh"]), "pause": (lambda: pause(args.pause), ["/pause"]),
              "pull-1": (lambda: of_files(1), ["sh"]), "pull-8": (lambda: of_files(8), ["sh"])}
    for name in args.only.split(","):
        make, command = makers[name]
        if not registry.has("bench/" + name):
            registry.image("bench/" + name, make(), command)


if __name__ == "__main__":
    main()
