"""
Out of the sandbox of `bash_sandboxed`: each test is an attempt, and what has to become of it.

`test_sandbox_use` has how it is used. Programs in the sandbox are ours, in Python: what is not installed is no excuse.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from commands import call, running, until, why_not

from alloy_trio import ToolError
from alloy_trio.tools import Tool, bash_sandboxed

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = os.geteuid() == 0
PYTHON = {sys.prefix, sys.base_prefix}
"""What has to be read for our Python to run: it may be installed in somebody's home."""


WHY_NOT = why_not(readable=PYTHON)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no sandbox to be had: {WHY_NOT}")


@pytest.fixture(scope="module")
def box() -> Tool:
    return bash_sandboxed(readable=PYTHON)


async def python(root: Path, program: str, tool: Tool, *arguments: object) -> str:
    """Run a program of Python in the sandbox; return what it has printed."""
    (root / "program.py").write_text(textwrap.dedent(program))
    return await call(root, " ".join([sys.executable, "-I", "program.py", *map(str, arguments)]), tool)


# --- files


@pytest.fixture
def canary() -> Iterator[Path]:
    """A secret in the home of who runs the tests."""
    path = Path("~").expanduser() / f".alloy-trio-canary-{uuid.uuid4().hex}"
    try:
        path.write_text("tweet")
    except OSError as error:
        pytest.skip(f"no home to put a canary into: {error}")
    yield path
    path.unlink()


@pytest.mark.parametrize(
    "way", ["{}", "/proc/self/root{}", "/proc/1/root{}", "/proc/1/cwd/../../../../..{}", "/proc/self/cwd/../../../..{}"]
)
async def test_home_cannot_be_read(tmp_path: Path, box: Tool, canary: Path, way: str) -> None:
    result = await call(tmp_path, f"cat {way.format(canary)}", box)
    assert "tweet" not in result
    assert result.endswith("exit code: 1")


async def test_homes_runtime_directories_and_secrets_of_the_system_are_empty(tmp_path: Path, box: Tool) -> None:
    result = await call(
        tmp_path, "cat /etc/shadow /etc/gshadow /etc/ssh/*_key; ls -A /home /root /run /var/tmp /mnt", box
    )
    assert ":::" not in result
    assert "BEGIN" not in result
    own = {part for path in (*PYTHON, str(tmp_path)) for part in path.split("/")}
    listed = [line for line in result.splitlines() if line and not line.startswith(("/", "cat:", "ls:", "exit code"))]
    assert set(listed) <= own


async def test_nothing_can_be_written_but_the_working_directory(tmp_path: Path, box: Tool) -> None:
    places = [
        "/",
        "/etc",
        "/usr",
        "/usr/bin",
        "/var",
        "/opt",
        "/run",
        "/home",
        "/dev",
        "/sys",
        "/proc",
        "/boot",
        *PYTHON,
    ]
    name = f"alloy-trio-{uuid.uuid4().hex}"
    command = f"for each in {' '.join(places)}; do touch $each/{name} && echo WROTE $each; done; touch {name}"
    result = await call(tmp_path, command, box)
    assert "WROTE" not in result
    assert (tmp_path / name).exists()
    assert not any(each.name == name for place in places for each in Path(place).iterdir())  # noqa: ASYNC240 - a test


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -o remount,rw /",
        "mount -o remount,rw,bind /",
        "mount -t tmpfs x /mnt",
        "umount /root /home /tmp",
        "umount -l /",
        "unshare -U true",
        "unshare -m true",
        "unshare -Urm true",
        "nsenter -t 1 -m true",
        "chroot / true",
        "mknod ./sda b 8 0",
        "mknod ./null c 1 3 && cat ./null",
        "echo x > /proc/sys/kernel/hostname",
        "cat /proc/sys/kernel/core_pattern | tee /proc/sys/kernel/core_pattern",
        "cat /proc/sys/vm/swappiness | tee /proc/sys/vm/swappiness",
        "find /proc /sys -type f -writable -print 2>/dev/null | grep .",
        "echo 0 > /proc/self/oom_score_adj",
        "echo x > /proc/sysrq-trigger",
        "echo x > /sys/kernel/uevent_helper",
        "hostname elsewhere",
        "su -c true root",
        "chown 12345 .",
    ],
)
async def test_there_are_no_privileges_to_do(tmp_path: Path, box: Tool, attempt: str) -> None:
    assert not (await call(tmp_path, f"{{ {attempt}; }} < /dev/null 2>/dev/null", box)).endswith("exit code: 0")


