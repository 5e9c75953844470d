"""What visitors may take, by the middleware in front of a small application."""

import asyncio
import os

import pytest

pytest.importorskip('gradio')
import httpx
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from timm_sk.demo.visitors import MAX_UPLOADS, MAX_WAITING, BusyError, HostCheck, Turns, UploadQuota, visitor_of

MB = 1_000_000


@pytest.mark.parametrize(
    ('host', 'status'),
    [
        ('127.0.0.1:7860', 200),
        ('localhost', 200),
        ('LOCALHOST:7860', 200),
        ('[::1]:7860', 200),
        ('192.168.1.5:7860', 200),
        ('demo.example:7860', 200),
        ('attacker.example:7860', 421),
        ('localhost.attacker.example', 421),
        ('127.0.0.1.attacker.example', 421),
        ('demo.example@attacker.example', 421),
        ('[bad', 421),
        ('', 421),
    ],
)
@pytest.mark.all_cases
def test_hosts(host, status):
    async def ask():
        app = Starlette(routes=[Route('/', lambda request: PlainTextResponse('page'), methods=['GET', 'POST'])])
        transport = httpx.ASGITransport(HostCheck(app, names=['Demo.example']))
        async with httpx.AsyncClient(transport=transport, base_url='http://x') as client:
            return [await client.request(method, '/', headers=dict(host=host)) for method in ('GET', 'POST')]

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [status, status]
    assert ('--allowed-host' in answers[0].text) == (status == 421)


def test_visitor_of():
    assert visitor_of(('1.2.3.4', 5)) == '1.2.3.4' != visitor_of(None)
    assert visitor_of(('2001:db8::1', 5)) == visitor_of(('2001:db8::ffff:1', 6)) != visitor_of(('2001:db8:0:1::1', 5))


def uploads_of(folder, *, hold=None):
    """An application that stores uploads, behind a quota of 10 MB; `hold` is waited for before the answer."""

    async def store(request):
        body = await request.body()
        path = folder / request.query_params['name']
        path.write_bytes(body)
        if hold:
            await hold.wait()
        return PlainTextResponse('stored')

    app = Starlette(routes=[Route('/gradio_api/upload', store, methods=['POST'])])
    return UploadQuota(app, folder, quota=10 * MB, largest=MB)


async def upload(app, name, content=b'', visitor='1.1.1.1'):
    transport = httpx.ASGITransport(app, client=(visitor, 1))
    async with httpx.AsyncClient(transport=transport, base_url='http://x') as client:
        return (await client.post('/gradio_api/upload', params=dict(name=name), content=content)).status_code


def test_oldest_uploads_make_room(tmp_path):
    (tmp_path / 'example').write_bytes(bytes(MB))
    os.utime(tmp_path / 'example', (1, 1))
    app = uploads_of(tmp_path)
    for number in range(30):
        assert asyncio.run(upload(app, f'{number:02}', bytes(MB))) == 200
        os.utime(tmp_path / f'{number:02}', (10 + number, 10 + number))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [*(f'{number}' for number in range(21, 30)), 'example']
    for number in range(400):  # small ones count too
        assert asyncio.run(upload(app, f'small{number}')) == 200
    assert len([*tmp_path.iterdir()]) < 160


def test_uploads_at_a_time(tmp_path):
    async def ask():
        hold = asyncio.Event()
        app = uploads_of(tmp_path, hold=hold)
        jobs = [asyncio.create_task(upload(app, f'a{number}')) for number in range(MAX_WAITING)]
        jobs.append(asyncio.create_task(upload(app, 'b', visitor='2.2.2.2')))
        while len([*tmp_path.iterdir()]) < MAX_UPLOADS + 1:
            await asyncio.sleep(0.01)
        assert (tmp_path / 'b').exists()
        refused = await upload(app, 'a')
        hold.set()
        return refused, {await job for job in jobs}

    assert asyncio.run(ask()) == (429, {200})


def test_turns():
    """One visitor's requests wait for each other, and nobody else's for them."""

    async def ask():
        turns, release, started = Turns(2), asyncio.Event(), []

        async def stall(number):
            async with turns.turn('a'):
                started.append(number)
                await release.wait()

        jobs = [asyncio.create_task(stall(number)) for number in range(MAX_WAITING)]
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError):
            await stall(-1)
        async with turns.turn('b'):
            assert started == [0, 1]
        release.set()
        await asyncio.gather(*jobs)
        assert started == [*range(MAX_WAITING)]
        async with turns.turn('a'):
            pass

    asyncio.run(ask())
