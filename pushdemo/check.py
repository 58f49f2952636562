"""`pushdemo-check URL`: what the way from the server to a client does to a stream.

Here are the command, what it concludes, and the lines that mend it; what it concludes from is probe.py's. Standard
library alone. Exit status: 0 nothing found, 1 something found, 2 nothing could be asked.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from pushdemo.probe import Probe, head

FINE, FOUND, UNASKED = 0, 1, 2

# What is subscribed to, and what else an address may insist on (`?transport=jsonlines`).
_ASKED = {"multipart": "multipart/x-mixed-replace", "sse": "text/event-stream"}
_STREAMS = {**_ASKED, "jsonlines": "application/x-ndjson"}

_FIRST = 5.0  # seconds for the first byte, which the server writes at once
_QUIET = 1.5  # heartbeats without a byte, after which push.js too takes a stream for held back
_SLACK = 1.0  # seconds beside these: the server looks twice a second, and networks have their moods
_IDLE = 0.3  # seconds of silence, below which nothing cuts a connection for it
_PROGRESS = 5.0  # seconds between two lines of progress
_STEP = 0.1  # seconds between two looks

_REMEDIES = {
    "buffers": {
        "nginx": "proxy_buffering off;  # and no proxy_ignore_headers X-Accel-Buffering\ngzip off;",
        "Caddy": "reverse_proxy ... {\n    flush_interval -1  # and no response_buffers\n}\n"
        "@others not path PATH\nencode @others zstd gzip  # it collects what it compresses",
        "HAProxy": "option http-no-delay  # and no http-response wait-for-body",
    },
    "compresses": {
        "nginx": "gzip off;",
        "Caddy": "@others not path PATH\nencode @others zstd gzip",
        "HAProxy": "compression type text/html text/css text/javascript  # and not the type of the stream",
    },
    "cuts": {
        "nginx": "proxy_read_timeout 1h;",
        "Caddy": "reverse_proxy ... {\n    transport http {\n        read_timeout 1h\n    }\n}",
        "HAProxy": "timeout server 1h\ntimeout client 1h",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, the process's own unless given; its exit status."""
    options = _options(argv)
    try:
        url, by, probes = _subscribe(options.url, dict(options.header))
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"pushdemo-check: {options.url}: {str(error) or type(error).__name__}", file=sys.stderr)
        return UNASKED
    print(f"{url} is answered by {by or 'a server that does not say its name'}")
    with suppress(KeyboardInterrupt):
        _listen(probes, options.seconds)
    for probe in probes:
        probe.stop()
        print(_summary(probe))
    found = {probe.name: judge(probe, options.heartbeat) for probe in probes}
    if any(found.values()):
        _report(found, probes, url, by)
        return FOUND
    if not any(probe.status == 200 for probe in probes):
        return UNASKED
    print("Nothing on the way was seen to buffer, compress or cut the stream.")
    return FINE


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pushdemo-check",
        description="Subscribe to a running site's stream as a browser would, and say whether something on the way "
        "buffers it, compresses it, or cuts quiet connections.",
        epilog="Exit status: 0 nothing found, 1 something found, 2 nothing could be asked.",
    )
    parser.add_argument("url", metavar="URL", help="of a stream, such as https://example.org/server/index")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=65.0,
        help="how long to listen; 65, since proxies cut quiet connections after up to 60 unless told",
    )
    parser.add_argument("--heartbeat", type=_seconds, default=15.0, help="the site's pushdemo.heartbeat; 15")
    parser.add_argument(
        "-H",
        "--header",
        type=_header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a header to send, such as the cookie of someone who has logged in; as often as needed",
    )
    return parser.parse_args(argv)


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (name.strip() and colon):
        raise ValueError
    return name.strip(), value.strip()