async def test_there_are_none_to_gain(tmp_path: Path, box: Tool) -> None:
    """Programs with set-user-ID give none, nor does a namespace in the namespace."""
    result = await call(tmp_path, "grep -E 'NoNewPrivs|Cap|Seccomp:' /proc/self/status; grep ' / ' /proc/mounts", box)
    lines = [line.split() for line in result.splitlines()]
    assert {line[0]: int(line[1], 16) for line in lines if line[0].startswith("Cap")}.keys() >= {"CapEff:", "CapBnd:"}
    assert not any(int(line[1], 16) for line in lines if line[0].startswith("Cap"))
    assert ["NoNewPrivs:", "1"] in lines
    assert ["Seccomp:", "2"] in lines
    assert "nosuid" in result.splitlines()[-2]


async def test_devices_are_the_harmless_ones(tmp_path: Path, box: Tool) -> None:
    result = await call(tmp_path, "ls -A /dev; find / -xdev -type b 2>/dev/null", box)
    harmless = "console core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert set(result.splitlines()[:-1]) <= set(harmless.split())


async def test_no_descriptor_of_ours_is_inherited(tmp_path: Path, box: Tool) -> None:
    secret = tmp_path / "secret"
    secret.write_text("tweet")
    with secret.open() as file:
        os.set_inheritable(file.fileno(), True)
        program = """
            import os
            for each in os.listdir("/proc/self/fd"):
                try: print(each, os.readlink(f"/proc/self/fd/{each}"))
                except OSError: pass
            """
        result = await python(tmp_path, program, box)
    assert {line.split()[0] for line in result.splitlines()[:-1]} == {"0", "1", "2"}
    assert "secret" not in result


# --- links that a command leaves for the mounts of the next


async def test_a_working_directory_that_has_become_a_link_is_not_followed(tmp_path: Path) -> None:
    work, treasure = tmp_path / "work", tmp_path / "treasure"
    (work / "sub").mkdir(parents=True)
    treasure.mkdir()
    (treasure / "secret").write_text("tweet")
    box = bash_sandboxed(writable=[work])
    await call(work, f"rmdir sub; ln -s {treasure} sub; ln -s {treasure} other", box)
    for name in ("sub", "other"):
        result = await call(work / name, "cat secret; touch was-here", box)
        assert "tweet" not in result
        assert not (treasure / "was-here").exists()


async def test_nor_outside_of_what_can_be_written(tmp_path: Path) -> None:
    """The link leads into a writable directory at first, and a command makes it lead on from there."""
    work, treasure = tmp_path / "work", tmp_path / "treasure"
    (work / "sub").mkdir(parents=True)
    treasure.mkdir()
    (tmp_path / "link").symlink_to(work / "sub")
    box = bash_sandboxed(writable=[work])
    result = await call(tmp_path / "link", f"cd ..; rmdir sub; mv sub gone; ln -s {treasure} sub; pwd", box)
    if not (work / "sub").is_symlink():
        assert "busy" in result
        return
    with pytest.raises(ToolError, match="leads elsewhere"):
        await call(tmp_path / "link", "touch was-here", box)
    assert not (treasure / "was-here").exists()


@pytest.mark.parametrize("option", ["readable", "hidden"])
async def test_a_mount_in_a_writable_directory_cannot_be_led_elsewhere(tmp_path: Path, option: str) -> None:
    work, treasure = tmp_path / "work", tmp_path / "treasure"
    (work / "conf" / "hooks").mkdir(parents=True)
    (work / "conf" / "hooks" / "mine").write_text("tweet" if option == "hidden" else "")
    treasure.mkdir()
    (treasure / "secret").write_text("tweet")
    box = bash_sandboxed(**{option: [work / "conf" / "hooks"]})  # type: ignore[arg-type]
    first = await call(work, "touch conf/hooks/x; cat conf/hooks/*; rm -rf conf/hooks; ls conf", box)
    assert "tweet" not in first
    assert (work / "conf" / "hooks" / "mine").exists()
    assert not (work / "conf" / "hooks" / "x").exists()
    await call(work, f"mv conf old; mkdir conf; ln -s {treasure} conf/hooks", box)
    with pytest.raises(ToolError, match="gone, or leads elsewhere"):
        await call(work, "cat conf/hooks/secret old/hooks/mine", box)


