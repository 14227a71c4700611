import pickle
import sys

from . import inner
from .inner import worker


class Local:
    pass


for name in [key for key in globals() if key.startswith("__")]:
    value = globals()[name]
    if name == "__spec__":
        value = value.name, value.origin, value.parent, value.cached, type(value.loader).__name__
    if name == "__loader__":
        value = type(value), value.path
    print(name, value)
print(sys.argv, sys.orig_argv[1:], sys.path, worker.double(2), inner.__name__, pickle.loads(pickle.dumps(Local)))
if sys.argv[1:] == ["fail"]:
    worker.double(None)
sys.exit(6)
