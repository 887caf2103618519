"""Migrating a data directory of imqtt 0.1."""

import logging

from imqtt.mosquitto.files import BrokerFiles
from imqtt.mosquitto.passwords import Passwords

log = logging.getLogger(__name__)


def migrate(files: BrokerFiles, passwords: Passwords) -> None:
    """Moves the broker's files, and renames devices from `user/device` to `user@device`. Raises `OSError`.

    The broker's saved state is removed: its sessions and topics have the old names. It was never the only
    copy of an accepted message.
    """
    if files.outdated():
        files.move_outdated()
    outdated = passwords.outdated()
    if not outdated:
        return
    kept = sorted(set(outdated.values()) & set(passwords.usernames()))
    files.state.unlink(missing_ok=True)
    renamed = passwords.migrate()
    log.warning(
        "%s is migrated: usernames are USER@DEVICE now, no longer USER/DEVICE, and topics "
        "imqtt/USER@DEVICE/up/… and …/down. Passwords and messages are unchanged; everything "
        "queued at the broker is removed, so clients repeat unanswered commands. Renamed: %s",
        files.directory, ", ".join(renamed),
    )  # fmt: skip
    if kept:
        log.warning("these were in the password file already and keep their password: %s", ", ".join(kept))
