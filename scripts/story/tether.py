"""Becomes another Python program that ends with its parent, however the parent ended: tether.py PARENT-PID ARGUMENTS...

The engine and its companions are meant to outlive whoever started them. A demo that is killed must not leave any behind.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    # Linux only; elsewhere a child of a killed demo has to be ended by hand.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(sys.argv[1]):
        sys.exit(0)  # the parent ended before the tether held
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