# --- processes


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_processes_outside_are_neither_seen_nor_reached(
    tmp_path: Path, box: Tool, victim: subprocess.Popen[bytes]
) -> None:
    attempts = f"kill -9 {victim.pid}; cat /proc/{os.getpid()}/environ"
    result = await call(tmp_path, f"{attempts}; echo; cat /proc/*/cmdline | tr '\\0' ' '", box)
    assert "sleep" not in result
    assert max(int(line) for line in (await call(tmp_path, "ls /proc", box)).split() if line.isdigit()) < 30
    assert victim.poll() is None


def namespace() -> Path:
    """Return the name of that of our processes."""
    return Path("/proc/self/ns/pid").readlink()


async def test_a_signal_to_all_is_one_to_the_sandbox(
    tmp_path: Path, box: Tool, victim: subprocess.Popen[bytes]
) -> None:
    inside = f'test "$(readlink /proc/self/ns/pid)" != "{namespace()}" || exit 99'  # else it would be one to all
    assert "exit code: 99" not in await call(tmp_path, f"{inside}; sleep 60 & kill -9 -1; kill -9 1; kill -9 $$", box)
    assert victim.poll() is None


async def test_nothing_outside_can_be_traced(tmp_path: Path, box: Tool) -> None:
    program = """
        import ctypes, os, sys
        libc = ctypes.CDLL(None, use_errno=True)
        for pid in (int(sys.argv[1]), os.getppid() + 10_000):
            print(libc.ptrace(16, pid, 0, 0), ctypes.get_errno())
            try: print(len(open(f"/proc/{pid}/mem", "rb").read(1)))
            except OSError as error: print(error.errno)
        """
    assert (await python(tmp_path, program, box, os.getpid())).split()[:6] == ["-1", "3", "2", "-1", "3", "2"]


DAEMONS = [
    "env -i setsid sleep {0} &",
    "(setsid -f env -i setsid -f bash -c 'trap \"\" TERM HUP INT; while :; do sleep {0}; done') &",
    "trap '' TERM; setsid sleep {0} >/dev/null 2>&1 </dev/null & disown;",
]


@pytest.mark.parametrize("daemon", DAEMONS)
@pytest.mark.parametrize("then", ["end", "time", "cancel"])
async def test_not_even_a_daemon_outlives_its_command(tmp_path: Path, box: Tool, daemon: str, then: str) -> None:
    seconds = f"61.{uuid.uuid4().int % 10**12}"
    command = (
        daemon.format(seconds) + " until [ $(grep -sl sleep /proc/*/comm | wc -l) -gt 0 ]; do :; done; touch ready;"
    )
    if then == "end":
        assert await call(tmp_path, f"{command} echo hi", box) == "hi\nexit code: 0"
    elif then == "time":
        with pytest.raises(ToolError, match="stopped after"):
            await call(tmp_path, f"{command} sleep 60", box, timeout=1)
    else:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, tmp_path, f"{command} sleep 60", box)
            await until((tmp_path / "ready").exists)
            nursery.cancel_scope.cancel()
    assert (tmp_path / "ready").exists()
    assert not running(seconds)


