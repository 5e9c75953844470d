"""The Hub's HTTP routes, as the huggingface_hub client uses them: functions of a call that return JSON or a `Download`.

The name of a route's function is the kind under which its requests are counted.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from hub_repos import File, Refused, Repo, is_lfs

PARTS = {'REPO': '(?P<repo>[^/]+/[^/]+)', 'REV': '(?P<revision>[^/]+)', 'PATH': '(?P<path>.+)'}
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []


@dataclass
class Store:
    """The content of the server; a caller with one of the tokens may do everything, one with another token nothing."""

    endpoint: str = ''
    tokens: tuple[str, ...] = ('hf_owner',)
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS contents by sha256, in a commit or not yet
    awaited: set[str] = field(default_factory=set)  # sha256 of the LFS contents that may be uploaded
    files: dict[str, bytes] = field(default_factory=dict)  # of a plain file server, under /files/


@dataclass
class Call:
    store: Store
    method: str
    token: str | None
    query: dict[str, list[str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Download:
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)


def route(method: str, pattern: str) -> Callable:
    """Register a function for a method and a path; the path's REPO (found), REV and PATH become its arguments."""
    for part, group in PARTS.items():
        pattern = pattern.replace(part, group)

    def register(function: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def find(method: str, path: str) -> tuple[Callable[..., Any], dict[str, str]]:
    """The route of a request, and the parameters in its path."""
    for verb, pattern, function in ROUTES:
        if verb == method and (match := pattern.fullmatch(path)):
            return function, {name: unquote(value) for name, value in match.groupdict().items() if value}
    return no_such_route, {}


def execute(function: Callable[..., Any], arguments: dict[str, str], call: Call) -> Any:
    """Call a route's function if the caller is authorized: writing needs a token, as does a private repository."""
    if call.token not in (None, *call.store.tokens):
        raise Refused(401, 'Invalid credentials in Authorization header')
    if 'repo' not in arguments:
        return function(call, **arguments)
    repo = call.store.repos.get(arguments['repo'])
    if call.token is None and (repo is None or repo.private or call.method != 'GET'):
        raise Refused(401, 'Invalid username or password.', code='RepoNotFound')
    if repo is None:
        raise Refused(404, 'Repository not found', code='RepoNotFound')
    return function(call, **{**arguments, 'repo': repo})


def no_such_route(call: Call) -> None:
    raise Refused(404, 'There is no such route')


@route('POST', '/api/validate-yaml')
def validate_yaml(call: Call) -> dict:
    return dict(errors=[], warnings=[])


@route('POST', '/api/repos/create')
def create(call: Call) -> dict:
    if call.token is None:
        raise Refused(401, 'Invalid username or password.')
    name = f'{call.json["organization"] or "owner"}/{call.json["name"]}'
    url = f'{call.store.endpoint}/{name}'
    if name in call.store.repos:
        raise Refused(409, 'You already created this model repo', url=url)
    private = call.json.get('private') or call.json.get('visibility') == 'private'  # clients 1.x and 2.x
    call.store.repos[name] = Repo(name, private=private)
    return dict(url=url)


@route('GET', '/api/models/REPO(/revision/REV)?')
def info(call: Call, repo: Repo, revision: str = 'main') -> dict:
    oid = repo.resolve(revision)
    siblings = [dict(rfilename=path) for path in repo.commits[oid].files]
    return dict(id=repo.name, sha=oid, private=repo.private, tags=[], siblings=siblings)


@route('GET', '/api/models/REPO/refs')
def refs(call: Call, repo: Repo) -> dict:
    tags = [dict(name=tag, ref=f'refs/tags/{tag}', targetCommit=oid) for tag, oid in repo.tags.items()]
    main = dict(name='main', ref='refs/heads/main', targetCommit=repo.head)
    return dict(branches=[main], tags=tags, converts=[], pullRequests=[])


@route('GET', '/api/models/REPO/tree/REV')
def tree(call: Call, repo: Repo, revision: str) -> list[dict]:
    """The files of all folders."""
    if call.query.get('recursive') != ['true']:
        raise Refused(400, 'A single folder cannot be listed')
    return [file.entry(name) for name, file in repo.files(revision).items()]


@route('POST', '/api/models/REPO/tag/REV')
def tag(call: Call, repo: Repo, revision: str) -> dict:
    if call.json['tag'] in repo.tags:
        raise Refused(409, f'Tag {call.json["tag"]} already exists')
    repo.tags[call.json['tag']] = repo.resolve(revision)
    return {}


@route('POST', '/api/models/REPO/preupload/REV')
def preupload(call: Call, repo: Repo, revision: str) -> dict:
    modes = []
    for wanted in call.json['files']:
        mode = 'lfs' if is_lfs(wanted['path'], wanted['size']) else 'regular'
        modes.append(dict(path=wanted['path'], uploadMode=mode, shouldIgnore=False))
        if present := repo.files(revision).get(wanted['path']):
            modes[-1]['oid'] = present.sha256 if present.lfs else present.blob
    return dict(files=modes)


@route('POST', r'/REPO\.git/info/lfs/objects/batch')
def lfs_batch(call: Call, repo: Repo) -> dict:
    objects = []
    for wanted in call.json['objects']:
        objects.append(dict(oid=wanted['oid'], size=wanted['size']))
        if wanted['oid'] not in call.store.objects:
            call.store.awaited.add(wanted['oid'])
            upload = dict(href=f'{call.store.endpoint}/lfs/{wanted["oid"]}')
            verify = dict(href=f'{call.store.endpoint}/{repo.name}.git/info/lfs/objects/verify')
            objects[-1]['actions'] = dict(upload=upload, verify=verify)
    return dict(transfer='basic', objects=objects)


@route('PUT', '/lfs/PATH')
def lfs_upload(call: Call, path: str) -> dict:
    """The client sends no token here: as for the Hub's storage, the address that `lfs_batch` gave is the right."""
    if path not in call.store.awaited:
        raise Refused(403, 'Request has expired')
    if hashlib.sha256(call.body).hexdigest() != path:
        raise Refused(400, 'The content is not that of its sha256')
    call.store.objects[path] = call.body
    return {}


@route('POST', r'/REPO\.git/info/lfs/objects/verify')
def lfs_verify(call: Call, repo: Repo) -> dict:
    if len(call.store.objects.get(call.json['oid'], b'')) != call.json['size']:
        raise Refused(404, 'The LFS object was not uploaded, or has another size')
    return {}


@route('POST', '/api/models/REPO/commit/REV')
def commit(call: Call, repo: Repo, revision: str) -> dict:
    """The operations, one JSON line each, are all read before the commit is made: it is made wholly or not at all."""
    if revision != 'main':
        raise Refused(404, f'Invalid rev id: {revision}', code='RevisionNotFound')
    header, *operations = ((line['key'], line['value']) for line in map(json.loads, call.body.splitlines()))
    if header[1].get('parentCommit', repo.head) != repo.head:
        raise Refused(412, 'A commit has happened since. Please refresh and try again.')
    files, objects = dict(repo.files()), call.store.objects
    for kind, value in operations:
        if kind == 'file':
            files[value['path']] = File(base64.b64decode(value['content']))
        elif kind == 'lfsFile' and value['oid'] in objects:
            files[value['path']] = File(objects[value['oid']], lfs=True)
        else:
            raise Refused(400, f'Not possible: {kind} {value["path"]}')
    oid = repo.commit(header[1]['summary'], files)
    return dict(success=True, commitOid=oid, commitUrl=f'{call.store.endpoint}/{repo.name}/commit/{oid}')


@route('GET', '/REPO/resolve/REV/PATH')
def resolve(call: Call, repo: Repo, revision: str, path: str) -> Download:
    oid, file = repo.resolve(revision), repo.files(revision).get(path)
    if file is None:
        raise Refused(404, 'Entry not found', code='EntryNotFound', commit=oid)
    # An LFS file's own ETag is its storage's, whatever that is: only X-Linked-Etag is its sha256.
    headers = {'X-Repo-Commit': oid, 'ETag': f'"{file.blob}"'}
    linked = {'X-Linked-Etag': f'"{file.sha256}"', 'X-Linked-Size': str(len(file.content))}
    return Download(file.content, {**headers, **linked} if file.lfs else headers)


@route('GET', '/files/PATH')
def files(call: Call, path: str) -> Download:
    """A plain file server, such as a project's release page."""
    if path not in call.store.files:
        raise Refused(404, 'Not Found')
    return Download(call.store.files[path])
