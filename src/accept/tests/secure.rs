//! TLS and certificates, the listener's and its clients'.

use super::*;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

struct Issued {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn issue(&self, names: Vec<SanType>, serial: u64, year: i32) -> Issued {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = names;
        params.serial_number = Some(serial.into());
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn server(&self, serial: u64) -> Issued {
        self.issue(vec![dns("localhost")], serial, 2099)
    }

    fn revokes(&self, serial: u64) -> String {
        self.revokes_until(serial, 2099)
    }

    /// A list that was to be followed by another when that year began.
    fn revokes_until(&self, serial: u64, year: i32) -> String {
        let params = rcgen::CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![rcgen::RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: date_time_ymd(2021, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn put(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

fn put_pair(folder: &Path, pair: &Issued) {
    put(folder, "server.pem", &pair.certificate);
    put(folder, "server.key", &pair.key);
}

const FILES: &str = "certificate = \"server.pem\"\nkey = \"server.key\"\n";

fn client(
    authority: &Authority,
    mine: Option<&Issued>,
    version: Option<&'static rustls::SupportedProtocolVersion>,
    alpn: &[&str],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions: Vec<_> = version.map_or(vec![&rustls::version::TLS13, &rustls::version::TLS12], |version| vec![version]);
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).unwrap().with_root_certificates(roots);
    let mut config = match mine {
        None => builder.with_no_client_auth(),
        Some(mine) => {
            let chain = vec![CertificateDer::from_pem_slice(mine.certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(mine.key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
    config
}

async fn shake(address: SocketAddr, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

async fn over_http1(stream: &mut TlsStream<TcpStream>, path: &str) -> io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).await?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&answer[..count]).into_owned())
}

#[tokio::test]
async fn tls_prefers_the_hybrid_key_exchange_and_speaks_both_versions_and_protocols() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("a"));
    put_pair(folder.path(), &authority.server(1));
    let running = start(&format!("[tls]\n{FILES}"), folder.path());

    let stream = shake(running.address, client(&authority, None, None, &["h2", "http/1.1"])).await.unwrap();
    let session = stream.get_ref().1;
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://localhost/a").body(Full::new(Bytes::from_static(b"abc"))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));

    let mut stream = shake(running.address, client(&authority, None, Some(&rustls::version::TLS12), &["http/1.1"])).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(over_http1(&mut stream, "/").await.unwrap().starts_with("HTTP/1.1 200"));
    assert!(shake(running.address, client(&authority, None, None, &["gopher"])).await.is_err());
}

#[tokio::test]
async fn client_certificates_are_asked_for_verified_and_named() {
    let (folder, authority, clients, strangers) =
        (tempfile::tempdir().unwrap(), Authority::new("a"), Authority::new("clients"), Authority::new("strangers"));
    put_pair(folder.path(), &authority.server(1));
    put(folder.path(), "clients.pem", &clients.issuer.pem());
    put(folder.path(), "clients.crl", &clients.revokes(7));
    let names = || vec![dns("app.acme.example"), SanType::URI("spiffe://acme.example/app".try_into().unwrap())];
    let (good, revoked, past) = (clients.issue(names(), 5, 2099), clients.issue(names(), 7, 2099), clients.issue(names(), 8, 2020));
    let strange = strangers.issue(names(), 5, 2099);
    for auth in ["optional", "required"] {
        let tls = format!("[tls]\n{FILES}client_ca = \"clients.pem\"\nclient_crl = \"clients.crl\"\nclient_auth = \"{auth}\"");
        let running = start(&tls, folder.path());
        let ask = async |mine: Option<&Issued>| {
            let mut stream = shake(running.address, client(&authority, mine, None, &[])).await?;
            over_http1(&mut stream, "/who").await
        };
        let named = ask(Some(&good)).await.unwrap();
        assert!(named.ends_with("\r\n\r\nspiffe://acme.example/app app.acme.example"), "{named}");
        assert_eq!(ask(None).await.is_ok(), auth == "optional");
        for bad in [&revoked, &past, &strange] {
            assert!(ask(Some(bad)).await.is_err());
        }
        let failed = running.counters.handshakes_certificate.load(Ordering::Relaxed);
        assert_eq!(failed, if auth == "optional" { 3 } else { 4 });
    }
}

#[tokio::test]
async fn who_shows_no_certificate_reads_why_also_where_requests_were_sent_meanwhile() {
    let (folder, authority, clients) = (tempfile::tempdir().unwrap(), Authority::new("a"), Authority::new("clients"));
    put_pair(folder.path(), &authority.server(1));
    put(folder.path(), "clients.pem", &clients.issuer.pem());
    let running = start(&format!("[tls]\n{FILES}client_ca = \"clients.pem\"\nclient_auth = \"required\""), folder.path());
    for alpn in ["h2", "http/1.1"] {
        let mut stream = shake(running.address, client(&authority, None, None, &[alpn])).await.unwrap();
        for _ in 0..3 {
            stream.write_all(&[0; 2_000]).await.unwrap();
            stream.flush().await.unwrap();
            // By then the other end has seen that there is no certificate.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let why = stream.read(&mut [0; 10]).await.unwrap_err().to_string();
        assert!(why.contains("CertificateRequired"), "{alpn}: {why}");
    }
    assert_eq!(running.counters.handshakes_certificate.load(Ordering::Relaxed), 2);
    // Who then neither sends nor goes is not waited for.
    let begun = Instant::now();
    let _stays = shake(running.address, client(&authority, None, None, &[])).await.unwrap();
    while running.counters.handshakes_certificate.load(Ordering::Relaxed) < 3 || running.counters.open.load(Ordering::Relaxed) > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "it is still open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_has_ended_is_told_and_nobody_is_let_in_by_a_list_that_has() {
    let (folder, authority, clients) = (tempfile::tempdir().unwrap(), Authority::new("a"), Authority::new("clients"));
    put_pair(folder.path(), &authority.issue(vec![dns("localhost")], 1, 2098));
    put(folder.path(), "clients.pem", &clients.issuer.pem());
    let mine = clients.issue(vec![dns("app")], 5, 2099);
    put(folder.path(), "clients.crl", &(clients.revokes_until(8, 2024) + &clients.revokes(7)));
    let config = format!("[tls]\n{FILES}client_ca = \"clients.pem\"\nclient_crl = \"clients.crl\"\nclient_auth = \"optional\"");
    let running = start(&config, folder.path());
    let tls = running.tls.clone().unwrap();
    let at = |seconds: u64| tls.ended(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).collect::<Vec<_>>();
    // 2024-01-01 and 2098-01-01.
    let (list, certificate) = (1_704_067_200, 4_039_372_800);
    assert_eq!((tls.lists_end(), tls.ends()), (Some(list), certificate));
    assert_eq!(at(list as u64), Vec::<String>::new());
    let told = at(list as u64 + 1);
    assert!(matches!(&told[..], [one] if one.starts_with("a revocation list was good until 2024-01-01T00:00:00.000Z")), "{told:?}");
    assert_eq!((at(certificate as u64).len(), at(certificate as u64 + 1).len()), (1, 2));
    let ask = async || {
        let mut stream = shake(running.address, client(&authority, Some(&mine), None, &[])).await?;
        over_http1(&mut stream, "/who").await
    };
    assert!(ask().await.is_err());
    put(folder.path(), "clients.crl", &(clients.revokes_until(8, 2097) + &clients.revokes(7)));
    tls.reload().unwrap();
    assert!(ask().await.unwrap().ends_with("app"));
    assert_eq!(at(list as u64 + 1), Vec::<String>::new());
    let without = start(&format!("[tls]\n{FILES}"), folder.path()).tls.unwrap();
    assert_eq!(without.lists_end(), None);
}

#[tokio::test]
async fn a_client_certificate_holds_for_each_request_and_not_for_the_handshake_alone() {
    let (folder, authority, clients) = (tempfile::tempdir().unwrap(), Authority::new("a"), Authority::new("clients"));
    put_pair(folder.path(), &authority.server(1));
    put(folder.path(), "clients.pem", &clients.issuer.pem());
    put(folder.path(), "clients.crl", &clients.revokes(7));
    let (good, other) = (clients.issue(vec![dns("good")], 5, 2099), clients.issue(vec![dns("other")], 6, 2099));
    for auth in ["optional", "required"] {
        let tls = format!("[tls]\n{FILES}client_ca = \"clients.pem\"\nclient_crl = \"clients.crl\"\nclient_auth = \"{auth}\"");
        let running = start(&tls, folder.path());
        let tls = running.tls.clone().unwrap();
        let mut connections = Vec::new();
        for mine in [&good, &other] {
            connections.push(shake(running.address, client(&authority, Some(mine), None, &[])).await.unwrap());
        }
        let [of_good, of_other] = &mut connections[..] else { unreachable!() };
        let over_h2 = shake(running.address, client(&authority, Some(&other), None, &["h2"])).await.unwrap();
        let (mut h2, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(over_h2)).await.unwrap();
        let ended = tokio::spawn(connection);
        let mut status_over_h2 = async || {
            h2.ready().await.unwrap();
            h2.send_request(Request::get("https://localhost/who").body(Empty::<Bytes>::new()).unwrap()).await.unwrap().status()
        };
        // Other files, under which both hold.
        for serial in [7, 8] {
            put(folder.path(), "clients.crl", &clients.revokes(serial));
            tls.reload().unwrap();
            assert!(over_http1(of_good, "/who").await.unwrap().ends_with("good"));
            assert!(over_http1(of_other, "/who").await.unwrap().ends_with("other"));
            assert_eq!(status_over_h2().await, StatusCode::OK);
        }
        put(folder.path(), "clients.crl", &clients.revokes(6));
        tls.reload().unwrap();
        let refused = over_http1(of_other, "/who").await.unwrap();
        assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("connection: close"), "{refused}");
        assert!(over_http1(of_other, "/who").await.is_err(), "its connection has ended");
        assert_eq!(status_over_h2().await, StatusCode::UNAUTHORIZED);
        tokio::time::timeout(Duration::from_secs(10), ended).await.expect("so has the other").unwrap().unwrap();
        assert!(over_http1(of_good, "/who").await.unwrap().ends_with("good"));

        let der = [CertificateDer::from_pem_slice(good.certificate.as_bytes()).unwrap()];
        let shown = tls::Shown::new(&tls, Some(&der), tls.current()).unwrap();
        let (now, ends) = (std::time::SystemTime::now(), std::time::UNIX_EPOCH + Duration::from_secs(4_070_908_800));
        assert!(shown.holds(now) && shown.holds(ends) && !shown.holds(ends + Duration::from_secs(1)), "2099 ends it");
        put(folder.path(), "clients.crl", &clients.revokes(7));
    }
    // Where nobody is asked for one any more, none holds.
    let config = format!("[tls]\n{FILES}");
    let without = start(&config, folder.path()).tls.unwrap();
    let der = [CertificateDer::from_pem_slice(good.certificate.as_bytes()).unwrap()];
    let before = start(&format!("{config}client_ca = \"clients.pem\"\nclient_auth = \"optional\""), folder.path()).tls.unwrap().current();
    assert!(!tls::Shown::new(&without, Some(&der), before).unwrap().holds(std::time::SystemTime::now()));
}

#[tokio::test]
async fn a_reload_is_for_new_handshakes_and_a_bad_one_changes_nothing() {
    let (folder, old, new) = (tempfile::tempdir().unwrap(), Authority::new("old"), Authority::new("new"));
    put_pair(folder.path(), &old.server(1));
    let running = start(&format!("[tls]\n{FILES}"), folder.path());
    let tls = running.tls.clone().unwrap();
    let mut living = shake(running.address, client(&old, None, None, &[])).await.unwrap();
    assert!(over_http1(&mut living, "/").await.is_ok());

    // Half of the new pair: the key is not the certificate's.
    let pair = new.server(2);
    put(folder.path(), "server.pem", &pair.certificate);
    assert_eq!(tls.reload().unwrap_err().len(), 1);
    for text in ["", "not PEM", &new.issue(vec![dns("localhost")], 3, 2020).certificate] {
        put(folder.path(), "server.pem", text);
        assert!(!tls.reload().unwrap_err().is_empty());
    }
    assert!(shake(running.address, client(&old, None, None, &[])).await.is_ok());

    put_pair(folder.path(), &pair);
    tls.reload().unwrap();
    assert!(shake(running.address, client(&new, None, None, &[])).await.is_ok());
    assert!(shake(running.address, client(&old, None, None, &[])).await.is_err());
    assert!(over_http1(&mut living, "/").await.unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_name_of_one_kind_is_not_taken_for_one_of_the_other() {
    let clients = Authority::new("clients");
    let names = vec![
        dns("spiffe://acme.example/admin"),
        SanType::URI("node.example".try_into().unwrap()),
        SanType::URI("spiffe://acme.example/app".try_into().unwrap()),
        dns("app.acme.example"),
    ];
    let issued = clients.issue(names, 7, 2099);
    let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let certificate = tls::client_certificate(&der, std::time::SystemTime::now()).unwrap();
    assert_eq!(certificate.names, ["spiffe://acme.example/app".into(), "app.acme.example".into()]);
}

#[tokio::test]
async fn a_key_that_others_may_read_is_told_until_they_may_not() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("a"));
    put_pair(folder.path(), &authority.server(1));
    let tls = start(&format!("[tls]\n{FILES}"), folder.path()).tls.unwrap();
    let key = folder.path().join("server.key");
    for (mode, exposed) in [(0o600, false), (0o640, true), (0o604, true), (0o400, false)] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        tls.reload().unwrap();
        assert_eq!(tls.exposed(), exposed.then(|| key.clone()), "{mode:o}");
    }
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_cut() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("a"));
    put_pair(folder.path(), &authority.server(1));
    let running = start(&format!("deadlines = {{ handshake = \"100ms\" }}\n[tls]\n{FILES}"), folder.path());
    assert_eq!(raw(running.address, b"\x16\x03\x01").await, "");
    assert_eq!(running.counters.handshakes_slow.load(Ordering::Relaxed), 1);
    drop(raw(running.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await);
    assert_eq!(running.counters.handshakes_refused.load(Ordering::Relaxed), 1);
}

#[test]
fn every_mistake_in_the_files_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let tls = "[tls]\ncertificate = \"../server.pem\"\nkey = \"missing.key\"\nclient_auth = \"required\"";
    let config: Config = toml::from_str(&format!("listen = \"127.0.0.1:0\"\n{tls}")).unwrap();
    let mistakes = Accept::new(&config, folder.path()).unwrap_err();
    assert_eq!(mistakes.len(), 3);
    assert!(mistakes.iter().all(|mistake| mistake.span.is_some()));
}

#[tokio::test]
async fn a_certificate_that_is_revoked_at_a_reload_opens_nothing_more() {
    let (folder, authority, clients) = (tempfile::tempdir().unwrap(), Authority::new("a"), Authority::new("clients"));
    put_pair(folder.path(), &authority.server(1));
    put(folder.path(), "clients.pem", &clients.issuer.pem());
    put(folder.path(), "clients.crl", &clients.revokes(6));
    let mine = clients.issue(vec![dns("app.acme.example")], 7, 2099);
    let tls = format!("[tls]\n{FILES}client_ca = \"clients.pem\"\nclient_crl = \"clients.crl\"\nclient_auth = \"required\"");
    let running = start(&tls, folder.path());
    // One configuration for all handshakes, so that the later ones offer to resume the first.
    let config = client(&authority, Some(&mine), None, &[]);
    let ask = async || over_http1(&mut shake(running.address, config.clone()).await?, "/who").await;
    assert!(ask().await.is_ok());
    put(folder.path(), "clients.crl", &clients.revokes(7));
    running.tls.as_ref().unwrap().reload().unwrap();
    assert!(ask().await.is_err());
}
