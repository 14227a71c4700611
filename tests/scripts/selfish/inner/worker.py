import sys


def double(value):
    return value * 2 if value is not None else value + 1


if __name__ == "__main__":
    print(__name__, __package__, __spec__.name, sys.argv)
    raise KeyboardInterrupt
