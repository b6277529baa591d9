"""10,000 pictures from a server on this machine: rate with the politeness limit and without, memory, a kill, requests.

python benchmarks/pictures.py [--pictures 10000]

The server is a process of its own, with one connection per request handler and pictures of about 60 kB. Each row is a
fetch by `twohop.data._downloads` in a process of its own, whose peak memory is read at the end of each tenth.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVER = """
import io, json, sys
sys.path.insert(0, {tests!r})
import numpy as np
from PIL import Image
from picture_server import PictureServer
noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
def picture(i):
    pixels = noise.copy()
    pixels[0, :4] = [[i >> 24 & 255, i >> 16 & 255, i >> 8 & 255], [i & 255] * 3, [0] * 3, [255] * 3]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=0)
    return out.getvalue()
with PictureServer() as server:
    server.otherwise = lambda h: h.send(picture(int(h.path[1:-4])))
    print(server.place, flush=True)
    for line in sys.stdin:
        asked = server.asked
        print(json.dumps({{"requests": asked.total(), "at_once": server.most_at_once}}), flush=True)
        server.asked.clear()
"""
CLIENT = """
import json, resource, sys, time
from pathlib import Path
from twohop.data._downloads import PictureCache, Wanted, fetch_pictures
from twohop.data._web import Rules, Web
place, folder, n, mbps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
rules = Rules("me@example.org", frozenset(), media_mbps=mbps, let_in=frozenset({place}))
wanted = (Wanted(str(i), f"http://{place}/{i}.png") for i in range(n))
start, tenths, failed = time.monotonic(), [], 0
with Web(rules) as web:
    for i, done in enumerate(fetch_pictures(wanted, PictureCache(folder), web, n), 1):
        failed += bool(done.reason)
        if i % max(1, n // 10) == 0:
            tenths.append([i, time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024])
            print(json.dumps({"failed": failed, "tenths": tenths}), flush=True)
"""


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description="Fetch many pictures from a server on this machine.")
    parser.add_argument("--pictures", type=int, default=10_000)
    n = parser.parse_args().pictures
    with tempfile.TemporaryDirectory(prefix="twohop-pictures-") as folder, server() as running:
        place = running.stdout.readline().strip()
        print("| run | pictures | failed | requests | connections | seconds | pictures/s | peak MiB at 10, 50, 100 % |")
        print("|---|---|---|---|---|---|---|---|")
        row("polite (25 Mbps)", running, fetch(place, Path(folder) / "polite", max(10, n // 20), 25.0))
        row("limit lifted", running, fetch(place, Path(folder) / "lifted", n, 1e6))
        killed = killed_at(place, Path(folder) / "killed", n, n * 4 // 10)
        row("killed with SIGKILL", running, killed)
        row("the same command again", running, fetch(place, Path(folder) / "killed", n, 1e6))
        row("and again", running, fetch(place, Path(folder) / "killed", n, 1e6))


def server() -> "subprocess.Popen[str]":
    """The server's process: a line on its input is answered with what it has counted since the last one."""
    code = SERVER.format(tests=str(ROOT / "tests/data"))
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def words(place: str, folder: Path, n: int, mbps: float) -> list[str]:
    """The client's command."""
    return [sys.executable, "-c", CLIENT, place, str(folder), str(n), str(mbps)]


def fetch(place: str, folder: Path, n: int, mbps: float) -> dict[str, Any]:
    """A whole fetch; what its last line says."""
    done = subprocess.run(words(place, folder, n, mbps), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def killed_at(place: str, folder: Path, n: int, at: int) -> dict[str, Any]:
    """A fetch that is killed once so many pictures have arrived."""
    last: dict[str, Any] = {"failed": 0, "tenths": []}
    with subprocess.Popen(
        words(place, folder, n, 1e6), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            last = json.loads(line)
            if last["tenths"][-1][0] >= at:
                time.sleep(0.1)
                os.killpg(run.pid, signal.SIGKILL)
                break
    return last


def row(name: str, running: "subprocess.Popen[str]", result: dict[str, Any]) -> None:
    """One line of the table."""
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write("count\n")
    running.stdin.flush()
    counted, tenths = json.loads(running.stdout.readline()), result["tenths"]
    fetched, seconds, _ = tenths[-1]
    memory = ", ".join(str(tenths[i][2]) for i in (0, len(tenths) // 2, -1))
    cells = [name, fetched, result["failed"], counted["requests"], counted["at_once"], f"{seconds:.1f}"]
    print(f"| {' | '.join(map(str, cells))} | {fetched / seconds:.0f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
