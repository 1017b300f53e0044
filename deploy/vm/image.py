"""The guest's kernel, modules and initramfs: taken from Debian's kernel package, kept in a cache.

Nothing is installed on the host: the package is downloaded and unpacked into the cache folder.
A finished item is renamed into place, so a cache never holds half of one; a lock keeps two runs
from preparing it at once. Needs apt, dpkg, cpio, kmod and busybox-static.
"""

import contextlib
import fcntl
import glob
import gzip
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))

meta_package = "linux-image-amd64"     # the "cloud" flavour has no InfiniBand
busybox = "/bin/busybox"
# What the initramfs needs to reach the host's files and the agent; the rest is loaded from there.
early_modules = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
# Three quarters of the package, and nothing a guest of ours has a device for.
unwanted = ("kernel/sound", "kernel/drivers/gpu", "kernel/drivers/media", "kernel/drivers/staging",
            "kernel/drivers/scsi", "kernel/drivers/net/wireless", "kernel/drivers/net/ethernet",
            "kernel/drivers/usb", "kernel/drivers/iio", "kernel/drivers/hwmon",
            "kernel/drivers/input", "kernel/drivers/mtd")


class ImageError(Exception):
    """The guest's kernel cannot be had here."""


class Image:
    def __init__(self, folder, release):
        self.release = release
        self.kernel = None
        self.modules = os.path.join(folder, "lib/modules", release)
        self.initramfs = None


def make_folder(path):
    """Also when root makes it, it belongs to whom its parent belongs: the next run may not be
    root's."""
    if os.path.isdir(path):
        return
    make_folder(os.path.dirname(path))
    os.makedirs(path, exist_ok=True)
    give_to_owner(path)


def give_to_owner(path):
    if os.geteuid() == 0:
        parent = os.stat(os.path.dirname(path))
        os.chown(path, parent.st_uid, parent.st_gid)


def prepare(cache, say):
    """Returns a complete Image from the folder `cache`, making first what is not there."""
    make_folder(cache)
    cache = os.path.realpath(cache)
    with locked(os.path.join(cache, "lock"), say):
        kernels = sorted(glob.glob(os.path.join(cache, "kernel-*")), key=os.path.getmtime)
        folder = kernels[-1] if kernels else fetch_kernel(cache, say)
        releases = os.listdir(os.path.join(folder, "lib/modules"))
        image = Image(folder, releases[0])
        image.kernel = kernel(folder, say)
        image.initramfs = initramfs(folder, image, say)
    return image


@contextlib.contextmanager
def locked(path, say):
    with open(path, "a") as file:
        give_to_owner(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that is preparing the kernel")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def command(argv, cwd=None):
    try:
        done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False)
    except OSError as error:
        raise ImageError(f"{argv[0]} cannot run: {error.strerror}") from error
    if done.returncode != 0:
        tail = done.stderr.strip().split("\n")[-1]
        raise ImageError(f"{' '.join(argv)} failed: {tail}")
    return done.stdout


def kernel_package():
    """The package that the meta package stands for, e.g. linux-image-6.1.0-30-amd64."""
    depends = command(["apt-cache", "depends", meta_package])
    found = re.search(r"Depends: (linux-image-[0-9]\S*-amd64)\s", depends + "\n")
    if not found:
        raise ImageError(f"apt knows no {meta_package}: run apt-get update")
    return found[1]


def fetch_kernel(cache, say):
    package = kernel_package()
    say(f"downloading {package} (about 70 MB, once)")
    work = tempfile.mkdtemp(prefix="making-", dir=cache)
    try:
        command(["apt-get", "download", "-q", package], cwd=work)
        archive = glob.glob(os.path.join(work, "*.deb"))[0]
        say("unpacking it")
        tree = os.path.join(work, "tree")
        command(["dpkg", "-x", archive, tree])
        release = os.listdir(os.path.join(tree, "lib/modules"))[0]
        modules = os.path.join(tree, "lib/modules", release)
        for folder in unwanted:
            shutil.rmtree(os.path.join(modules, folder), ignore_errors=True)
        os.rename(os.path.join(tree, "boot", "vmlinuz-" + release), os.path.join(tree, "vmlinuz"))
        for folder in ("boot", "usr"):
            shutil.rmtree(os.path.join(tree, folder), ignore_errors=True)
        command(["/sbin/depmod", "-b", tree, release])
        os.chmod(tree, 0o755)
        final = os.path.join(cache, "kernel-" + release)
        os.rename(tree, final)
        give_to_owner(final)
        return final
    finally:
        shutil.rmtree(work, ignore_errors=True)


def kernel(folder, say):
    """The ELF file that Debian's boot image carries, which QEMU starts at its PVH entry: the
    emulated processor would take a third of its start over unpacking it. The boot image itself if
    it is packed otherwise. Where the payload lies: the kernel's Documentation/arch/x86/boot.rst."""
    packed, final = os.path.join(folder, "vmlinuz"), os.path.join(folder, "vmlinux")
    if os.path.exists(final):
        return final
    with open(packed, "rb") as file:
        data = file.read()
    setup_sectors = data[0x1f1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if not data.startswith(b"\xfd7zXZ", start):
        return packed
    say("unpacking the kernel")
    with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as work:
        part = os.path.join(work, "part")
        with open(part, "wb") as file:
            file.write(lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(
                data[start:start + length]))
        os.rename(part, final)
        give_to_owner(final)
    return final


def module_files(image, folder):
    """The early modules with what they depend on, in the order to load them."""
    files = []
    for module in early_modules:
        lines = command(["/sbin/modprobe", "-d", folder, "-S", image.release, "--show-depends",
                         module])
        for line in lines.splitlines():
            words = line.split()
            if words[:1] == ["insmod"] and words[1] not in files:
                files.append(words[1])
    return files


def initramfs(folder, image, say):
    init = os.path.join(HERE, "guest/init.sh")
    digest = hashlib.sha256(repr(early_modules).encode())
    for path in (init, busybox, __file__):
        try:
            with open(path, "rb") as file:
                digest.update(file.read())
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}") from error
    final = os.path.join(folder, f"initramfs-{digest.hexdigest()[:16]}.gz")
    if os.path.exists(final):
        return final
    say("making the initramfs")
    with tempfile.TemporaryDirectory(prefix="making-", dir=folder) as work:
        root = os.path.join(work, "root")
        os.makedirs(os.path.join(root, "bin"))
        os.makedirs(os.path.join(root, "modules"))
        shutil.copy(busybox, os.path.join(root, "bin/busybox"))
        shutil.copy(init, os.path.join(root, "init"))
        os.chmod(os.path.join(root, "init"), 0o755)
        names = []
        for path in module_files(image, folder):
            shutil.copy(path, os.path.join(root, "modules"))
            names.append(os.path.basename(path))
        with open(os.path.join(root, "modules/order"), "w") as file:
            file.write("".join(name + "\n" for name in names))
        listing = "".join(os.path.relpath(os.path.join(top, name), root) + "\n"
                          for top, folders, files in os.walk(root) for name in folders + files)
        packed = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root,
                                input=listing.encode(), capture_output=True, check=False)
        if packed.returncode != 0:
            raise ImageError("cpio failed: " + packed.stderr.decode(errors="replace").strip())
        part = os.path.join(work, "part")
        with gzip.open(part, "wb", compresslevel=3) as file:
            file.write(packed.stdout)
        os.rename(part, final)
        give_to_owner(final)
    return final