async def test_who_frees_the_first_process_from_its_parent_is_ended_all_the_same(tmp_path: Path, box: Tool) -> None:
    """By ptrace it is made to forget that it dies with its parent, and that it has a mark."""
    if platform.machine() != "x86_64":
        pytest.skip("the program knows registers of x86-64 only")
    seconds = f"61.{uuid.uuid4().int % 10**12}"
    program = """
        import ctypes, os, struct, subprocess, sys
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        libc.ptrace.restype = ctypes.c_long
        child = subprocess.Popen(["setsid", "env", "-i", "sleep", sys.argv[1]])
        if libc.ptrace(16, 1, None, None) != 0:
            sys.exit("not attached")
        os.waitpid(1, 0x40000000)
        registers = (ctypes.c_ulonglong * 27)()
        libc.ptrace(12, 1, None, registers)
        saved = bytes(registers)
        text = libc.ptrace(1, 1, ctypes.c_void_p(registers[16] - 2), None) & 0xFFFF
        registers[16] -= 2                     # back to the instruction `syscall` that it waits in
        registers[10], registers[15] = 157, 2**64 - 1   # prctl
        registers[14], registers[13] = 1, 0            # PR_SET_PDEATHSIG, none
        libc.ptrace(13, 1, None, registers)
        libc.ptrace(9, 1, None, None)
        os.waitpid(1, 0x40000000)
        libc.ptrace(12, 1, None, registers)
        print("freed" if text == 0x050F and registers[10] == 0 else f"not freed: {text:x} {registers[10]}")
        libc.ptrace(13, 1, None, (ctypes.c_ulonglong * 27).from_buffer_copy(saved))
        start, end = map(int, open("/proc/1/stat").read().rpartition(")")[2].split()[47:49])
        for address in range(start, end, 8):
            libc.ptrace(5, 1, address, None)
        print("ALLOY" in open("/proc/1/environ").read())
        libc.ptrace(17, 1, None, None)
        """
    result = await python(tmp_path, program, box, seconds)
    if not result.startswith("freed\nFalse\n"):
        pytest.skip(f"it could not be freed here: {result}")
    assert not running(seconds)


TREE = "t() { (( $1 > 0 )) && { t $(($1 - 1)) & t $(($1 - 1)) & }; sleep 5; }; t 8"  # 511 at most, for five seconds


async def test_a_fork_bomb_is_bounded(tmp_path: Path) -> None:
    box = bash_sandboxed(processes=64)
    with pytest.raises(ToolError, match="more than 64 processes" if ROOT else "stopped after") as caught:
        await call(tmp_path, f"{TREE} 2>&1; exec 2>&1; sleep 5", box, timeout=2)
    assert ROOT or "fork" in str(caught.value)
    assert not running(str(tmp_path))


# --- network, sockets, the kernel


@pytest.mark.parametrize("network", [False, True])
async def test_a_server_of_this_machine_is_reached_with_the_network_only(tmp_path: Path, network: bool) -> None:
    box = bash_sandboxed(network=network)
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = await call(tmp_path, f": < /dev/tcp/127.0.0.1/{server.getsockname()[1]} && echo IN", box)
    assert ("IN" in result) is network


async def test_unix_sockets_of_others_are_not_reached(tmp_path: Path, box: Tool) -> None:
    work = tmp_path / "work"
    work.mkdir()
    program = """
        import socket, sys
        for name in ("\\0" + sys.argv[1], sys.argv[2]):
            with socket.socket(socket.AF_UNIX) as client:
                try: client.connect(name); print("IN")
                except OSError as error: print(type(error).__name__)
        """
    name, path = uuid.uuid4().hex, tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as named:
        for server, address in ((abstract, f"\0{name}"), (named, str(path))):
            server.bind(address)
            server.listen()
        result = await python(work, program, box, name, path)
    assert result == "ConnectionRefusedError\nFileNotFoundError\nexit code: 0"


@pytest.mark.parametrize("family", [17, 31, 38, 40], ids=["packet", "bluetooth", "crypto", "vsock"])
async def test_sockets_of_other_families_are_refused(tmp_path: Path, family: int) -> None:
    """Some of them know no namespace: vsock reaches the host of a virtual machine."""
    box = bash_sandboxed(network=True, readable=PYTHON)
    program = "import socket, sys; socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM)"
    assert "PermissionError" in await python(tmp_path, program, box, family)


KEYS = {"x86_64": (248, 250), "aarch64": (217, 219), "riscv64": (217, 219)}


