"""A file system whose server does not answer: FUSE in a few lines.

It answers the first question, so that the mount is made, and then nothing.  Whoever looks at the root of
the mount waits until the server ends.
"""
import ctypes
import os
import struct

MNT_DETACH = 2


class HungMount:
    def __init__(self, path):
        self.path = path
        os.makedirs(path, exist_ok=True)
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        self.libc = ctypes.CDLL(None, use_errno=True)
        options = "fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other" % self.fuse
        if self.libc.mount(b"hung", path.encode(), b"fuse.hung", 0, options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        # struct fuse_in_header, fuse_init_in; fuse_out_header, fuse_init_out (linux/fuse.h)
        question = os.read(self.fuse, 1 << 17)
        unique, = struct.unpack_from("<Q", question, 8)
        answer = struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, 4096, 1, 0, 0, 0, *[0] * 7)
        os.write(self.fuse, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)

    def asked(self):
        """Whether somebody waits for an answer."""
        import select
        return bool(select.select([self.fuse], [], [], 0)[0])

    def end(self):
        """The server ends: whoever waits is told that the connection is broken."""
        os.close(self.fuse)
        self.libc.umount2(self.path.encode(), MNT_DETACH)
