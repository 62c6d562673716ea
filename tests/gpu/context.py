"""What the parts of tests/gpu.sh share: folders, the log, and commands that end when the part's time does."""
import os
import signal
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LOGGED = 6000  # characters of a command's output that log.txt keeps of its begin and of its end each


class Failed(Exception):
    """What a part found wrong, in one line."""


class Skipped(Exception):
    """Why a part cannot be run here."""


class TimedOut(Exception):
    pass


def write_whole(path, text):
    with open(path + ".new", "w") as f:
        f.write(text)
    os.replace(path + ".new", path)


def shortened(text):
    if len(text) <= 2 * LOGGED:
        return text
    return f"{text[:LOGGED]}\n... {len(text) - 2 * LOGGED} characters left out ...\n{text[-LOGGED:]}"


class Context:
    """What parts share: options, folders, and commands that end when the part's time does."""

    def __init__(self, options):
        self.options = options
        self.stand_in = options.stand_in
        self.out = os.path.abspath(options.out)
        self.build = os.path.abspath(options.build)  # of the program
        self.work = os.path.join(self.build, "gpu-work")
        self.end = 0.0  # of the part that runs, by time.monotonic()
        # plans timed while something else runs on the GPU are not those to take figures with
        self.environment = {**os.environ, "DDPM_CACHE": os.path.join(self.work, "cache-proofs")}
        self.background = []
        self.last_output, self.last_code = "", 0  # of the last command that ended
        self.precision = {}  # of "train" and "sample", once figures.py has asked
        os.makedirs(self.out, exist_ok=True)
        os.makedirs(self.work, exist_ok=True)

    def left(self):
        return self.end - time.monotonic()

    def program(self, name):
        return os.path.join(self.build, name)

    def folder(self, name):
        """An empty folder for a part's own files."""
        path = os.path.join(self.work, name)
        subprocess.run(["rm", "-rf", path], check=True)
        os.makedirs(path)
        return path

    def log(self, text):
        with open(os.path.join(self.out, "log.txt"), "a") as f:
            f.write(text.rstrip("\n") + "\n")

    def run(self, command, codes=(0,), seconds=None, environment=None):
        """Standard output of the command, and its seconds. Failed when its exit code is none of `codes`; TimedOut, with all
        that it started ended, after `seconds` or when the part's time is over."""
        command = [str(word) for word in command]
        self.last_output, self.last_code = "", None
        limit = self.left() if seconds is None else min(seconds, self.left())
        if limit <= 0:
            raise TimedOut(f"no time left for {os.path.basename(command[0])}")
        begin = time.monotonic()
        try:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
                                       env={**self.environment, **(environment or {})})
        except OSError as e:
            raise Failed(f"{command[0]}: {e.strerror}") from None
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            end_group(process)
            out, err = process.communicate()
            self.last_output, self.last_code = out + err, -signal.SIGKILL
            self.log(f"$ {' '.join(command)}\n[ended after {limit:.0f} s]\n{shortened(out)}{shortened(err)}")
            raise TimedOut(f"{os.path.basename(command[0])} took more than {limit:.0f} s") from None
        spent, self.last_output, self.last_code = time.monotonic() - begin, out + err, process.returncode
        self.log(f"$ {' '.join(command)}\n[exit {process.returncode}, {spent:.1f} s]\n{shortened(out)}{shortened(err)}")
        if process.returncode not in codes:
            last = (err.strip() or out.strip() or "no output").splitlines()[-1]
            raise Failed(f"{os.path.basename(command[0])} ended with {process.returncode}: {last[:300]}")
        return out, spent

    def start(self, command, log_name):
        """Runs beside the parts until stop_background."""
        log = open(os.path.join(self.work, log_name), "w")
        process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=subprocess.STDOUT, start_new_session=True, env=self.environment)
        log.close()
        self.log(f"$ {' '.join(str(word) for word in command)} &")
        self.background.append((process, log_name))

    def stop_background(self):
        """Ends what still runs: from here on the GPU is the parts' alone."""
        self.environment["DDPM_CACHE"] = os.path.join(self.work, "cache")
        for process, log_name in self.background:
            if process.poll() is None:
                end_group(process)
            code = process.wait()
            with open(os.path.join(self.work, log_name), errors="replace") as f:
                self.log(f"[{log_name} ended with {code}]\n{shortened(f.read())}")
        self.background = []


def end_group(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
