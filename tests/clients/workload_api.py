"""PyPI spiffe against a Workload API socket: what it sees, one JSON line each.

    workload_api.py SOCKET rotations N      the serial of each of N certificates, as X509Source sees them
    workload_api.py SOCKET calls            each call once
    workload_api.py SOCKET tokens AUDIENCE  a JWT-SVID, validated for AUDIENCE and for another
"""

import json
import sys
import time

from spiffe import JwtSource, WorkloadApiClient, X509Source

SOCKET, COMMAND = sys.argv[1], sys.argv[2]
DEADLINE = 60


def say(**what):
    print(json.dumps(what), flush=True)


def rotations(number):
    with X509Source(socket_path=SOCKET, timeout_in_seconds=DEADLINE) as source:
        seen, begin = [], time.monotonic()
        while len(seen) < number:
            if time.monotonic() - begin > DEADLINE:
                sys.exit(f"only {len(seen)} of {number} certificates came")
            svid = source.get_x509_context().default_svid
            serial = f"{svid.leaf.serial_number:x}"
            if serial not in seen:
                seen.append(serial)
                say(serial=serial, id=str(svid.spiffe_id))
            time.sleep(0.01)


def calls():
    with WorkloadApiClient(socket_path=SOCKET) as client:
        svid = client.fetch_x509_svid()
        bundles = client.fetch_x509_bundles()
        domain = svid.spiffe_id.trust_domain
        say(
            id=str(svid.spiffe_id),
            certificates=len(svid.cert_chain),
            authorities=len(bundles.get_bundle_for_trust_domain(domain).x509_authorities),
        )


def tokens(audience):
    with JwtSource(socket_path=SOCKET, timeout_in_seconds=DEADLINE) as source:
        svid = source.fetch_svid({audience})
        bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        say(id=str(svid.spiffe_id), keys=len(bundle.jwt_authorities))
    with WorkloadApiClient(socket_path=SOCKET) as client:
        say(accepted=str(client.validate_jwt_svid(svid.token, audience).spiffe_id))
        try:
            client.validate_jwt_svid(svid.token, "somebody-else")
            say(refused=False)
        except Exception as error:  # the library's own, which wraps the status
            say(refused=str(error))


if COMMAND == "rotations":
    rotations(int(sys.argv[3]))
elif COMMAND == "calls":
    calls()
else:
    tokens(sys.argv[3])