def _subscribe(url: str, headers: dict[str, str]) -> tuple[str, str, list[Probe]]:
    """The address that answers, the name of its server, and a probe for each transport that a browser may ask it for.

    Raises ValueError where there is no stream; else as `head` does.
    """
    probes: dict[str, Probe] = {}
    by = refusal = ""
    for accept in _ASKED.values():
        url, response = head(url, accept, headers)
        by = response.headers.get("Server", by)
        media_type = response.headers.get_content_type()
        name = next((name for name, known in _STREAMS.items() if known == media_type), "")
        if response.status == 200 and name:
            probes[name] = Probe(name, url, accept, headers)
        elif response.status != 406:  # which a picture is by Server-Sent Events
            said = f"{response.status} {response.reason}"
            refusal = said if response.status != 200 else f"no stream, but {media_type}"
    if not probes:
        raise ValueError(refusal or "406 Not Acceptable")
    return url, by, list(probes.values())


def _listen(probes: Sequence[Probe], seconds: float) -> None:
    """Until the time is over, or nothing more can be learnt; says every few seconds how it goes."""
    for probe in probes:
        probe.start()
    start = told = time.monotonic()
    pause = threading.Event()
    while (now := time.monotonic()) < start + seconds:
        if all(probe.ended is not None or (probe.first is None and probe.quiet() > _FIRST) for probe in probes):
            break
        if now >= told + _PROGRESS:
            told = now
            state = ", ".join(f"{probe.name} {probe.messages} messages" for probe in probes)
            print(f"{now - start:4.0f} of {seconds:g} s: {state}", file=sys.stderr, flush=True)
        pause.wait(_STEP)


def judge(probe: Probe, heartbeat: float) -> dict[str, str]:
    """What was found, "buffers", "compresses", "cuts" (for its silence) or "ends", and by what it shows."""
    found = {}
    if probe.encoding:
        found["compresses"] = f"Content-Encoding: {probe.encoding}"
    if probe.ended is not None and not probe.clean and probe.status in (200, 502, 504):
        how = probe.error or "without a word from the server"
        idle = probe.quiet() >= max(probe.silence, _IDLE)  # else a longer silence has been let pass before
        found["cuts" if idle else "ends"] = (
            f"the response ended after {probe.ended:.1f} s, {probe.quiet():.1f} s after the last byte: {how}"
        )
    elif probe.status in (0, 200) and not probe.error:
        silence = max(probe.silence, probe.quiet())
        if probe.first is None or probe.first > _FIRST:
            found["buffers"] = f"nothing came for {silence:.1f} s, and the server writes the first bytes at once"
        elif silence > _QUIET * heartbeat + _SLACK:
            found["buffers"] = (
                f"nothing came for {silence:.1f} s, and the server writes every {heartbeat:g} s or sooner"
            )
    return found


def _summary(probe: Probe) -> str:
    if probe.first is None:
        return f"{probe.name}: {probe.error or 'not a byte of the stream'}"
    silence = max(probe.silence, probe.quiet())
    said = f"{probe.name}: first byte after {probe.first:.2f} s, {probe.messages} messages"
    end = f", ended by the server after {probe.ended:.1f} s" if probe.ended and probe.clean else ""
    return f"{said}, longest silence {silence:.1f} s{end}"


def _report(found: dict[str, dict[str, str]], probes: Sequence[Probe], url: str, by: str) -> None:
    for kind in (*_REMEDIES, "ends"):
        evidence = [f"{name}: {findings[kind]}" for name, findings in found.items() if kind in findings]
        if not evidence:
            continue
        print(f"\nSomething between here and the server {kind} the stream.")
        print(*(f"  {line}" for line in evidence), sep="\n")
        if kind == "ends":
            print("Not for its silence: a limit on how long a response may take, or a server that was killed.")
            continue
        print("What mends it, by where it is:")
        remedies = _REMEDIES[kind]
        for proxy in sorted(remedies, key=lambda proxy: proxy.lower() not in by.lower()):
            lines = remedies[proxy].replace("PATH", urlsplit(url).path or "/").splitlines()
            print(f"  {proxy}:", *(f"      {line}" for line in lines), sep="\n")
        if kind == "cuts":
            silence = min(probe.quiet() for probe in probes if kind in found[probe.name])
            print("  the application's ini, so that it is never quiet for so long:")
            print(f"      pushdemo.heartbeat = {silence / 2:.2g}")


if __name__ == "__main__":
    sys.exit(main())
