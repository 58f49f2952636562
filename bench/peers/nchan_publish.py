"""Publishes to Nchan, which has no timer of its own: RATE posts a second on one kept connection.

usage: nchan_publish.py PORT RATE. A process of its own; what it uses is not counted as the server's.
"""

from __future__ import annotations

import http.client
import sys
import time

from message import body, pauses


def main(port: int, rate: float) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for pause in pauses(rate):
        time.sleep(pause)
        connection.request("POST", "/publish", body())
        connection.getresponse().read()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
