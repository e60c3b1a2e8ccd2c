"""Runs the shell blocks of a Markdown file; `.ci/readme` says how. Standard library only."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

PATIENCE = 1500  # seconds for one block, builds included


def blocks(text):
    """Every (line number, directive, script) of a ```sh block."""
    directive, start, script = "", None, []
    for number, line in enumerate(text.splitlines(), 1):
        if start is None:
            note = re.fullmatch(r"<!--\s*ci:\s*(.*?)\s*-->", line.strip())
            if note:
                directive = note.group(1)
            elif line.strip() == "```sh":
                start, script = number, []
            elif line.strip():
                directive = ""
        elif line.strip() == "```":
            yield start, directive, "\n".join(script)
            directive, start = "", None
        else:
            script.append(line.removeprefix("$ "))


def holds(condition):
    """Whether a URL answers, and not with a failure of its own; or whether a command succeeds."""
    if not condition.startswith(("http://", "https://")):
        return subprocess.run(["bash", "-c", condition], stderr=subprocess.DEVNULL, check=False).returncode == 0
    url = condition
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2)
    except urllib.error.HTTPError as answer:
        return answer.code < 500
    except OSError:
        return False
    return True


def background(script, directive):
    process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", script], start_new_session=True)
    kind, _, condition = directive.partition(" ")
    if kind == "until":
        end = time.monotonic() + PATIENCE
        while not holds(condition):
            if process.poll() is not None:
                raise SystemExit(f"it ended with {process.returncode}")
            if time.monotonic() > end:
                raise SystemExit(f"{condition}: not in time")
            time.sleep(0.2)
    return process


def stop(process):
    """Ctrl-C, as a person would; a program that does not end by it is a failure."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise SystemExit("a background block did not end after Ctrl-C") from None


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    running, ran = [], 0
    try:
        for line, directive, script in blocks(text):
            kind = directive.split()[0] if directive else ""
            print(f"-- line {line}: {directive or 'run'}\n{script}", flush=True)
            if kind == "skip":
                continue
            ran += 1
            if kind in ("background", "until"):
                running.append(background(script, directive))
                continue
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], timeout=PATIENCE, check=False)
            if done.returncode:
                raise SystemExit(f"the block at line {line} ended with {done.returncode}")
    finally:
        for process in reversed(running):
            stop(process)
    if not ran:
        raise SystemExit("no ```sh block was found")
    print(f"{ran} blocks ran")


main()
