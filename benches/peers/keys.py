"""Makes a CA-less test certificate (P-256), ES256/RS256 signing keys, a JWKS and one token of each, into DIR."""
import base64, json, pathlib, subprocess, sys, time

b64 = lambda b: base64.urlsafe_b64encode(b).rstrip(b"=").decode()
b64i = lambda i, n: b64(i.to_bytes(n, "big"))


def sh(*cmd, data=None):
    return subprocess.run(cmd, input=data, check=True, capture_output=True).stdout


def der_sig_to_raw(der):  # SEQUENCE { INTEGER r, INTEGER s } -> r || s
    i, out = 2, b""
    for _ in range(2):
        n = der[i + 1]
        out += int.from_bytes(der[i + 2:i + 2 + n], "big").to_bytes(32, "big")
        i += 2 + n
    return out


def main(d):
    d = pathlib.Path(d)
    d.mkdir(parents=True, exist_ok=True)
    made = d / "jwks.json"
    if made.exists() and time.time() - made.stat().st_mtime < 25 * 86400:  # certificate and tokens hold for 30 days
        return
    sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
       "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
       "-keyout", str(d / "tls.key"), "-out", str(d / "tls.crt"))
    (d / "tls.pem").write_bytes((d / "tls.crt").read_bytes() + (d / "tls.key").read_bytes())
    sh("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(d / "es256.key"))
    sh("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(d / "rs256.key"))
    jwks = []
    for alg in ("es256", "rs256"):
        key, pub = str(d / f"{alg}.key"), d / f"{alg}.pub"
        sh("openssl", "pkey", "-in", key, "-pubout", "-out", str(pub))
        jwk = {"kid": alg, "alg": alg.upper(), "use": "sig"}
        if alg == "es256":
            pt = sh("openssl", "pkey", "-in", key, "-pubout", "-outform", "DER")[-64:]
            jwk |= {"kty": "EC", "crv": "P-256", "x": b64(pt[:32]), "y": b64(pt[32:])}
        else:
            mod = int(sh("openssl", "rsa", "-in", key, "-noout", "-modulus").decode().split("=")[1], 16)
            jwk |= {"kty": "RSA", "n": b64i(mod, 256), "e": b64i(65537, 3)}
        jwks.append(jwk)
        head = {"alg": alg.upper(), "typ": "JWT", "kid": alg}
        claims = {"iss": "https://issuer.test", "aud": "bench", "sub": "client-1", "iat": int(time.time()),
                  "exp": int(time.time()) + 30 * 86400, "scope": "infer"}
        msg = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}".encode()
        sig = sh("openssl", "dgst", "-sha256", "-sign", key, data=msg)
        sig = der_sig_to_raw(sig) if alg == "es256" else sig
        (d / f"{alg}.jwt").write_text(msg.decode() + "." + b64(sig))
    (d / "jwks.json").write_text(json.dumps({"keys": jwks}))


if __name__ == "__main__":
    main(sys.argv[1])
