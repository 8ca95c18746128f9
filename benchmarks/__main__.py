"""``python -m benchmarks [--quick] [--json FILE] [NAME...]``: run benchmarks and print the table."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import (
    attach,
    backchannel,
    cli_start,
    deploy,
    fleet,
    frames,
    lists,
    mirror,
    mirror_source,
    mirror_view,
    monitor,
    notices,
    ovf,
    placement,
    real_vm,
    requests,
    requests_table,
    routers,
    scan,
)
from benchmarks.report import Report

BENCHMARKS = {
    "cli": cli_start.run,
    "placement": placement.run,
    "requests": requests.run,
    "requests_table": requests_table.run,
    "lists": lists.run,
    "deploy": deploy.run,
    "attach": attach.run,
    "fleet": fleet.run,
    "notices": notices.run,
    "monitor": monitor.run,
    "backchannel": backchannel.run,
    "frames": frames.run,
    "mirror": mirror.run,
    "mirror_source": mirror_source.run,
    "mirror_view": mirror_view.run,
    "vm": real_vm.run,
    "routers": routers.run,
    "ovf": ovf.run,
    "scan": scan.run,
}


def main() -> int:
    """Run what was asked for; exit code 1 when a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under two minutes in all")
    parser.add_argument("--json", type=Path, help="also append the JSON lines to this file")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    report = Report(chosen.json)
    report.say(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start")
    for name in chosen.names or BENCHMARKS:
        began = time.monotonic()
        BENCHMARKS[name](report, quick=chosen.quick)
        report.say(f"{name} took {time.monotonic() - began:.0f} s")
    print(f"\n{report.table()}")
    return 0 if all(result.holds is not False for result in report.results) else 1


if __name__ == "__main__":
    sys.exit(main())
