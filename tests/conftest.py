"""What all tests stand on."""

import signal
import threading

if threading.current_thread() is threading.main_thread():
    # A suite started in the background by a shell inherits an ignored Ctrl-C, and so would every process it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
