#!/usr/bin/env python3
"""A manager of storage: disks for the VMs of each account, over iSCSI.

The same program serves all accounts that consented to a manager of the cluster, and the one account that a manager
belongs to; which of the two it is says its key.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serving import main

if __name__ == "__main__":
    main("storage", "A manager of storage", "erase")