async def test_the_kernel_keeps_its_keys(tmp_path: Path, box: Tool) -> None:
    """Keyrings go from parent to child, through every namespace."""
    add, control = KEYS[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(control, 1, None)  # a session keyring of our own
    if libc.syscall(add, b"user", b"alloy-trio-canary", b"tweet", 5, -3) < 0:
        pytest.skip("no keyring here")
    program = """
        import ctypes, sys
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.syscall(int(sys.argv[1]), 10, -3, b"user", b"alloy-trio-canary", 0), ctypes.get_errno())
        """
    assert (await python(tmp_path, program, box, control)).startswith("-1 1\n")


async def test_io_uring_and_other_machines_calls_are_refused(tmp_path: Path, box: Tool) -> None:
    """What io_uring does is not filtered; and calls of the x32 ABI have other numbers."""
    program = """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for number in (425, 426, 427, 0x40000000 + 39):
            print(libc.syscall(number, 1, None), ctypes.get_errno())
        """
    assert (await python(tmp_path, program, box)).split()[:8] == ["-1", "1"] * 4


async def test_nothing_can_be_typed_into_a_terminal(tmp_path: Path, box: Tool) -> None:
    program = """
        import fcntl, os, pty, termios
        try: os.open("/dev/tty", os.O_RDWR); print("a terminal")
        except OSError as error: print(error.errno)
        try: fcntl.ioctl(pty.openpty()[1], termios.TIOCSTI, b"x"); print("typed")
        except OSError as error: print(error.errno)
        """
    assert (await python(tmp_path, program, box)).split()[:2] == ["6", "1"]


async def test_what_is_on_the_terminal_of_ours_stays_out_of_reach(tmp_path: Path, box: Tool) -> None:
    """A sandbox has terminals of its own."""
    assert await call(tmp_path, "ls /dev/pts; tty", box) == "ptmx\nnot a tty\nexit code: 1"


# --- the environment, room, and our own death


async def test_what_runs_outside_has_no_variable_of_a_command(tmp_path: Path) -> None:
    """Variables such as these make a program load what a command has left in the working directory."""
    box = bash_sandboxed(env={"LD_LIBRARY_PATH": f"{tmp_path}/lib", "MARKED": "yes"})
    assert f"{tmp_path}/lib yes" in await call(tmp_path, "echo $LD_LIBRARY_PATH $MARKED", box)
    outside = await call(tmp_path, "cat /proc/1/environ /proc/1/cmdline", box)
    assert "ALLOY_TRIO_COMMAND" in outside
    assert "LD_LIBRARY_PATH" not in outside
    assert "MARKED" not in outside


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0--bind\0/\0/"}])
async def test_a_variable_cannot_be_an_option_of_bubblewrap(tmp_path: Path, env: dict[str, str]) -> None:
    with pytest.raises(ToolError, match="a variable of the environment"):
        await call(tmp_path, "true", bash_sandboxed(env=env))


async def test_any_number_of_variables(tmp_path: Path) -> None:
    box = bash_sandboxed(env={f"V{number}": "x" * 1000 for number in range(200)})
    with trio.fail_after(20):
        assert "200000" in await call(tmp_path, "env | grep ^V | cut -d= -f2 | tr -d '\\n' | wc -c", box)


async def test_the_environment_is_a_short_list(tmp_path: Path, box: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMLESS", "tweet")
    result = await call(tmp_path, "env; cat /proc/*/environ", box)
    assert "tweet" not in result
    names = {line.partition("=")[0] for line in (await call(tmp_path, "env", box)).splitlines()[:-1]}
    known = "PATH HOME LANG LANGUAGE TZ TERM COLORTERM NO_COLOR USER LOGNAME PWD OLDPWD SHLVL _ ALLOY_TRIO_COMMAND"
    assert {name for name in names if not name.startswith("LC_")} <= set(known.split())


async def test_the_kernel_ends_it_first_where_memory_runs_out(tmp_path: Path, box: Tool) -> None:
    assert (await call(tmp_path, "cat /proc/self/oom_score_adj", box)).startswith("1000\n")


@pytest.mark.parametrize("place", ["/tmp", "~", "/dev/shm"])
async def test_room_in_memory_is_bounded(tmp_path: Path, place: str) -> None:
    result = await call(tmp_path, f"head -c 3000000 /dev/zero > {place}/x", bash_sandboxed(tmp_size=1_000_000))
    assert "No space left" in result


async def test_the_sandbox_dies_with_us(tmp_path: Path) -> None:
    seconds = f"61.{uuid.uuid4().int % 10**12}"
    program = f"""
        import trio
        from pathlib import Path
        from alloy_trio import ToolContext
        from alloy_trio.tools import bash_sandboxed
        box = bash_sandboxed()
        trio.run(box, "touch ready; setsid sleep {seconds}", ToolContext(working_directory=Path({str(tmp_path)!r})))
        """
    process = await trio.lowlevel.open_process([sys.executable, "-c", textwrap.dedent(program)])
    await until((tmp_path / "ready").exists)
    process.kill()
    await process.wait()
    await until(lambda: not running(seconds))
