"""A mail server, PyPI aiosmtpd, and Python's smtplib around a mesh: what each of them sees, one JSON line each.

    smtp_peer.py serve ADDRESS                  says `ready`, then every connection and every mail
    smtp_peer.py call ADDRESS AUTHORITY CASE    sends one mail; CASE is its text
"""

import asyncio
import json
import smtplib
import sys
import time

LONG = 50


def say(**what):
    print(json.dumps(what), flush=True)


def serve(address):
    from aiosmtpd.smtp import SMTP

    class Mailbox:
        async def handle_DATA(self, server, session, envelope):
            say(sender=envelope.mail_from, recipients=envelope.rcpt_tos, text=envelope.content.decode())
            return "250 kept"

    class Server(SMTP):
        def connection_made(self, transport):
            say(connected=True)
            super().connection_made(transport)

    async def run():
        host, port = address.rsplit(":", 1)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(Mailbox(), hostname="mail.test", loop=loop), host, int(port))
        say(ready=address)
        await server.serve_forever()

    asyncio.run(run())


def call(address, _, text):
    host, port = address.rsplit(":", 1)
    client = smtplib.SMTP(timeout=LONG, local_hostname="client.test")
    begin = time.monotonic()
    try:
        # Reads the greeting, and has said nothing before.
        code, greeting = client.connect(host, int(port))
        after = time.monotonic() - begin
        refused = client.sendmail("a@client.test", ["b@mail.test"], text)
        client.quit()
        say(code=code, greeting=greeting.decode(), after=after, refused=refused)
    except (smtplib.SMTPException, OSError) as error:
        say(error=type(error).__name__)


if sys.argv[1] == "serve":
    serve(sys.argv[2])
else:
    call(*sys.argv[2:])
