"""Runs a program on a terminal of its own, as a person would, and says how it left the terminal.

    terminal.py TEXT ACTION [TEXT ACTION]... -- PROGRAM [ARGUMENT]...

Each ACTION is done once the terminal has shown its TEXT after the action before: `key:KEYS`, `signal:NAME` to the
program, or `run:COMMAND` of the shell. The program ends by itself, or fails the test.
"""
import fcntl, os, pty, select, signal, struct, subprocess, sys, termios, time

PATIENCE = 60

split = sys.argv.index("--")
steps = list(zip(sys.argv[1:split:2], sys.argv[2:split:2]))
outer, inner = pty.openpty()
fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
before = termios.tcgetattr(inner)
child = subprocess.Popen(
    sys.argv[split + 1 :], stdin=inner, stdout=inner, stderr=inner, env={**os.environ, "TERM": "xterm"},
    start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
shown, looked, raw = b"", 0, False


def read(wait):
    """What is there now; `wait` seconds at most for the first of it."""
    global shown
    while select.select([outer], [], [], wait)[0]:
        shown += os.read(outer, 65536)
        wait = 0


def act(action):
    kind, what = action.split(":", 1)
    if kind == "key":
        os.write(outer, what.encode())
    elif kind == "signal":
        child.send_signal(signal.Signals["SIG" + what])
    else:
        subprocess.run(what, shell=True, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


deadline = time.monotonic() + PATIENCE
while child.poll() is None and time.monotonic() < deadline:
    read(0.05)
    if steps and steps[0][0].encode() in shown[looked:]:
        raw = raw or termios.tcgetattr(inner) != before
        looked = len(shown)
        act(steps.pop(0)[1])
if child.poll() is None:
    child.kill()
    child.wait()
read(0)


def word(condition, yes, no):
    return yes if condition else no


entered, left = shown.find(b"\x1b[?1049h"), shown.rfind(b"\x1b[?1049l")
hidden, cursor = shown.rfind(b"\x1b[?25l"), shown.rfind(b"\x1b[?25h")
print(
    "code", child.returncode, "steps left", len(steps),
    word(raw, "was raw", "was never raw"),
    "screen", word(0 <= entered < left, "left", "kept"),
    "cursor", word(0 <= hidden < cursor, "shown", "hidden"),
    "modes", word(termios.tcgetattr(inner) == before, "restored", "changed"))
print(shown[left:].decode(errors="replace"), file=sys.stderr)
