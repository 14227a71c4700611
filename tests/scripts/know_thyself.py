"""Prints everything a program can know about itself, then ends in the way named by its first argument."""
import atexit
import inspect
import linecache
import os
import pickle
import random
import signal
import sys
import threading
import traceback
import warnings

HERE = os.path.dirname(os.path.abspath(__file__))


class Thing:
    """A class that lives in __main__."""

    def __init__(self, size):
        self.size = size

    def __eq__(self, other):
        return type(self) is type(other) and self.size == other.size

    __hash__ = None


def outer(value):
    return inner(value)


def inner(value):
    return 1 // value


def work(number):
    return os.getpid() != PARENT, Thing(number)


PARENT = os.getpid()


def tell_names():
    names = {key: value for key, value in globals().items() if key.startswith("__")}
    for key in names:  # in the order in which they were set
        value = names[key]
        if key == "__loader__":
            value = type(value), getattr(value, "path", None), getattr(value, "archive", None)
        if key == "__spec__" and value is not None:
            value = value.name, value.origin, value.parent, value.cached, type(value.loader).__name__
        print(key, repr(value).replace(str(id(value)), ""))
    main = sys.modules["__main__"]
    print("main is me", main.__dict__ is globals(), type(main), repr(main)[:40])
    print("own name in modules", sorted(name for name in sys.modules if "know_thyself" in name or "selfish" in name))


def tell_process():
    print("argv", sys.argv)
    print("orig_argv", sys.orig_argv[1:])
    print("path", sys.path)
    print("flags", sys.flags, sys.warnoptions, sys._xoptions)
    print("cwd", os.getcwd(), "hash", hash("gradwell"), "debug", __debug__)
    print("isatty", [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)], sys.stdout.encoding)
    print("limit", sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile())
    print("hooks", sys.excepthook, sys.displayhook is sys.__displayhook__, threading.excepthook is not None)
    print("thread", threading.current_thread() is threading.main_thread(), threading.active_count())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        print(number, signal.getsignal(number) if number != signal.SIGINT else signal.getsignal(number).__name__)
    print("exc_info", sys.exc_info(), hasattr(sys, "last_value"))
    print("environment", sorted(key for key in os.environ if key.startswith(("GRADWELL", "PYTHON"))))


def tell_warnings():
    warnings.warn("a plain warning")
    warnings.warn("shown in __main__ by default", DeprecationWarning)
    for _ in range(2):
        warnings.warn("once for each place", RuntimeWarning)
    print("filters", warnings.filters[-6:])
    print("registry", sorted(str(key) for key in globals()["__warningregistry__"]))


def tell_frames():
    try:
        outer(0)
    except ZeroDivisionError as error:
        traceback.print_exc()
        for frame in traceback.extract_tb(error.__traceback__):
            print(frame.filename, frame.lineno, frame.name, frame.line)
    print(inspect.getsource(outer), inspect.getsource(Thing), inspect.getfile(Thing), inspect.getmodule(outer).__name__)
    print(linecache.getline(__file__, 1).strip(), sys._getframe(1).f_code.co_name, sys._getframe(1).f_lineno)


def tell_objects():
    data = pickle.dumps(Thing(3))
    print(data, pickle.loads(data) == Thing(3), Thing.__module__, Thing.__qualname__, repr(Thing))
    random.seed(4)
    print("random", random.random(), random.getrandbits(32))


def tell_children():
    import multiprocessing

    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, [(apart, thing.size) for apart, thing in pool.map(work, [1, 2])])
    codes = set()
    for _ in range(20):  # each gets its signal in its first moments
        child = multiprocessing.get_context("fork").Process(target=signal.pause)
        child.start()
        child.terminate()
        child.join()
        codes.add(child.exitcode)
    print("terminated children end with", codes)


