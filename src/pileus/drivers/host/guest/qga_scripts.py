"""The few lines of shell that run in a guest beside a package's commands. Constant: what varies comes as arguments.

They need what every Linux has, of coreutils or busybox: sh, chmod, chown, grep, ln, mkdir, mv, rm, sha256sum, stat,
sync, timeout. Where sync knows no files, it writes everything to the disk, which is slower.
"""

from __future__ import annotations

SHELL = "/bin/sh"

_START = "PATH=/usr/sbin:/usr/bin:/sbin:/bin; export PATH; umask 077\n"
_BOOT = "read -r boot < /proc/sys/kernel/random/boot_id\n"
_RUNS = (
    _BOOT
    + """
runs() {
    read -r begun pid < "$1" && [ "$begun" = "$boot" ] && grep -q pileus "/proc/$pid/cmdline" 2> /dev/null
}
"""
)
"""Tells whether what left the mark still runs: in this boot, and not another program of the same number."""

OPEN = _START + 'mkdir -p "$1" && cd "$1" && : >> ledger\n'
"""FOLDER: the place of our notes, and the notes, are there."""

KEEP = (
    _START
    + _RUNS
    + """
cd "$1" || exit 9
for mark in [0-9]*/*.began; do
    [ "${mark%/*}" != "$2" ] && [ ! -e "${mark%.began}.exit" ] && runs "$mark" 2> /dev/null && exit 8
done
for one in [0-9]*; do
    [ "$one" = "$2" ] || rm -rf "$one"
done
"""
)
"""FOLDER NAME: the marks of all requests but one go. Exit code 8: a command of another one still runs."""

STILL_RUNS = 8

DRAFT = (
    _START
    + """
rm -f "$1" && : > "$1" || exit 9
[ ! -e "$2" ] || { chown "$(stat -L -c %u:%g "$2")" "$1" && chmod "$(stat -L -c %a "$2")" "$1"; }
"""
)
"""DRAFT FILE: an empty draft that nobody else had open, with the owner and mode of the file that it shall become."""

PUT = (
    _START
    + """
[ "$(sha256sum < "$1")" = "$3  -" ] || exit 9
sync "$1" && mv -f "$1" "$2" && { sync "${2%/*}/" || sync; }
"""
)
"""DRAFT FILE DIGEST: the draft, when it is what was sent, becomes the file; both lie on the disk then."""

SAME = _START + '[ -f "$1" ] && [ "$(sha256sum < "$1")" = "$2  -" ]\n'
"""FILE DIGEST: tells whether the file is that already."""

RUN = (
    _START
    + _BOOT
    + """
folder=$1 number=$2 limit=$3
shift 3
mkdir -p "$folder" && cd "$folder" && echo "$boot $$" > "$number.$$" || exit 9
# Of all who try, one makes the link; a mark is never seen half-written.
ln "$number.$$" "$number.began" 2> /dev/null || { [ -e "$number.began" ]; exit; }
sync "$number.began" . ..
(cd / && umask 022 && exec timeout -k 5 "$limit" "$@") > "$number.out" 2> "$number.err" < /dev/null
echo $? > "$number.end"
# All of it: what the program did shall be on the disk before anything says that it did.
sync
mv "$number.end" "$number.exit"
sync .
"""
)
"""FOLDER NUMBER SECONDS PROGRAM ARGUMENT…: runs the program unless somebody began to, and keeps what it says."""

LOOK = (
    _RUNS
    + """
cd "$1" 2> /dev/null && [ -e "$2.began" ] || { echo absent; exit 0; }
# It may end between the question whether it ended and the question whether it runs: then the second try knows.
for try in first second; do
    [ ! -e "$2.exit" ] || { echo ended; exit 0; }
    ! runs "$2.began" || { echo running; exit 0; }
done
echo lost
"""
)
"""FOLDER NUMBER: prints absent, running, ended or lost."""

FORGET = _START + 'cd "$1" && rm -f "$2.began" && sync .\n'
"""FOLDER NUMBER: the program may begin again."""
