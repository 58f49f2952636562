"""Add a user and the rooms that the user may enter: `python -m orders.users orders.ini NAME ROOM [ROOM ...]`."""

from __future__ import annotations

import getpass
import sys

from pyramid.paster import bootstrap

from orders.models import Member, User


def main() -> None:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    ini, name, *rooms = sys.argv[1:]
    with bootstrap(ini) as env, env["registry"]["dbsession_factory"].begin() as session:
        session.add(User(name, getpass.getpass()))
        session.flush()
        session.add_all(Member(room=room, user_name=name) for room in rooms)


if __name__ == "__main__":
    main()
