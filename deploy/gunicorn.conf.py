"""gunicorn for an application with pushdemo: gunicorn --config deploy/gunicorn.conf.py --paste production.ini.

Each stream holds a thread here: pushdemo.max_threads must be below `threads`. docs/deploy.md has a table.
"""

import signal
import threading

bind = "127.0.0.1:6543"
worker_class = "gthread"
threads = 8
graceful_timeout = 5


def post_worker_init(worker):
    """End the streams when the worker is told to stop; otherwise it waits `graceful_timeout` for each of them."""
    stop = signal.getsignal(signal.SIGTERM)

    def stop_streams(number, frame):
        # In a thread, since the signal may come while this one publishes.
        threading.Thread(target=worker.wsgi.registry["pushdemo.topics"].close).start()
        stop(number, frame)

    signal.signal(signal.SIGTERM, stop_streams)