def tell_torch():
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(1)
    print("torch.rand", [value.hex() for value in torch.rand(3).tolist()], torch.get_num_threads())
    x = torch.randn(64, 5)
    data = TensorDataset(x, x.sum(1, keepdim=True).tanh())
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        for inputs, target in DataLoader(data, batch_size=16, shuffle=True, num_workers=2):
            loss = (model(inputs) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print("epoch", epoch, "loss", loss.item().hex())


def last_words():
    print("last words", "__file__" in globals(), sys.argv, hasattr(sys, "last_value"))


def fork_and(end):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        end()
    else:
        print("child ended with", os.waitpid(child, 0)[1])


def chain():
    try:
        outer(0)
    except ZeroDivisionError as error:
        try:
            raise KeyError("in between") from error
        except KeyError:
            raise RuntimeError("at the end")


def group():
    errors = []
    for value in (0, "text"):
        try:
            outer(value)
        except Exception as error:
            errors.append(error)
    raise ExceptionGroup("both", errors)


def hooked():
    sys.excepthook = lambda kind, value, trace: print("my hook", kind, value, len(traceback.extract_tb(trace)), sys.exc_info())
    outer(0)


def broken_hook():
    def hook(kind, value, trace):
        raise LookupError("the hook is broken")

    sys.excepthook = hook
    outer(0)


def leaving_hook():
    sys.excepthook = lambda *_: sys.exit(7)
    outer(0)


def own_handler():
    def handler(number, frame):
        print("handled", number)
        sys.exit(9)

    print("before", signal.signal(signal.SIGTERM, handler), signal.getsignal(signal.SIGTERM) is handler)
    os.kill(os.getpid(), signal.SIGTERM)


def ignore_sigterm():
    print("before", signal.signal(signal.SIGTERM, signal.SIG_IGN))
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", signal.signal(signal.SIGTERM, signal.SIG_DFL))


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGTERM)


def leave_thread():
    def loop():
        stop.wait(0.3)
        print("the thread is done")
        sys.exit(5)  # ends the thread only

    stop = threading.Event()
    threading.Thread(target=loop).start()


def thread_error():
    thread = threading.Thread(target=outer, args=(0,), name="the-thread")
    thread.start()
    thread.join()


def open_file():
    global log
    log = open(os.environ["KNOW_THYSELF_LOG"], "w")  # never closed: flushed when the interpreter ends
    log.write("written\n")
    interrupt()


ENDS = {
    "normal": lambda: None,
    "exit-none": lambda: sys.exit(),
    "exit-0": lambda: sys.exit(0),
    "exit-3": lambda: sys.exit(3),
    "exit-256": lambda: sys.exit(256),
    "exit-huge": lambda: sys.exit(2**70),
    "exit-text": lambda: sys.exit("leaving for a reason"),
    "exit-object": lambda: sys.exit(("a", 1)),
    "exception": chain,
    "group": group,
    "syntax": lambda: __import__("broken_import"),
    "import": lambda: __import__("no_such_module_anywhere"),
    "name": lambda: outter(1),
    "hook": hooked,
    "broken-hook": broken_hook,
    "leaving-hook": leaving_hook,
    "interrupt": interrupt,
    "terminate": terminate,
    "own-handler": own_handler,
    "ignore-sigterm": ignore_sigterm,
    "thread": leave_thread,
    "thread-error": thread_error,
    "fork-normal": lambda: fork_and(lambda: None),
    "fork-exit": lambda: fork_and(lambda: sys.exit(4)),
    "fork-error": lambda: fork_and(chain),
    "fork-interrupt": lambda: fork_and(interrupt),
    "fork-terminate": lambda: fork_and(terminate),
    "file": open_file,
    "hard": lambda: (sys.stdout.flush(), os._exit(11)),
}

if __name__ == "__main__":
    tell_names()
    tell_process()
    tell_warnings()
    tell_frames()
    tell_objects()
    atexit.register(last_words)
    options = sys.argv[2:]
    if "children" in options:
        tell_children()
    if "torch" in options:
        tell_torch()
    ENDS[sys.argv[1]]()
    print("the end of the main body")
