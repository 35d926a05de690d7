"""Two processes never write one run: the second is told who is at it, and the dead hold nothing."""

import errno
import json
import os
import signal
import socket
import threading
from contextlib import contextmanager
from multiprocessing import get_context

import processes
import psutil
import pytest
from contract import snapshot

from s2ap_core.errors import InputError
from s2ap_core.files import lock
from s2ap_core.files.atomic import write_file
from s2ap_core.training.loop import Callback
from s2ap_core.training.stages import Stages

pytestmark = pytest.mark.usefixtures("tiny_network")


def owner(run, **entries):
    """Write a lock of another process."""
    held = {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()} | entries
    run.mkdir(exist_ok=True)
    (run / ".lock").write_text(json.dumps(held))


def dead_pid():
    """The id of a process that is no more."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_the_second_command_is_refused_with_the_first_ones_process_and_host(fault_table):
    processes.uninterrupted()
    folder = processes.new_folder()
    arguments, run = processes.command(folder / "tiny.toml", folder / "run"), folder / "run"
    first = processes.fork(arguments, folder / "first")
    assert processes.wait_for(run, 2, first)
    os.kill(first, signal.SIGSTOP)
    before = processes.contents(run)
    assert processes.wait(processes.fork(arguments, folder / "second")) == 2
    (line,) = (folder / "second").read_text().splitlines()
    assert f"process {first} of {socket.gethostname()}" in line
    assert str(run) in line
    assert processes.contents(run) == before
    os.kill(first, signal.SIGCONT)
    assert processes.wait(first) == 0
    same = processes.differing(run, processes.uninterrupted()) == []
    fault_table.add("two processes, one run", same)
    assert same


@pytest.mark.parametrize("until", ["pretrain", "end"])
def test_a_run_in_a_program_is_held_while_it_lasts_and_no_longer(tmp_path, new_run, data, until):
    run, seen = new_run(tmp_path / "run"), []

    class Look(Callback):
        def on_iteration(self, loop, step):
            seen.append(json.loads((run.path / ".lock").read_text()))

    Stages(run, data, callbacks=[Look()]).all(until)
    assert {entry["pid"] for entry in seen} == {os.getpid()}
    assert not (run.path / ".lock").exists()


def test_it_is_given_back_on_every_way_out(tmp_path, new_run, data):
    run = new_run(tmp_path / "run")
    for failure in (InputError, KeyboardInterrupt, RuntimeError):

        class Fail(Callback):
            def on_iteration(self, loop, step, failure=failure):
                raise failure

        with pytest.raises(failure):
            Stages(run, data, callbacks=[Fail()]).all()
        assert not (run.path / ".lock").exists()


def test_a_lock_of_the_dead_is_taken_over_whatever_its_record_says(tmp_path):
    for entries in (
        {"pid": dead_pid()},
        {"started": psutil.Process().create_time() - 3600},  # our number, when it was another process's
        {"pid": os.getppid(), "started": psutil.Process(os.getppid()).create_time()},  # or it is one in a container
    ):
        owner(tmp_path, **entries)
        with lock.hold(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    (tmp_path / ".lock").write_text("")  # its owner died as it made it
    with lock.hold(tmp_path):
        pass


@contextmanager
def holder(run, prepare=lambda: None):
    """Let another process hold the run for the block; its id."""
    ready, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock.hold(run):
            prepare()
            os.write(ready_write, b"x")
            signal.pause()
    os.read(ready, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(ready_write)


@pytest.mark.parametrize(
    "seen",
    [{"pid": 4_000_000}, {"pid": 1, "started": 0.0}, {"started": 86_400.0}],
    ids=["another namespace of processes", "its number is another's", "the clock was set"],
)
def test_a_living_process_is_not_disturbed_whatever_its_record_says(tmp_path, seen):
    with holder(tmp_path):
        owner(tmp_path, **seen)
        before = (tmp_path / ".lock").read_bytes()
        with pytest.raises(InputError, match=r"in use by process \d+ of .*; wait for it or stop it"):
            lock.hold(tmp_path).__enter__()
        assert lock.in_use(tmp_path)
        assert (tmp_path / ".lock").read_bytes() == before
        owner(tmp_path, host="elsewhere")
        lock.release_foreign(tmp_path)
        assert lock.in_use(tmp_path)
    (tmp_path / ".lock").write_bytes(before)
    assert not lock.in_use(tmp_path)
    with lock.hold(tmp_path):
        pass


def test_a_process_that_a_dead_owner_forked_holds_nothing(tmp_path):
    children = tmp_path / "child"

    def fork():
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.write_text(str(pid))

    with holder(tmp_path / "run", fork), pytest.raises(InputError, match="in use"):
        lock.hold(tmp_path / "run").__enter__()
    try:
        with lock.hold(tmp_path / "run"):
            pass
    finally:
        os.kill(int(children.read_text()), signal.SIGKILL)


def test_where_the_file_system_has_no_locks_the_record_is_believed(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    owner(tmp_path)
    with pytest.raises(InputError, match=rf"in use by process {os.getpid()} of"), lock.hold(tmp_path):
        pass
    assert lock.in_use(tmp_path)
    for entries in ({"pid": dead_pid()}, {"started": psutil.Process().create_time() - 3600}):
        owner(tmp_path, **entries)
        assert not lock.in_use(tmp_path)
        with lock.hold(tmp_path):
            pass


def link(file):
    file.with_name("precious").write_text("mine")
    file.symlink_to(file.with_name("precious"))


ODD = {
    "a link": link,
    "a link to nothing": lambda file: file.symlink_to(file.with_name("precious")),
    "a FIFO": os.mkfifo,
    "a folder": os.mkdir,
    "not JSON": lambda file: file.write_text("mine"),
    "cut": lambda file: file.write_text('{"pid": 12'),
    "a list": lambda file: file.write_text("[1]"),
    "nested": lambda file: file.write_text("[" * 4000),
    "a pid in words": lambda file: file.write_text('{"pid": "one", "host": "here"}'),
    "a pid of 4,000 digits": lambda file: file.write_text('{"host": "here", "pid": 1' + "0" * 4000 + "}"),
    "no host": lambda file: file.write_text('{"pid": 1}'),
    "a start in words": lambda file: file.write_text('{"pid": 1, "host": "here", "started": "noon"}'),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_lock_of_ours_is_refused_and_not_touched(tmp_path, what, fault_table):
    ODD[what](tmp_path / ".lock")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path / '.lock'}: not a lock file of ours; remove it") as error:
        lock.hold(tmp_path).__enter__()
    assert "\n" not in str(error.value)
    assert not lock.in_use(tmp_path)
    assert snapshot(tmp_path) == before
    fault_table.add("odd lock", survived=True)


def test_a_killed_process_that_nobody_has_waited_for_is_dead(tmp_path):
    pid = os.fork()
    if pid == 0:
        with lock.hold(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == pid
    with lock.hold(tmp_path):
        pass
    os.waitpid(pid, 0)


def test_those_of_other_hosts_are_not_disturbed(tmp_path):
    owner(tmp_path, host="elsewhere", pid=dead_pid())
    said = rf"in use by process \d+ of elsewhere; if that process is gone, remove {tmp_path / '.lock'}"
    with pytest.raises(InputError, match=said), lock.hold(tmp_path):
        pass
    assert (tmp_path / ".lock").exists()


def test_a_thread_holds_it_again_and_another_thread_does_not(tmp_path):
    refused = []

    def another():
        try:
            with lock.hold(tmp_path):
                pass
        except InputError:
            refused.append(True)

    with lock.hold(tmp_path), lock.hold(tmp_path / "." / "x" / ".."):
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    assert refused == [True]
    assert not (tmp_path / ".lock").exists()


def test_a_refused_beginning_leaves_no_folder(tmp_path):
    with lock.hold(tmp_path / "a" / "run"):
        pass
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "mine").mkdir()
    with lock.hold(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()


def scramble(run, counter, barrier, turns):
    """Take the lock of a dead process, again and again, against others who do the same."""
    for _ in range(turns):
        barrier.wait()
        try:
            with lock.hold(run):
                with counter.get_lock():
                    counter[0] += 1
                    counter[1] = max(counter[1], counter[0])
                    counter[2] += 1
                with counter.get_lock():
                    counter[0] -= 1
                barrier.wait()
        except InputError:
            barrier.wait()
        barrier.wait()


def test_of_many_takers_of_a_stale_lock_one_gets_it(tmp_path):
    context, takers, turns = get_context("fork"), 4, 40
    counter, barrier = context.Array("i", 3), context.Barrier(takers + 1)
    children = [context.Process(target=scramble, args=(tmp_path, counter, barrier, turns)) for _ in range(takers)]
    for child in children:
        child.start()
    pid = dead_pid()
    for _ in range(turns):
        owner(tmp_path, pid=pid, started=0.0)
        barrier.wait()
        barrier.wait()  # each has it or was refused; whoever has it gives it back after this
        barrier.wait()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * takers
    assert counter[1] == 1
    assert counter[2] == turns


def come_and_go(run, turns):
    """Hold and give back without pause; a marker that is there already means that two held it."""
    marker, held, refused = run / "marker", 0, 0
    for _ in range(turns):
        try:
            with lock.hold(run):
                marker.touch(exist_ok=False)
                held += 1
                marker.unlink()
        except InputError:
            refused += 1
    assert held
    assert held + refused == turns


def test_two_never_hold_it_at_once_while_others_come_and_go(tmp_path):
    context = get_context("fork")
    children = [context.Process(target=come_and_go, args=(tmp_path, 300)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4


@pytest.mark.parametrize("name", ["results.json", "ckpt/state.safetensors"])
def test_a_run_that_vanishes_between_a_look_and_a_write_does_not_come_back(tmp_path, monkeypatch, name):
    run, look = tmp_path / "run", lock.check_held

    def vanish(path):
        found = look(path)
        run.rename(tmp_path / "away")
        return found

    with lock.hold(run):
        monkeypatch.setattr(lock, "check_held", vanish)
        with pytest.raises(InputError, match=f"{run}/{name}: cannot be written"):
            write_file(run / name, b"a state")
        assert not run.exists()
    assert not run.exists()
