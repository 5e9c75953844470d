"""What a release did to the loopback hub."""

from typing import Any

from hub_server import Hub


def writes(hub: Hub) -> dict[tuple[str, str], int]:
    """How many requests of each kind wrote."""
    return {key: count for key, count in hub.requests.items() if key[0] in ('POST', 'PUT', 'DELETE')}


def contents(hub: Hub, repo_id: str) -> dict[str, bytes]:
    """The files of a repository by path."""
    files: dict[str, Any] = hub.repos[repo_id].files()
    return {path: file.content for path, file in files.items() if path != '.gitattributes'}
